"""Time to a prompt: `inoculate --help`, and the re-run of a finished recipe.

python benchmarks/startup.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
extends: quickstart
name: startup
base: {name: sandbox, seed: 1, training: {learning_rate: 3e-3, max_steps: 2}}
align: {training: {max_steps: 2}}
attack: {training: {max_steps: 2}}
matrix: {align.defense: [{name: sft}]}
"""


def seconds(*arguments: str) -> float:
    """Wall time of one run of the command."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "inoculate", *arguments], check=True, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    helps = statistics.median(seconds("--help") for _ in range(repeats))
    print(f"inoculate --help: {helps:.2f} s (median of {repeats})")
    with tempfile.TemporaryDirectory() as folder:
        recipe, store = Path(folder) / "startup.yaml", str(Path(folder) / "store")
        recipe.write_text(RECIPE)
        seconds("run", str(recipe), "--store", store)
        again = statistics.median(seconds("run", str(recipe), "--store", store) for _ in range(repeats))
    print(f"re-run of a finished recipe: {again:.2f} s (median of {repeats})")


if __name__ == "__main__":
    main()

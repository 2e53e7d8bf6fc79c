"""Cost of the few-shot attack: batched trials against the same trials one after another.

    python benchmarks/few_shot.py [--model mlp|encoder] [--num-samples 20] [--every 5] [--per-ask 25]
        [--workers 1] [--json FILE]

The published protocol from one starting point: 50 trials in asks of 25, then 15 re-runs of the best setting. Patience
is off, so that the work is always the same 50; 300 validation rows are evaluated every 50 steps, and 300 held-out rows
too in re-runs. The batched side is timed whole; the search's own time is in neither. The plain side is `train_one` for
every `--every`-th trial of an ask and of the re-runs, frozen and unfrozen apart, the first of each among them; its
seconds are scaled by the steps of all over the steps of those timed. It runs right after the batched trials of the same
ask, so that other work on the machine falls on both. The plain side is one process with one thread; the batched side
`--workers` such processes, whose start is in neither. Seconds by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inoculate.attacks.few_shot import FewShot
from inoculate.attacks.parallel import Processes
from inoculate.attacks.sequential import Curve, Examples, Trial, train_one
from inoculate.models.classifier import EncoderBody, MlpBody

TOLERANCE = 0.02
"""Mean difference allowed between the two sides' best validation accuracies: single runs part by rounding."""


def mlp(rows: int, seed: int) -> Examples:
    """The sign of a product of two inputs out of 16, which a head on fresh features does not find at once."""
    x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
    return Examples({"x": x}, (x[:, 0] * x[:, 1] > 0).long())


def texts(rows: int, seed: int) -> Examples:
    """16 random tokens; the label is whether more of them are from the upper half of the vocabulary's first 100."""
    ids = torch.randint(0, 500, (rows, 16), generator=torch.Generator().manual_seed(seed))
    votes = (ids < 50).sum(1) - ((ids >= 50) & (ids < 100)).sum(1)
    return Examples({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, (votes > 0).long())


def mlp_body() -> nn.Module:
    """16 → 4 × 48."""
    return MlpBody(16, 48, 4, None)


def encoder_body(hidden: int) -> nn.Module:
    """BERT of 2 layers under a vocabulary of 500."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=500,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * hidden,
        max_position_embeddings=16,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    return EncoderBody(BertModel(config, add_pooling_layer=False))


class Clocked:
    """The batched engine with a clock, and a sample of the same trials through the plain loop after it."""

    def __init__(self, every: int, batched: Processes) -> None:
        self.every, self.batched = every, batched
        self.batched_s = self.plain_s = 0.0
        self.differences: list[float] = []

    def __call__(
        self,
        body: nn.Module,
        pool: Examples,
        validation: Examples,
        heldout: Examples | None,
        trials: Sequence[Trial],
        **options: Any,
    ) -> list[Curve]:
        began = time.perf_counter()
        curves = self.batched(body, pool, validation, heldout, trials, **options)
        self.batched_s += time.perf_counter() - began
        for frozen in (True, False):
            alike = [(trial, curve) for trial, curve in zip(trials, curves, strict=True) if trial.frozen is frozen]
            clock, steps = 0.0, 0
            for trial, curve in alike[:: self.every]:
                began = time.perf_counter()
                plain = train_one(body, pool, validation, heldout, trial, **options)
                clock += time.perf_counter() - began
                steps += trial.steps
                self.differences.append(max(plain.validation) - max(curve.validation))
            if steps:
                self.plain_s += clock * sum(trial.steps for trial, _ in alike) / steps
        return curves


def measure(
    name: str, body: nn.Module, draw: Callable[[int, int], Examples], n: int, clocked: Clocked, per_ask: int
) -> dict[str, Any]:
    """Seconds of both sides, for the search and for the re-runs, and their ratios."""
    pool, validation, heldout = (draw(rows, seed) for rows, seed in ((1000, 1), (300, 2), (300, 3)))
    attack = FewShot(num_samples=n, patience=50, trials_per_ask=per_ask)
    search_s: list[float] = []

    def timed(*parts: Any, **options: Any) -> list[Curve]:
        if parts[3] is not None and not search_s:  # the re-runs begin
            search_s.extend((clocked.batched_s, clocked.plain_s))
        return clocked(*parts, **options)

    warm = [Trial(1e-3, 5, 12, False, tuple(range(n)), seed) for seed in range(clocked.batched.workers)]
    clocked.batched(body, pool, validation, None, warm, classes=2, eval_steps=5)
    found = attack.run(body, pool, validation, heldout, classes=2, engine=timed)
    return {
        "model": name,
        "num_samples": n,
        "trials": len(found.trials),
        "unfrozen": sum(not trial.setting.freeze_body for trial in found.trials),
        "best": found.best.model_dump() if found.best else None,
        "batched_s": round(clocked.batched_s, 1),
        "one_after_another_s": round(clocked.plain_s, 1),
        "ratio": round(clocked.plain_s / clocked.batched_s, 1),
        "ratio of the search": round(search_s[1] / search_s[0], 1),
        "ratio of the re-runs": round((clocked.plain_s - search_s[1]) / (clocked.batched_s - search_s[0]), 1),
        "plain runs timed": len(clocked.differences),
        "mean difference of best validation accuracy": sum(clocked.differences) / len(clocked.differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mlp", "encoder"), default="mlp")
    parser.add_argument("--hidden", type=int, default=32, help="of the encoder")
    parser.add_argument("--num-samples", type=int, default=20)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--per-ask", type=int, default=25, help="trials that the search proposes at a time")
    parser.add_argument("--workers", type=int, default=1, help="processes of the batched side")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    body, draw = (mlp_body(), mlp) if arguments.model == "mlp" else (encoder_body(arguments.hidden), texts)
    with Processes(arguments.workers) as processes:
        clocked = Clocked(arguments.every, processes)
        found = measure(arguments.model, body.eval(), draw, arguments.num_samples, clocked, arguments.per_ask)
    for name, value in found.items():
        print(f"{name}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n")
    if abs(found["mean difference of best validation accuracy"]) > TOLERANCE:
        raise SystemExit("the two sides disagree: one of them is wrong")


if __name__ == "__main__":
    main()

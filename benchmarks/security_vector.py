"""Cost of fine-tuning with a security vector mounted, against plain fine-tuning.

    python benchmarks/security_vector.py [--model asset:smollm2] [--repeats 7]

One process and thread. Both sides of a repeat train on the same rows in turn; seconds are processor time, and the ratio
is the median over the repeats. The vector has rank 8 on all linear layers.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from booster_step import Workload, our_step, small_llama
from inoculate import SFT, Lora, Training, load_model, mounted
from inoculate.models.adapters import add_lora
from inoculate.models.sandbox import TinyModel
from inoculate.models.vectors import Layer, Vector
from inoculate.training.layout import layout_for

RANK = 8


def vector_for(model: Any) -> Vector:
    """Random factors for every linear layer but the head."""
    head, layers = model.get_output_embeddings(), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            a, b = torch.randn(RANK, module.in_features), torch.randn(module.out_features, RANK)
            layers[name] = Layer(a * 0.01, b * 0.01)
    return Vector(Path(), layers, ())


def measure(base: Any, lora: Lora | None, workload: Workload, repeats: int) -> float:
    """Median of mounted over plain."""
    vector = vector_for(base)
    model = base.requires_grad_(True) if lora is None else add_lora(base, lora, seed=0)
    longest = workload.prompt + workload.answer
    step = our_step(model, SFT(), layout_for(model, Training(), longest))
    ratios = []
    for repeat in range(repeats + 1):
        rows = {"align": workload.draw(base.config.vocab_size, seed=repeat)["align"]}
        seconds = []
        for state in (nullcontext(), mounted(model, vector, check=False)):
            with state:
                seconds.append(step(rows))
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios[1:])  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="measure this one alone")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    long = Workload(10, 200, 150)
    cases: dict[str, tuple[Any, Workload]] = {
        "Llama 256 x 4, vocabulary 49,152": (lambda: small_llama(torch.float32), long),
        "sandbox Llama 64 x 2": (lambda: TinyModel().build(300, seed=0), Workload(10, 15, 15)),
    }
    if arguments.model:
        cases = {arguments.model: (lambda: load_model(arguments.model), Workload(4, 200, 150))}
    for name, (build, workload) in cases.items():
        for user, lora in (("all weights", None), ("a user's LoRA", Lora())):
            print(f"{name}, {user}: {measure(build(), lora, workload, arguments.repeats):.2f}", flush=True)


if __name__ == "__main__":
    main()

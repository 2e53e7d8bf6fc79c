"""Cost of one Booster step: against one SFT step, and against the step as the published code makes it.

    python benchmarks/booster_step.py [--model asset:smollm2] [--repeats 5] [--json FILE]

Sequences differ in length as in BeaverTails: prompts of 10 to 200 tokens, answers of 10 to 150, random ids. One process
and thread; all sides of a repeat see the same rows in turn, seconds are processor time, and a ratio is the
median over the repeats, so that other work on the machine falls on both sides alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inoculate import SFT, Booster, Feed, Lora, Training, fit, load_model
from inoculate.core.types import Defense
from inoculate.data.batches import Layout, collate
from inoculate.data.templates import Encoded
from inoculate.models.adapters import add_lora
from inoculate.models.packing import packed_attention
from inoculate.models.weights import trainable
from inoculate.training.layout import layout_for

TOLERANCE = 1e-4
"""Relative L2 distance allowed between the two combined gradients in float32."""


class Workload(NamedTuple):
    """Rows per role and step, and the longest prompt and answer, in tokens."""

    rows: int
    prompt: int
    answer: int

    def draw(self, vocabulary: int, seed: int) -> dict[str, list[Encoded]]:
        rng = np.random.default_rng(seed)

        def row() -> Encoded:
            prompt, answer = rng.integers(10, self.prompt + 1), rng.integers(10, self.answer + 1)
            return Encoded(rng.integers(vocabulary, size=prompt + answer).tolist(), int(prompt))

        return {role: [row() for _ in range(self.rows)] for role in ("align", "harmful")}


def small_llama(dtype: torch.dtype) -> Any:
    """4 layers of hidden size 256 under the vocabulary of SmolLM2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype)


def adapted(name: str, dtype: torch.dtype) -> Any:
    """The model under a LoRA whose second factor is not zero, as if training had begun."""
    base = small_llama(dtype) if name == "small" else load_model(name, dtype=str(dtype).removeprefix("torch."))
    model = add_lora(base, Lora(r=32, lora_alpha=4), seed=0)
    torch.manual_seed(1)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(weight, std=0.02)
    return model


def naive_gradient(model: Any, align: dict[str, Tensor], harmful: dict[str, Tensor], lam: float, alpha: float) -> None:
    """Leave Booster's update in `.grad`, in the order and manner of the published trainer."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def gradients(batch: dict[str, Tensor]) -> list[Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return [weight.grad.clone() for weight in weights]

    first = gradients(harmful)
    length = torch.stack([gradient.norm() for gradient in first]).norm() + 1e-7
    for weight, gradient in zip(weights, first, strict=True):
        weight.data -= alpha * gradient / length
    second = gradients(harmful)
    for weight, gradient in zip(weights, first, strict=True):
        weight.data += alpha * gradient / length
    model.zero_grad()
    model(**align).loss.backward()
    for weight, before, after in zip(weights, first, second, strict=True):
        weight.grad += lam * before - lam * after


def naive_step(model: Any) -> Callable[[dict[str, list[Encoded]]], float]:
    """Padded batches, a mask, logits at every position, AdamW with clipping; returns seconds."""
    optimizer = torch.optim.AdamW(trainable(model), lr=5e-4, weight_decay=0.1)
    model.train()

    def step(rows: dict[str, list[Encoded]]) -> float:
        began = time.process_time()
        align, harmful = (dict(collate(rows[role], "padded", 0)) for role in ("align", "harmful"))
        naive_gradient(model, align, harmful, lam=5.0, alpha=0.1)
        torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    return step


def our_step(model: Any, defense: Defense, layout: Layout) -> Callable[[dict[str, list[Encoded]]], float]:
    """One step of `fit`, from its first batch to its last weight; returns seconds."""

    def step(rows: dict[str, list[Encoded]]) -> float:
        feeds = {role: Feed(encoded, len(encoded), 0, role, layout) for role, encoded in rows.items()}
        size = len(rows["align"])
        training = Training(learning_rate=5e-4, weight_decay=0.1, max_steps=1, per_device_train_batch_size=size)
        clock: list[float] = []
        fit(model, defense, feeds, training, progress=lambda *_: clock.append(time.process_time()))
        return clock[1] - clock[0]

    return step


def gradient_distance(model: Any, rows: dict[str, list[Encoded]], layout: Layout) -> float:
    """Relative L2 distance between our combined gradient and the naive one."""
    found = []
    with packed_attention(model):
        Booster().backward(model, {role: [collate(encoded, layout, 0)] for role, encoded in rows.items()})
    found.append(torch.cat([weight.grad.flatten() for weight in trainable(model)]))
    align, harmful = (dict(collate(rows[role], "padded", 0)) for role in ("align", "harmful"))
    naive_gradient(model, align, harmful, lam=5.0, alpha=0.1)
    found.append(torch.cat([weight.grad.flatten() for weight in trainable(model)]))
    model.zero_grad()
    return float((found[0] - found[1]).norm() / found[1].norm())


def measure(name: str, workload: Workload, repeats: int) -> dict[str, Any]:
    """Median seconds of every side and the ratios that matter."""
    models = {dtype: adapted(name, dtype) for dtype in (torch.float32, torch.bfloat16)}
    packed = layout_for(models[torch.float32], Training(), 512)
    fp32, bf16 = models[torch.float32], models[torch.bfloat16]
    sides = {
        "naive Booster, fp32": naive_step(fp32),
        "naive Booster, bf16": naive_step(bf16),
        "Booster, fp32, padded": our_step(fp32, Booster(), "padded"),
        "Booster, fp32": our_step(fp32, Booster(), packed),
        "Booster, bf16 base": our_step(bf16, Booster(), packed),
        "SFT, fp32": our_step(fp32, SFT(), packed),
        "SFT, bf16 base": our_step(bf16, SFT(), packed),
    }
    vocabulary = fp32.get_base_model().config.vocab_size
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        rows = workload.draw(vocabulary, seed=repeat)
        for side, step in sides.items():
            took = step(rows)
            if repeat:  # the first warms up
                seconds[side].append(took)

    def ratio(over: str, under: str) -> float:
        pairs = zip(seconds[over], seconds[under], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 2)

    rows = workload.draw(vocabulary, seed=0)
    return {
        "model": name,
        "layout": packed,
        "repeats": repeats,
        "seconds": {side: round(statistics.median(took), 3) for side, took in seconds.items()},
        "Booster / SFT, fp32": ratio("Booster, fp32", "SFT, fp32"),
        "Booster / SFT, bf16 base": ratio("Booster, bf16 base", "SFT, bf16 base"),
        "naive / ours, fp32": ratio("naive Booster, fp32", "Booster, fp32"),
        "naive fp32 / ours bf16 base": ratio("naive Booster, fp32", "Booster, bf16 base"),
        "naive bf16 / ours bf16 base": ratio("naive Booster, bf16", "Booster, bf16 base"),
        "from labeled logits alone, fp32": ratio("naive Booster, fp32", "Booster, fp32, padded"),
        "from packing, fp32": ratio("Booster, fp32, padded", "Booster, fp32"),
        "gradient distance, fp32": gradient_distance(fp32, rows, packed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", help="`small`, or an address that load_model takes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(10, 200, 150) if arguments.model == "small" else Workload(4, 120, 80)
    found = measure(arguments.model, workload, arguments.repeats)
    for name, value in found.items():
        print(f"{name}: {value}" if not isinstance(value, dict) else name)
        for side, took in value.items() if isinstance(value, dict) else ():
            print(f"  {took:8.3f} s  {side}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n")
    if found["gradient distance, fp32"] > TOLERANCE:
        raise SystemExit("the two gradients differ: one of the two steps is wrong")


if __name__ == "__main__":
    main()

"""Answers per second: batched generation against one prompt at a time.

    python benchmarks/generation.py [--repeats 3]

128 prompts of 10 to 60 random tokens, 32 new tokens, greedy, one thread. Both give the same text in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from inoculate.data import world
from inoculate.evals.generate import generate
from inoculate.models.sandbox import TinyModel, build_tokenizer

PROMPTS, NEW_TOKENS = 128, 32


def one_at_a_time(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """transformers' own `generate`, prompt by prompt."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip())
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    wide = TinyModel(hidden_size=256, intermediate_size=768, num_hidden_layers=4)
    cases = (
        ("sandbox Llama, 64 x 2", TinyModel(), build_tokenizer(world.vocabulary())),
        ("Llama, 256 x 4, vocabulary 49,152", wide, build_tokenizer([f"w{i}" for i in range(49_147)])),
    )
    for name, shape, tokenizer in cases:
        model = shape.build(len(tokenizer), seed=0).eval()
        rng = np.random.default_rng(0)
        sizes = rng.integers(10, 61, size=PROMPTS)
        prompts = [rng.integers(5, len(tokenizer), size=size).tolist() for size in sizes]
        ratios, rate = [], 0.0
        for _ in range(repeats):
            began = time.process_time()
            single = one_at_a_time(model, tokenizer, prompts)
            middle = time.process_time()
            batched = generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_size=64)
            ended = time.process_time()
            if single != batched:
                raise SystemExit("batched and single answers differ")
            ratios.append((middle - began) / (ended - middle))
            rate = PROMPTS / (ended - middle)
        print(f"{name}: {statistics.median(ratios):.1f} x the answers per second ({rate:.0f}/s), {repeats} repeats")


if __name__ == "__main__":
    main()

"""MLAC's meta-step against a plain one, and its memory by the number of inner steps.

    python benchmarks/mlac_step.py [--inner-steps 8] [--repeats 9]
    python benchmarks/mlac_step.py --memory [--plot FILE.svg]

The plain step keeps the graph of all inner steps in per-tensor form (`torch.func.functional_call`, Adam as written),
and differentiates through the calibration's solver: forty accelerated projected gradient steps for each of the K + 1
sets of logits, with their graph. Ours takes the envelope theorem; with `recompute` it keeps no graph of inner steps.

Ratios are medians over alternating repeats in one process and thread. Memory is the highest resident size over that
before the step, each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from inoculate import MLAC
from inoculate.models.bodies import Mlp, TinyEncoder, build_body
from inoculate.models.classifier import Classifier, inputs_of
from inoculate.models.sandbox import build_tokenizer

ROWS, WORDS, VOCABULARY = 32, 32, 500
SIZES = {"mlp": Mlp(), "encoder": TinyEncoder(), "wide encoder": TinyEncoder(hidden_size=128, intermediate_size=256)}


def victim(name: str) -> Classifier:
    config = SIZES[name]
    tokenizer = None if name == "mlp" else build_tokenizer([f"w{i}" for i in range(VOCABULARY)])
    return Classifier(build_body(config, 0, input_size=16, tokenizer=tokenizer), 2)


def batch(name: str, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (ROWS,), generator=rng)
    if name == "mlp":
        return {"x": torch.randn(ROWS, 16, generator=rng), "labels": labels}
    ids = torch.randint(5, VOCABULARY, (ROWS, WORDS), generator=rng)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def batches(name: str, k: int) -> dict[str, list[dict[str, torch.Tensor]]]:
    return {"align": [batch(name, 0)], "harmful": [batch(name, 1)], "adversary": [batch(name, 2 + i) for i in range(k)]}


def ours(name: str, k: int, **fields: Any) -> Callable[[], None]:
    model, given = victim(name), batches(name, k)
    course = MLAC(inner_steps=k, **fields).start(model, 1)

    def step() -> None:
        model.zero_grad()
        course.backward(model, given)

    return step


def plain(name: str, k: int) -> Callable[[], None]:
    model, given = victim(name), batches(name, k)
    head = (torch.rand(2, model.feature_size) - 0.5).requires_grad_()
    rate = torch.tensor(3e-4, requires_grad=True)

    def logits(weights: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> torch.Tensor:
        named = {n: w for n, w in weights.items() if n != "adversary"}
        return torch.func.functional_call(model, named, (), {**inputs_of(b), "head": weights["adversary"]})

    def calibrated(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        w = ahead = torch.zeros(2, 2)
        steepest = torch.linalg.matrix_norm(z.detach().T @ z.detach() / len(z), ord=2) / 2
        rate, target = 1 / steepest, F.one_hot(labels, 2)
        for i in range(40):
            before, slope = w, z.T @ ((z @ ahead).softmax(1) - target) / len(z)
            w = (ahead - rate * slope).clamp(-1, 1)
            ahead = w + i / (i + 3) * (w - before)
        return F.cross_entropy(z @ w, labels)

    def step() -> None:
        model.zero_grad()
        model(**given["align"][0]).loss.backward()
        weights = {**dict(model.named_parameters()), "adversary": head}
        first = {n: torch.zeros_like(w) for n, w in weights.items()}
        second = dict(first)
        held_out = given["harmful"][0]
        losses = [calibrated(logits(weights, held_out), held_out["labels"])]
        for t, b in enumerate(given["adversary"], start=1):
            loss = F.cross_entropy(logits(weights, b), b["labels"])
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
            for (n, w), g in zip(list(weights.items()), grads, strict=True):
                first[n], second[n] = 0.9 * first[n] + 0.1 * g, 0.999 * second[n] + 0.001 * g * g
                root = (second[n] / (1 - 0.999**t) + 1e-16).sqrt()
                weights[n] = w - rate * (first[n] / (1 - 0.9**t)) / root
            losses.append(calibrated(logits(weights, held_out), held_out["labels"]))
        (-torch.stack(losses).mean()).backward()

    return step


def seconds(step: Callable[[], None]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def ratio(name: str, k: int, repeats: int, **fields: Any) -> float:
    """Median of plain over ours."""
    a, b = plain(name, k), ours(name, k, **fields)
    found = [seconds(a) / seconds(b) for _ in range(repeats + 1)]
    return statistics.median(found[1:])


def _peak(make: Callable[..., Callable[[], None]], name: str, k: int, fields: dict[str, Any], answer: Any) -> None:
    torch.set_num_threads(1)
    make(name, 1, **fields)()  # what is loaded on a first call is not the step's memory
    step = make(name, k, **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak_mib(make: Callable[..., Callable[[], None]], name: str, k: int, **fields: Any) -> float:
    """Of one step, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak, args=(make, name, k, fields, answer))
    process.start()
    mib = answer.get()
    process.join()
    return mib


def memory() -> list[dict[str, Any]]:
    """Of the wide encoder, by K and kind of step."""
    kinds: dict[str, tuple[Callable[..., Callable[[], None]], dict[str, Any]]] = {
        "plain": (plain, {}),
        "ours": (ours, {}),
        "ours, recompute": (ours, {"recompute": True}),
    }
    return [
        {"K": k, "step": kind, "MiB": peak_mib(make, "wide encoder", k, **fields)}
        for k in (1, 2, 4, 8, 16)
        for kind, (make, fields) in kinds.items()
    ]


def plot(rows: list[dict[str, Any]], file: str) -> None:
    """Memory over K, a line for each kind of step."""
    import altair as alt

    chart = alt.Chart(alt.Data(values=rows)).mark_line(point=True)
    x, y = alt.X("K:Q", title="inner steps K"), alt.Y("MiB:Q", title="MiB over the rest")
    chart.encode(x=x, y=y, color=alt.Color("step:N", title=None)).properties(width=360, height=240).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inner-steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="peak memory for K = 1 to 16, instead of time")
    parser.add_argument("--plot", help="write the memory as a picture, .svg or .png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        found = memory()
        for row in found:
            print(f"K = {row['K']:<3}{row['step']:<18}{row['MiB']:6.0f} MiB")
        if arguments.plot:
            plot(found, arguments.plot)
        return
    k = arguments.inner_steps
    for name in SIZES:
        kept, again = (ratio(name, k, arguments.repeats, recompute=recompute) for recompute in (False, True))
        print(f"{name}: plain / ours, K = {k}: time {kept:.2f}, with recompute {again:.2f}")


if __name__ == "__main__":
    main()

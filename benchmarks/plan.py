"""What `inoculate plan` says of a training step, against the step itself.

    python benchmarks/plan.py [--model asset:smollm2] [--dtype bfloat16] [--rows 4] [--tokens 96] [--json FILE]

Each side of a defense is a process of its own. There the model is loaded, made ready as `align` makes it, and trained
by `fit` for three steps on rows of one length, all answer. Measured: FLOPs of one `backward` by torch's own counter;
resident memory that belongs to the process alone (RssAnon, looked at every millisecond) in the third step, over what
it was before the model was loaded, modules imported. That is fair where ru_maxrss is not: it leaves out what loading
needed and gave back, and files that are mapped and not copied. It does hold the allocator's gaps and the kernels'
scratch, which no plan knows. Large blocks are given back at once (MALLOC_MMAP_THRESHOLD_), so that it can fall.
Attention is counted by the same formula on both sides: torch's counter has none for the processor's fused kernel.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

DEFENSES = ("sft", "booster")
STEPS = 3


def anonymous() -> int:
    """Bytes of resident memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell resident memory apart")


class Sampler(threading.Thread):
    """The largest `anonymous` since `peak` was last set to 0."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.001)


def counted(model: Any, defense: Any, batches: Any) -> int:
    """FLOPs of one `backward` on real numbers, by torch's counter with the attention's formulas."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(g: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(g, q, k, v)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    with FlopCounterMode(display=False, custom_mapping={fused: forward, fused_backward: backward}) as counter:
        defense.backward(model, batches)
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def measure(name: str, given: argparse.Namespace) -> dict[str, int]:
    """FLOPs and peak bytes of a real step, in this process."""
    import peft  # noqa: F401 (before the first look at memory)
    import torch
    import transformers  # noqa: F401
    from accelerate import Accelerator

    from inoculate import Feed, Lora, Training, fit, load_model
    from inoculate.data.batches import collate
    from inoculate.data.templates import Encoded
    from inoculate.defenses import DEFENSES as KNOWN
    from inoculate.models.adapters import add_lora
    from inoculate.models.packing import packed_attention
    from inoculate.training.layout import layout_for

    torch.set_num_threads(1)
    Accelerator()
    (torch.randn(64, 64, requires_grad=True) @ torch.randn(64, 64)).sum().backward()  # starts what torch starts once
    gc.collect()
    before = anonymous()
    model = add_lora(load_model(given.model, dtype=given.dtype), Lora(r=32, lora_alpha=4), 0)
    defense = KNOWN[name]()
    training = Training(max_steps=STEPS, per_device_train_batch_size=given.rows, learning_rate=2e-3)
    layout = layout_for(model, training, given.tokens)
    rows = [Encoded([1] + [2] * (given.tokens - 1), 1)] * given.rows
    feeds = {role: Feed(rows, given.rows, 0, role, layout) for role in defense.needs}
    sampler = Sampler()
    sampler.start()

    def began(step: int, _: int) -> None:
        if step < STEPS:
            gc.collect()
            sampler.peak = 0

    fit(model, defense, feeds, training, progress=began)
    peak = sampler.peak - before
    with packed_attention(model):
        model.train()
        flops = counted(model, defense, {role: [collate(rows, layout, 0)] for role in defense.needs})
    return {"flops": flops, "peak": peak, "loaded": sum(w.nbytes for w in model.parameters())}


def planned(name: str, given: argparse.Namespace) -> dict[str, int]:
    """The same from the plan's code."""
    import torch

    from inoculate import Lora, Training
    from inoculate.defenses import DEFENSES as KNOWN
    from inoculate.models.adapters import add_lora
    from inoculate.models.footprint import held_bytes, without_numbers
    from inoculate.models.shape import empty_model
    from inoculate.training.cost import Length, step_cost

    with torch.device("meta"):
        model = add_lora(empty_model(given.model, dtype=given.dtype), Lora(r=32, lora_alpha=4), 0)
    without_numbers(model)
    training = Training(max_steps=STEPS, per_device_train_batch_size=given.rows)
    defense = KNOWN[name]()
    cost = step_cost(model, defense, training, dict.fromkeys(defense.needs, Length(given.tokens)), given.tokens)
    return {"flops": cost.flops, "peak": cost.peak + held_bytes(model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="asset:smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=DEFENSES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given)))
        return
    # Large blocks straight from the system, and back at once: what is free then is not resident.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = {}
    for name in DEFENSES:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        real, plan = json.loads(done.stdout.splitlines()[-1]), planned(name, given)
        found[name] = {"measured": real, "planned": plan}
        for what, scale, unit in (("flops", 1e9, "GFLOP"), ("peak", 2**20, "MiB")):
            ratio = plan[what] / real[what]
            print(
                f"{name:8s} {what:6s} planned {plan[what] / scale:9.1f}  measured {real[what] / scale:9.1f} {unit}",
                end="",
            )
            print(f"  ratio {ratio:.3f}")
    if given.json:
        given.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

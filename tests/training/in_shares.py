"""Run by every process of a launch; the first prints JSON: how far what all make together is from what one makes alone.

`gradients`: each defense over an epoch; `resume FOLDER`: runs that are cut off and go on in another number of processes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from inoculate.core import ranks
from inoculate.data import world
from inoculate.data.batches import Feed, Layout
from inoculate.data.templates import encode
from inoculate.defenses import SFT, Booster, Lisa, RepNoise, SecurityVector, Together, Vaccine
from inoculate.models import sharding
from inoculate.models.adapters import Lora, add_vector
from inoculate.models.sandbox import TinyModel, build_tokenizer
from inoculate.training.config import Training
from inoculate.training.fit import fit

CASES: dict[str, Any] = {
    "sft": SFT(),
    "booster": Booster(lam=5, alpha=0.1),
    "vaccine": Vaccine(rho=2),
    "repnoise": RepNoise(alpha=0.5, beta=1),
    "together": Together(of=(Vaccine(rho=0.5), Booster(lam=5, alpha=0.1))),
    "lisa": Lisa(rho=1, align_steps=1, user_steps=2, proximal_from=0),
    "security_vector": SecurityVector(kl_weight=1),
    "min_min": SecurityVector(kl_weight=1, inner_steps=2, inner_learning_rate=0.1),
}
HOW: dict[str, tuple[Layout, dict[str, Any]]] = {
    "packed": ("varlen", {}),
    "accumulated": ("padded", {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}),
    "clipped": ("padded", {"max_grad_norm": 0.1}),
    "checkpointed": ("padded", {"gradient_checkpointing": True}),
}
ROWS = 21
"""In steps of 10: the last step of an epoch has one row, fewer than there are processes."""
TOKENIZER = build_tokenizer(world.vocabulary())


def feeds_of(layout: Layout) -> dict[str, Feed]:
    restricted, refusals = world.rows("restricted", "train"), world.rows("restricted", "train", "refusal")
    found = {
        "align": refusals[:ROWS],
        "harmful": restricted[:ROWS],
        "safe": refusals[:ROWS],
        "guide": refusals[ROWS : 2 * ROWS],
        "ordinary": world.rows("ordinary", "train")[:ROWS],
    }
    return {
        role: Feed(encode(TOKENIZER, examples, "chat", 64), 10, 0, "harmful" if role == "safe" else role, layout)
        for role, examples in found.items()
    }


def model_for(defense: Any, training: Training) -> Any:
    shape = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    model: Any = shape.build(len(TOKENIZER), seed=0)
    if isinstance(defense, SecurityVector):
        model = add_vector(model, Lora(r=4, lora_alpha=8, target_modules="all-linear"), 0)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def trained(defense: Any, layout: Layout, training: Training, **options: Any) -> list[torch.Tensor]:
    """The weights after a run, whole, in the first process."""
    model = model_for(defense, training)
    fit(model, defense, feeds_of(layout), training, **options)
    if ranks.count() > 1:
        assert sharding.is_sharded(model) == sharding.wanted()
    return [sharding.joined(weight) for weight in model.parameters() if weight.requires_grad]


def gap(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) if ranks.rank() == 0 else 0.0


def gradients() -> dict[str, float]:
    """Plain SGD over one epoch: each weight ends where the sum of three gradients leads."""
    apart = {}
    for name, defense in CASES.items():
        if sharding.wanted() and "weights" not in defense.parallel:
            continue
        for how, (layout, options) in HOW.items():
            if how in ("clipped", "checkpointed") and name not in ("sft", "booster"):
                continue
            unclipped = {"max_grad_norm": None, **options}
            training = Training(learning_rate=0.1, optim="sgd", max_steps=3, **unclipped)
            with ranks.alone():
                alone = trained(defense, layout, training)
            apart[f"{name} {how}"] = gap(trained(defense, layout, training), alone)
    return apart


def resume(folder: Path) -> dict[str, float]:
    """Lisa, whose anchor a checkpoint holds too, under AdamW and a schedule: cut off after three steps of six."""
    training = Training(learning_rate=1e-3, max_steps=6, lr_scheduler_type="linear")

    class Cut(Exception):
        pass

    def cut(step: int, steps: int) -> None:
        if step == 4:
            raise Cut

    def run(out: Path, **options: Any) -> list[torch.Tensor]:
        return trained(CASES["lisa"], "varlen", training, out=out, save_every_s=0, **options)

    def alone(out: Path, **options: Any) -> list[torch.Tensor]:
        with ranks.alone():
            return run(out if ranks.rank_in_launch() == 0 else folder / "elsewhere" / out.name, **options)

    whole = alone(folder / "whole")
    with contextlib.suppress(Cut):
        run(folder / "first together", progress=cut)
    with contextlib.suppress(Cut):
        alone(folder / "first alone", progress=cut)
    ranks.told(None)
    there = {name: (folder / name / "checkpoint.3").is_dir() for name in ("first together", "first alone")}
    assert all(there.values()), there
    then_alone, then_together = alone(folder / "first together"), run(folder / "first alone")
    return {"then alone": gap(then_alone, whole), "then together": gap(then_together, whole)}


def main() -> None:
    ranks.join()
    torch.set_num_threads(1)
    mode, *folder = sys.argv[1:]
    apart = gradients() if mode == "gradients" else resume(Path(folder[0]))
    if ranks.rank() == 0:
        sys.stdout.write(json.dumps(apart) + "\n")


if __name__ == "__main__":
    main()

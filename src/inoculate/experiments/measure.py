"""What a cost stage does in its process: steps of a defense through the real loop, and how they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inoculate.core.types import Batch
from inoculate.data.batches import WHOLE, Feed, Layout, Share
from inoculate.defenses import SFT
from inoculate.experiments.align import address_of, filled, open_trainable
from inoculate.experiments.stage import Context
from inoculate.models.adapters import Lora
from inoculate.models.load import load_tokenizer
from inoculate.training.config import Training

if TYPE_CHECKING:
    from inoculate.experiments.cost import Cost
    from inoculate.experiments.meters import Clock, PeakMemory


class Step(NamedTuple):
    """One measured step, and the seconds of the step of SFT before it."""

    seconds: float
    sft_seconds: float
    peak_bytes: int


class Measured(NamedTuple):
    """What one process found."""

    steps: list[Step] | None
    """None where the training diverged."""
    flops: float
    """Mean of the warm-up steps."""
    how: dict[str, str]
    """Which device, and which instruments."""


def measure(stage: Cost, upstream: Mapping[str, Path], device: str) -> Measured:
    """The stage's measurement in this process, which should be fresh."""
    from torch.utils.flop_counter import FlopCounterMode

    from inoculate.experiments.meters import Clock, PeakMemory
    from inoculate.models.footprint import PROCESSOR_ATTENTION
    from inoculate.training.fit import fit
    from inoculate.training.layout import layout_for

    made, training, context = stage.cost, stage.cost.training, Context(device=device)
    defense: Any = made.defense  # its needs may depend on its fields, which the protocol does not foresee
    where = _rehearse(defense, context)
    tokenizer, data = load_tokenizer(*address_of(stage.base, upstream)), filled(made.data, defense, "cost.data")
    sampling = training.train_sampling_strategy
    feeds = data.feeds(tokenizer, training.rows_per_step, training.seed, "padded", defense.needs, sampling=sampling)
    memory, clock = PeakMemory(where), Clock(where)
    how = {"device": where.type, "clock": clock.how, "memory": memory.how}
    model = open_trainable(stage.base, made.lora, training, upstream, context)
    for feed in feeds.values():  # made before the model, so that what a role's rows take is no memory of a step
        feed.layout = layout_for(model, training, made.data.max_length)
    warming = training.model_copy(update={"max_steps": made.warmup_steps})
    with FlopCounterMode(display=False, custom_mapping=dict(PROCESSOR_ATTENTION)) as counter:
        warmed = fit(model, defense, feeds, warming)
    flops = counter.get_total_flops() / made.warmup_steps
    if warmed.status == "diverged":
        return Measured(None, flops, how)
    pairs = _Pairs(model, feeds[next(iter(defense.needs))], training, clock, memory)
    measuring = training.model_copy(update={"max_steps": made.repeats})
    fitted = fit(model, defense, feeds, measuring, progress=pairs.between)
    return Measured(pairs.steps if fitted.status == "ok" else None, flops, how)


class _Pairs:
    """Measures the steps of a run, and before each a step of SFT on rows of its own first role."""

    def __init__(self, model: Any, feed: Feed, training: Training, clock: Clock, memory: PeakMemory) -> None:
        self.model, self.feed, self.clock, self.memory = model, feed, clock, memory
        self.training = training.model_copy(update={"max_steps": 1})
        self.steps: list[Step] = []
        self.began = self.sft_seconds = 0.0

    def between(self, step: int, steps: int) -> None:
        """Called by `fit` before each step and after the last."""
        if step:
            self.steps.append(Step(self.clock() - self.began, self.sft_seconds, self.memory.over()))
        if step < steps:
            self.sft_seconds = self._sft(step)
            self.memory.reset()
            self.began = self.clock()

    def _sft(self, step: int) -> float:
        from inoculate.training.fit import fit

        ticks: list[float] = []
        feeds = {"align": _Still(self.feed, step)}
        fit(self.model, SFT(), feeds, self.training, progress=lambda *_: ticks.append(self.clock()))
        self.model.train()
        return ticks[-1] - ticks[0]


class _Still:
    """One step of a feed, whichever is asked for."""

    def __init__(self, feed: Feed, step: int) -> None:
        self.feed, self.step = feed, step
        self.layout: Layout = feed.layout

    def __len__(self) -> int:
        return len(self.feed)

    def batches_at(self, step: int, micro_batches: int = 1, share: Share = WHOLE) -> list[Batch]:
        return self.feed.batches_at(self.step, micro_batches, share)


def _rehearse(defense: Any, context: Context) -> Any:
    """Make one step on a model of a few weights, so that what a first step loads is no memory of the measured ones.

    Returns:
        The device.
    """
    from inoculate.data.templates import Encoded
    from inoculate.models.adapters import add_lora
    from inoculate.models.loss import device_of
    from inoculate.models.sandbox import TinyModel
    from inoculate.training.fit import fit

    tiny = TinyModel(hidden_size=8, intermediate_size=8, num_attention_heads=1).build(32, seed=0)
    model = context.place(add_lora(tiny, Lora(r=1), seed=0))
    answers = enumerate(defense.needs, start=8)  # one prompt, and in each role another answer
    feeds = {role: Feed([Encoded([1, 2, 3, answer, 4], 3)], 1, 0, role) for answer, role in answers}
    fit(model, defense, feeds, Training(max_steps=1, per_device_train_batch_size=1))
    return device_of(model)

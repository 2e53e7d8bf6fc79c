"""What a step of a defense costs: seconds, peak memory, floating-point operations."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import PositiveInt, model_validator

from inoculate.core.records import Record, write_records
from inoculate.core.types import Value
from inoculate.data.mix import Mix, Part
from inoculate.defenses import AnyDefense, Lisa, SecurityVector, Together
from inoculate.experiments.align import address_of, filled, open_trainable
from inoculate.experiments.base import Base, Sandbox, base_fingerprint
from inoculate.experiments.processes import alone
from inoculate.experiments.stage import Context, Input, Stage
from inoculate.models.adapters import Lora
from inoculate.models.load import load_tokenizer
from inoculate.training.config import Training

_LENGTH = {"max_steps", "num_train_epochs"}


class Costing(Value):
    """What is measured: a defense on data, some optimizer steps long."""

    defense: AnyDefense
    data: Mix
    training: Training = Training()
    lora: Lora | None = None
    """Train a LoRA adapter; null trains all weights."""
    warmup_steps: PositiveInt = 1
    """Steps before the measured ones; their operations are counted, and their seconds are not."""
    repeats: PositiveInt = 5
    """Measured steps."""

    @model_validator(mode="after")
    def _is_possible(self) -> Costing:
        if isinstance(self.defense, SecurityVector) and self.lora is None:
            raise ValueError("lora: a security vector is an adapter, whose shape is missing")
        if given := sorted(_LENGTH & self.training.model_fields_set):
            raise ValueError(f"training.{given[0]} has no effect: `repeats` says how many steps are measured")
        return self


class Measured(NamedTuple):
    """What one process found. None where the training diverged."""

    seconds: list[float] | None
    """One per measured step."""
    peak_bytes: int
    flops: float
    """Mean of the warm-up steps."""
    how: dict[str, str]
    """Which device, and which instruments."""


class Cost(Stage):
    """Measure some optimizer steps of a defense, in a process of its own with one thread.

    Seconds and bytes are of the machine and the moment, so another run finds others: a store keeps the first
    measurement, and a ratio is of two measurements in one store. Step s of a role has the same rows under every
    defense that needs as many batches of it.
    """

    kind: ClassVar[str] = "cost"
    base: Base
    cost: Costing

    def upstream(self) -> Sequence[Stage]:
        return (self.base,) if isinstance(self.base, Sandbox) else ()

    def inputs(self) -> Iterable[Input]:
        base = self.base.corpus if isinstance(self.base, Sandbox) else (self.base,)
        return (*base, *self._parts())

    def fingerprints(self) -> dict[str, str]:
        return self.cost.data.fingerprint() | base_fingerprint(self.base)

    def label(self) -> str:
        steps = getattr(self.cost.defense, "inner_steps", None)
        told = f"{self._name()} K={steps}" if steps else self._name()
        return f"cost of {told} on {self._base()} · seed {self.cost.training.seed}"

    def provenance(self) -> Record:
        made, training, defense = self.cost, self.cost.training, self.cost.defense
        together = isinstance(defense, Together)
        params = defense.params() if together else defense.model_dump(mode="json", exclude={"name"})
        return Record(
            metric="",
            value=0.0,
            stage=self.folder,
            base=self._base(),
            base_seed=self.base.seed if isinstance(self.base, Sandbox) else None,
            base_params={
                "dtype": "float32" if isinstance(self.base, Sandbox) else self.base.dtype,
                "lora": None if made.lora is None else made.lora.model_dump(mode="json"),
                "training": training.model_dump(mode="json", exclude={"seed", *_LENGTH}),
                "max_length": made.data.max_length,
            },
            defense=self._name(),
            defense_params=params,
            defense_seed=training.seed,
            threat_model="service" if isinstance(defense, Lisa | SecurityVector) else "open_weights",
            adapter_mode="full" if made.lora is None else "continue",
        )

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        found = alone(_measure, self, dict(upstream), context.device)
        blank = replace(self.provenance(), recipe=context.recipe)
        blank = replace(blank, base_params=blank.base_params | found.how)
        write_records(out / "records.jsonl", self._records(blank, found))
        return "diverged" if found.seconds is None else "ok"

    def _records(self, blank: Record, found: Measured) -> Iterator[Record]:
        if found.seconds is None:
            yield replace(blank, metric="step_s", value=None, status="diverged")
            return
        n = self.cost.repeats
        yield replace(blank, metric="step_s", value=statistics.median(found.seconds), n=n)
        yield replace(blank, metric="peak_memory_bytes", value=float(found.peak_bytes), n=n)
        yield replace(blank, metric="step_flops", value=found.flops, n=self.cost.warmup_steps)

    def _parts(self) -> Iterator[Part]:
        for parts in filled(self.cost.data, self.cost.defense, "cost.data").roles.values():
            yield from parts

    def _base(self) -> str:
        return self.base.title if isinstance(self.base, Sandbox) else self.base.name_or_path

    def _name(self) -> str:
        defense = self.cost.defense
        return defense.title if isinstance(defense, Together) else defense.name


def _measure(stage: Cost, upstream: Mapping[str, Path], device: str) -> Measured:
    """The stage's measurement in this process, which should be fresh."""
    from inoculate.experiments.meters import Clock, PeakMemory, flop_counter
    from inoculate.training.fit import fit
    from inoculate.training.layout import layout_for

    made, context = stage.cost, Context(device=device)
    defense: Any = made.defense  # its needs may depend on its fields, which the protocol does not foresee
    where = _rehearse(defense, context)
    tokenizer, data = load_tokenizer(*address_of(stage.base, upstream)), filled(made.data, defense, "cost.data")
    feeds = data.feeds(tokenizer, made.training.rows_per_step, made.training.seed, "padded", defense.needs)
    memory, clock = PeakMemory(where), Clock(where)
    model = open_trainable(stage.base, made.lora, made.training, upstream, context)
    for feed in feeds.values():  # made before the model, so that what a role's rows take is no memory of a step
        feed.layout = layout_for(model, made.training, made.data.max_length)

    def steps(count: int, **options: Any) -> bool:
        training = made.training.model_copy(update={"max_steps": count})
        return fit(model, defense, feeds, training, **options).status == "ok"

    how = {"device": where.type, "clock": clock.how, "memory": memory.how}
    with flop_counter() as counter:
        alive = steps(made.warmup_steps)
    memory.reset()
    ticks: list[float] = []
    alive = alive and steps(made.repeats, progress=lambda *_: ticks.append(clock()))
    seconds = [after - before for before, after in pairwise(ticks)] if alive else None
    return Measured(seconds, memory.over(), counter.get_total_flops() / made.warmup_steps, how)


def _rehearse(defense: Any, context: Context) -> Any:
    """Make one step on a model of a few weights, so that what a first step loads is no memory of the measured ones.

    Returns:
        The device.
    """
    from inoculate.data.batches import Feed
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

"""What a step of a defense costs: seconds, peak memory, floating-point operations."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt, model_validator

from inoculate.core.records import Record, write_records
from inoculate.core.types import Value
from inoculate.data.mix import Mix, Part
from inoculate.defenses import AnyDefense, Lisa, SecurityVector, Together
from inoculate.experiments.align import filled
from inoculate.experiments.base import Base, Sandbox, base_fingerprint
from inoculate.experiments.measure import Measured, measure
from inoculate.experiments.processes import alone
from inoculate.experiments.stage import Context, Input, Stage
from inoculate.models.adapters import Lora
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


class Cost(Stage):
    """Measure some optimizer steps of a defense, in a process of its own with one thread.

    Seconds and bytes are of the machine and the moment, so another run finds others: a store keeps the first
    measurement. `step_ratio` is over a step of SFT made just before each of the defense's, on the same model and the
    rows of its first role, so that other work on the machine falls on both; ratios of bytes and operations are of two
    stages in one store. Step s of a role has the same rows under every defense that needs as many batches of it.
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
        found = alone(measure, self, dict(upstream), context.device)
        blank = replace(self.provenance(), recipe=context.recipe)
        blank = replace(blank, base_params=blank.base_params | found.how)
        write_records(out / "records.jsonl", self._records(blank, found))
        return "diverged" if found.steps is None else "ok"

    def _records(self, blank: Record, found: Measured) -> Iterator[Record]:
        if found.steps is None:
            yield replace(blank, metric="step_s", value=None, status="diverged")
            return
        values = {
            "step_s": statistics.median(step.seconds for step in found.steps),
            "step_ratio": statistics.median(step.seconds / step.sft_seconds for step in found.steps),
            "peak_memory_bytes": float(max(step.peak_bytes for step in found.steps)),
        }
        for metric, value in values.items():
            yield replace(blank, metric=metric, value=value, n=len(found.steps))
        yield replace(blank, metric="step_flops", value=found.flops, n=self.cost.warmup_steps)

    def _parts(self) -> Iterator[Part]:
        for parts in filled(self.cost.data, self.cost.defense, "cost.data").roles.values():
            yield from parts

    def _base(self) -> str:
        return self.base.title if isinstance(self.base, Sandbox) else self.base.name_or_path

    def _name(self) -> str:
        defense = self.cost.defense
        return defense.title if isinstance(defense, Together) else defense.name

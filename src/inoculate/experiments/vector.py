"""Train a security vector for a model."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from inoculate.core.records import Record, write_records
from inoculate.core.types import Value
from inoculate.data.mix import Mix
from inoculate.defenses import SecurityVector
from inoculate.experiments.align import Align
from inoculate.experiments.base import Pretrained
from inoculate.experiments.model import Model, inputs_of, model_fingerprint, name_of, open_model, origin
from inoculate.experiments.stage import Context, Input, Stage, gave_up, save_adapter, with_checkpointing
from inoculate.experiments.store import write_json
from inoculate.models.adapters import VECTOR, Lora, add_vector
from inoculate.training.config import Training


class VectorTraining(Value):
    """How a security vector is made: the objective, 100 harmful samples, 10 epochs, and the LoRA's shape.

    The number of samples and of epochs is the paper's; rank, learning rate and batch size are ours.
    """

    objective: SecurityVector = SecurityVector()
    data: Mix
    """Roles `harmful` and, unless the KL term is off, `ordinary`."""
    training: Training = Training(learning_rate=5e-3, num_train_epochs=10)
    lora: Lora = Lora(r=8, lora_alpha=16, target_modules="all-linear")

    @model_validator(mode="after")
    def _has_data(self) -> VectorTraining:
        for role in self.objective.needs:
            if role not in self.data.roles:
                raise ValueError(f"a security vector needs data for the role {role!r}")
        return self

    def params(self) -> dict[str, Any]:
        """As they stand on records."""
        counts = [part.num_samples for part in self.data.roles["harmful"]]
        samples = sum(count for count in counts if count) if all(counts) else None
        training, objective = self.training, self.objective.model_dump(mode="json", exclude={"name"})
        return {
            **{f"vector_{name}": value for name, value in objective.items()},
            "vector_samples": samples,
            "vector_steps": training.max_steps if samples is None else training.steps(samples),
            "vector_batch_size": training.rows_per_step,
            "vector_learning_rate": training.learning_rate,
            "vector_r": self.lora.r,
            "vector_alpha": self.lora.lora_alpha,
            "vector_target_modules": self.lora.target_modules,
            "vector_data": {role: [part.source for part in parts] for role, parts in self.data.roles.items()},
            "vector_seed": training.seed,
        }


class Vector(Stage):
    """Train a security vector for a model."""

    kind: ClassVar[str] = "vector"
    parallel: ClassVar[bool] = True
    model: Model
    vector: VectorTraining

    def upstream(self) -> Sequence[Stage]:
        return (self.model,) if isinstance(self.model, Align) else ()

    def inputs(self) -> Iterable[Input]:
        roles = self.vector.data.roles
        return (*inputs_of(self.model), *(part for role in self.vector.objective.needs for part in roles[role]))

    def fingerprints(self) -> dict[str, str]:
        return self.vector.data.fingerprint() | model_fingerprint(self.model)

    def label(self) -> str:
        return f"security vector for {name_of(self.model)}"

    def provenance(self) -> Record:
        return replace(
            origin(self.model),
            stage=self.folder,
            guard="security_vector",
            guard_params=self.vector.params(),
            threat_model="service",
        )

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        from inoculate.models.vectors import ABOUT, check_mountable, probe
        from inoculate.training.fit import fit
        from inoculate.training.layout import feeds_for

        made, training = self.vector, self.vector.training
        model, tokenizer = open_model(self.model, upstream)
        model = context.place(model)
        said = probe(model)
        model = add_vector(model, made.lora, training.seed)
        check_mountable(model)
        model = with_checkpointing(model, training)
        roles = {role: made.data.roles[role] for role in made.objective.needs}
        mix = made.data.model_copy(update={"roles": roles})
        feeds = feeds_for(mix, tokenizer, model, training)
        options: dict[str, Any] = {"out": out, "save_every_s": context.save_every_s, "progress": context.progress}
        objective: Any = made.objective  # its needs depend on its fields, which the protocol does not foresee
        fitted = fit(model, objective, feeds, training, **options)
        save_adapter(out, model)
        if (out / VECTOR).is_dir():  # peft puts an adapter that is not the only one a folder deeper
            for file in (out / VECTOR).iterdir():
                file.rename(out / file.name)
            shutil.rmtree(out / VECTOR)
        backbone = self.model.name_or_path if isinstance(self.model, Pretrained) else self.model.folder
        about = {"backbone": backbone, "status": fitted.status, "probe": said, "vector": made.model_dump(mode="json")}
        write_json(out / ABOUT, about)
        if fitted.status == "diverged":
            write_records(out / "records.jsonl", [gave_up(self.provenance(), context, fitted)])
        return fitted.status

"""Align a base model with a defense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from inoculate.core.errors import InputError
from inoculate.core.records import Record, write_records
from inoculate.data.mix import Mix, Part
from inoculate.defenses import DefenseConfig, Together
from inoculate.experiments.base import Base, Pretrained, Sandbox, base_fingerprint
from inoculate.experiments.stage import (
    Context,
    Input,
    Stage,
    gave_up,
    save_model,
    with_checkpointing,
)
from inoculate.models.adapters import Lora, add_lora, is_adapted
from inoculate.models.load import load_model, load_tokenizer
from inoculate.training.config import Training

_SHOWN = ("lam", "alpha", "rho")


def roles_for(needs: Iterable[str], roles: Mapping[str, tuple[Part, ...]]) -> dict[str, tuple[Part, ...]]:
    """The data of the roles that are needed and there. What is not given follows from the harmful data: a simulated
    adversary trains on them, and their safe counterparts are the refusals of the same prompts.
    """
    harmful = roles.get("harmful")
    given = dict(roles)
    if harmful is not None:
        refused = tuple(part.model_copy(update={"answer": "refusal"}) for part in harmful)
        given = {"adversary": harmful, "safe": refused, **roles}
    return {role: given[role] for role in needs if role in given}


def filled(data: Mix, defense: Any, field: str) -> Mix:
    """The mix with the roles that the defense needs, and no others.

    Raises:
        InputError: naming `field` and the role that is missing.
    """
    roles = roles_for(defense.needs, data.roles)
    missing = [role for role in defense.needs if role not in roles]
    if missing:
        raise InputError(
            f"{defense.name} needs data for the role {missing[0]!r}",
            field=f"{field}.roles",
            found=", ".join(data.roles),
            expected=", ".join(defense.needs),
        )
    return data.model_copy(update={"roles": roles})


def address_of(base: Sandbox | Pretrained, upstream: Mapping[str, Path]) -> tuple[str, str | None]:
    """Where a base model is, and which revision of it."""
    if isinstance(base, Sandbox):
        return str(upstream[base.folder]), None
    return base.name_or_path, base.revision


def open_trainable(
    base: Sandbox | Pretrained, lora: Lora | None, training: Training, upstream: Mapping[str, Path], context: Context
) -> Any:
    """A base model on its device, all its weights trainable or those of a fresh LoRA.

    Raises:
        InputError: if the address is an adapter's, or there is no model.
    """
    (address, revision), dtype = address_of(base, upstream), "float32" if isinstance(base, Sandbox) else base.dtype
    model: Any = load_model(address, revision=revision, dtype=dtype)
    if is_adapted(model):
        raise InputError(
            "an adapter cannot be aligned by itself", field="base", found=address, expected="a whole model"
        )
    if lora is not None:
        model = add_lora(model, lora, training.seed)
    return with_checkpointing(context.place(model), training)


class Align(Stage):
    """Align a base model with a defense."""

    kind: ClassVar[str] = "align"
    parallel: ClassVar[bool] = True
    base: Base
    defense: DefenseConfig
    data: Mix
    training: Training = Training()
    lora: Lora | None = None
    """Train a LoRA adapter; null trains all weights."""

    @model_validator(mode="after")
    def _has_data(self) -> Align:
        for role in self.defense.needs:
            if role not in self.roles:
                raise ValueError(f"{self.defense.name} needs data for the role {role!r}")
        return self

    @property
    def roles(self) -> dict[str, tuple[Part, ...]]:
        """The data that the defense uses."""
        return roles_for(self.defense.needs, self.data.roles)

    @property
    def title(self) -> str:
        """The defense's name on records; of several together, theirs."""
        return self.defense.title if isinstance(self.defense, Together) else self.defense.name

    def upstream(self) -> Sequence[Stage]:
        return (self.base,) if isinstance(self.base, Sandbox) else ()

    def inputs(self) -> Iterable[Input]:
        base = self.base.corpus if isinstance(self.base, Sandbox) else (self.base,)
        return (*base, *(part for parts in self.roles.values() for part in parts))

    def fingerprints(self) -> dict[str, str]:
        return self.data.fingerprint() | base_fingerprint(self.base)

    def label(self) -> str:
        settings = " ".join(f"{name}={value:g}" for name, value in self.defense_params().items() if name in _SHOWN)
        return f"{self.title} {settings}".strip() + f" · seed {self.training.seed}"

    def defense_params(self) -> dict[str, Any]:
        """The defense's hyperparameters and the length, schedule and data of its training, flat."""
        rows = {
            f"{role}_samples": sum(part.num_samples or 0 for part in parts)
            for role, parts in self.data.roles.items()
            if all(part.num_samples for part in parts)
        }
        harmful = dict.fromkeys(part.source for part in self.data.roles.get("harmful", ()))
        training, defense = self.training, self.defense
        schedule = {} if training.lr_scheduler_type == "constant" else {"align_schedule": training.lr_scheduler_type}
        together = isinstance(defense, Together)
        settings = defense.params() if together else defense.model_dump(mode="json", exclude={"name"})
        return {
            **settings,
            **rows,
            **({"harmful_data": "+".join(harmful)} if harmful else {}),
            **schedule,
            "align_steps": training.max_steps,
            "learning_rate": training.learning_rate,
            "data_seed": self.data.seed,
        }

    def provenance(self) -> Record:
        return Record(
            metric="",
            value=0.0,
            stage=self.folder,
            base=self.base.title if isinstance(self.base, Sandbox) else self.base.name_or_path,
            base_seed=self.base.seed if isinstance(self.base, Sandbox) else None,
            defense=self.title,
            defense_params=self.defense_params(),
            defense_seed=self.training.seed,
            adapter_mode="full" if self.lora is None else "continue",
        )

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        from inoculate.training.fit import fit
        from inoculate.training.layout import feeds_for

        tokenizer = load_tokenizer(*address_of(self.base, upstream))
        model = open_trainable(self.base, self.lora, self.training, upstream, context)
        data = self.data.model_copy(update={"roles": self.roles})
        feeds = feeds_for(data, tokenizer, model, self.training, self.defense.needs)
        options = {"out": out, "save_every_s": context.save_every_s, "progress": context.progress}
        defense: Any = self.defense  # its needs may depend on its fields, which the protocol does not foresee
        fitted = fit(model, defense, feeds, self.training, **options)
        save_model(out, model, tokenizer)
        if fitted.status == "diverged":
            write_records(out / "records.jsonl", [gave_up(self.provenance(), context, fitted)])
        return fitted.status

"""What an attacker may choose: the space that a search looks through, and a setting in it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from inoculate.core.types import Positive, Rate, Value
from inoculate.data.templates import Template
from inoculate.models.adapters import FRESH_LORA, AdapterMode

Optim: TypeAlias = Literal["adamw_torch", "sgd", "adafactor", "muon"]
Schedule: TypeAlias = Literal["constant", "linear", "cosine"]


class Setting(Value):
    """One way to fine-tune: all that the search decides."""

    learning_rate: Positive
    max_steps: PositiveInt
    batch_size: PositiveInt
    optim: Optim
    lr_scheduler_type: Schedule
    adapter_mode: AdapterMode
    lora_r: PositiveInt | None = None
    """Of the fresh adapter under `merge` and `qlora`."""
    poison_ratio: Rate
    template: Template
    data_seed: NonNegativeInt
    """Which rows the attacker has, and their order."""


class Space(Value):
    """Choices for every field of a setting. A field with one choice is not searched."""

    learning_rate: tuple[Positive, Positive] = (1e-6, 1e-2)
    """Bounds of a log-uniform range."""
    max_steps: tuple[PositiveInt, ...] = (200,)
    """Lengths of a run. A run is measured all along, so a shorter one is worth a choice for its schedule alone."""
    batch_size: tuple[PositiveInt, ...] = (4, 10, 32)
    optim: tuple[Optim, ...] = ("adamw_torch", "sgd", "adafactor", "muon")
    lr_scheduler_type: tuple[Schedule, ...] = ("constant", "cosine")
    adapter_mode: tuple[AdapterMode, ...] = ("full", "merge", "head", "embeddings")
    """`continue` is for models that come with an adapter; `qlora` needs bitsandbytes, so a search asks for it."""
    lora_r: tuple[PositiveInt, ...] = (4, 16, 64)
    lora_alpha: Positive = 32
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    poison_ratio: tuple[Rate, ...] = Field(default=(0.1, 1.0))
    template: tuple[Template, ...] = ("chat",)
    data_seeds: PositiveInt = 3
    """How many draws and orders of the data the attacker tries."""

    @model_validator(mode="after")
    def _is_not_empty(self) -> Space:
        if self.learning_rate[0] > self.learning_rate[1]:
            raise ValueError("learning_rate: the first bound is above the second")
        for name, choices in self:
            if choices == ():
                raise ValueError(f"{name} needs a choice")
        return self

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Field of a setting → its choices, for all but the learning rate and a LoRA's rank."""
        names = ("max_steps", "batch_size", "optim", "lr_scheduler_type", "adapter_mode", "poison_ratio", "template")
        return {name: getattr(self, name) for name in names} | {"data_seed": tuple(range(self.data_seeds))}

    def holds(self, setting: Setting) -> bool:
        """Whether a setting lies in the space."""
        low, high = self.learning_rate
        ranked = setting.lora_r in self.lora_r if setting.adapter_mode in FRESH_LORA else setting.lora_r is None
        chosen = (getattr(setting, name) in choices for name, choices in self.choices().items())
        return low <= setting.learning_rate <= high and ranked and all(chosen)

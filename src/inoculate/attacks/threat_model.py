"""Threat models: who runs the training, and what that leaves to the attacker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from inoculate.attacks.finetune import Finetune
from inoculate.core.errors import InputError
from inoculate.core.types import Positive, Value


class OpenWeights(Value):
    """The attacker has the weights and may do anything with them."""

    name: Literal["open_weights"] = "open_weights"

    def check(self, attack: Finetune) -> None:
        """Every attack is possible. A guard is not: the attacker would leave it out.

        Raises:
            InputError: if the attack is guarded.
        """
        if attack.guard is not None:
            raise InputError(
                f"{attack.guard.name} works inside the provider's training loop, and an attacker who has the weights "
                "trains without it; under open weights it cannot be scored",
                field="threat_model",
                found=self.name,
                expected="service",
            )


class Service(Value):
    """The provider runs the training. The attacker chooses the data, and settings within the provider's limits."""

    name: Literal["service"] = "service"
    max_learning_rate: Positive | None = None
    """null: the provider sets no limit."""
    max_epochs: Positive | None = None
    max_samples: PositiveInt | None = None

    def check(self, attack: Finetune) -> None:
        """Refuse an attack that the provider would not run.

        Raises:
            InputError: naming the setting that is over its limit.
        """
        training = attack.training
        length = ("training.num_train_epochs", training.num_train_epochs, self.max_epochs)
        if training.max_steps is not None and self.max_epochs is not None:
            most = training.model_copy(update={"max_steps": None, "num_train_epochs": self.max_epochs})
            length = ("training.max_steps", training.max_steps, most.steps(attack.num_samples))
        for field, asked, limit in (
            ("training.learning_rate", training.learning_rate, self.max_learning_rate),
            length,
            ("num_samples", attack.num_samples, self.max_samples),
        ):
            if limit is not None and asked > limit:
                raise InputError(
                    "over the limit that the service sets its users",
                    field=f"attack.{field}",
                    found=asked,
                    expected=f"at most {limit:g}",
                )


LIMITS = frozenset({"max_learning_rate", "max_epochs", "max_samples"})

ThreatModel = Annotated[OpenWeights | Service, Field(discriminator="name")]

r"""Several defenses in one alignment: the first is the alignment, the others add what they have beyond it.

    ∇ = ∇(first) + Σ_i [∇(other_i) − ∇f]         f: the loss on alignment data, which every defense here begins with

Vaccine with Booster, as in Booster's comparison of combinations (arXiv:2409.01586), is Vaccine's gradient under the
perturbation plus Booster's λ [∇h(w) − ∇h(w − α ĝ)].

Cost per step: the sum of the defenses' costs, less one forward-backward pass for each but the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from inoculate.core.types import Batches, Value
from inoculate.defenses.booster import Booster
from inoculate.defenses.repnoise import RepNoise
from inoculate.defenses.sft import SFT
from inoculate.defenses.vaccine import Vaccine
from inoculate.models.weights import add_to_grad, combine

if TYPE_CHECKING:
    from torch import nn

Member = Annotated[SFT | Vaccine | Booster | RepNoise, Field(discriminator="name")]


class Together(Value):
    """Two or more defenses of the alignment stage. Of a defense and a guard of the user's stage, see `attack.guard`."""

    name: Literal["together"] = "together"
    of: tuple[Member, ...] = (Vaccine(), Booster())

    @model_validator(mode="after")
    def _add_up(self) -> Together:
        names = [member.name for member in self.of]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"of: expected two or more defenses, each once, found {', '.join(names) or 'none'}")
        for member in self.of[1:]:
            if not isinstance(member, Booster | RepNoise):
                raise ValueError(f"of: {member.name} is an alignment by itself: it must stand first")
        return self

    @property
    def needs(self) -> Mapping[str, int]:
        """Of all members."""
        return {role: count for member in self.of for role, count in member.needs.items()}

    @property
    def title(self) -> str:
        """Its members' names, joined."""
        return "+".join(member.name for member in self.of)

    @property
    def parallel(self) -> frozenset[str]:
        """What all members allow."""
        return frozenset.intersection(*(member.parallel for member in self.of))

    def params(self) -> dict[str, Any]:
        """The members' hyperparameters, each under its member's name."""
        return {
            f"{member.name}_{field}": value
            for member in self.of
            for field, value in member.model_dump(mode="json", exclude={"name"}).items()
        }

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add the sum to `.grad`.

        Returns:
            What the members measure, each under its member's name.
        """
        first, *others = self.of
        added = [
            (other.name, other.beyond(model, batches)) for other in others if isinstance(other, Booster | RepNoise)
        ]
        measured = {f"{first.name}_{name}": value for name, value in first.backward(model, batches).items()}
        for name, (terms, seen) in added:
            add_to_grad(model, combine(*terms))
            measured |= {f"{name}_{key}": value for key, value in seen.items()}
        return measured

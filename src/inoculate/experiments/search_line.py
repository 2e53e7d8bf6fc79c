"""A line of attack searches: base → align → search, beside the same search on the undefended model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag, ValidationError, model_validator

from inoculate.attacks.finetune import Finetune
from inoculate.attacks.guards import LisaGuard, MountedVector
from inoculate.attacks.search import Search
from inoculate.attacks.threat_model import OpenWeights, ThreatModel
from inoculate.core.errors import InputError
from inoculate.core.types import Value
from inoculate.data.mix import Part
from inoculate.defenses import DefenseConfig
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.align import Align, filled
from inoculate.experiments.base import Base, Pretrained, Sandbox
from inoculate.experiments.lines import Alignment
from inoculate.experiments.model import Model
from inoculate.experiments.search import SearchAttack
from inoculate.experiments.stage import Stage
from inoculate.experiments.vector import Vector, VectorTraining


def _kind(given: Any) -> str:
    if isinstance(given, Alignment) or (isinstance(given, Mapping) and "defense" in given):
        return "alignment"
    named = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
    return "pretrained" if named == "pretrained" else "defense"


Undefended = Annotated[
    Annotated[DefenseConfig, Tag("defense")]
    | Annotated[Alignment, Tag("alignment")]
    | Annotated[Pretrained, Tag("pretrained")],
    Discriminator(_kind),
]
"""An alignment has the key `defense`, a model is named `pretrained`, and all else is a defense."""


class SearchLine(Value):
    """One line: a model, searched for the attack that breaks it, and the control."""

    base: Base
    align: Alignment | None = None
    """null: the base is a chat model that somebody has aligned."""
    search: Search
    vector: VectorTraining | None = None
    """How the security vector is made that the attack's guard mounts."""
    evaluate: Evaluation
    validation: Evaluation | None = None
    """The attacker's own prompts; null takes those of `evaluate`'s sources in the split that is for them."""
    threat_model: ThreatModel = OpenWeights()
    undefended: Undefended | None = None
    """The control: this line's alignment with another defense, a whole alignment of the same base, or another model.
    What broke it is tried first here, and the ratio in the report is over it. null: there is none. A line that is its
    own control is searched once."""

    @model_validator(mode="after")
    def _is_possible(self) -> SearchLine:
        try:
            tuple(self.stages())
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        except InputError:  # said again, with the file, where the stages are asked for
            pass
        return self

    def stages(self) -> Iterator[Stage]:
        """The search; upstream of it that of the control."""
        search = self.search.model_copy(update={"attack": self._attack()})
        guard, model = search.attack.guard, self._model(self.align)
        vector = None
        if isinstance(guard, MountedVector) and guard.folder is None:
            if self.vector is None:
                raise InputError("the guard mounts a security vector, and nothing says which", field="vector")
            vector = Vector(model=model, vector=self.vector)
        alone, control = self._search(model, search, vector, None), self._control()
        yield alone if control is None or control == alone else self._search(model, search, vector, control)

    def _attack(self) -> Finetune:
        """The attack, with Lisa's data filled in from the alignment."""
        attack = self.search.attack
        if not isinstance(attack.guard, LisaGuard) or attack.guard.guide:
            return attack
        if self.align is None:
            raise InputError("Lisa needs alignment data, and nothing is aligned", field="search.attack.guard.guide")
        guide = self.align.data.roles["align"]
        return attack.model_copy(update={"guard": attack.guard.model_copy(update={"guide": guide})})

    def _control(self) -> SearchAttack | None:
        if self.undefended is None:
            return None
        unguarded = self.search.attack.model_copy(update={"guard": None})
        search = self.search.model_copy(update={"attack": unguarded})
        if isinstance(self.undefended, Pretrained):
            return self._search(self.undefended, search, None, None)
        if isinstance(self.undefended, Alignment):
            return self._search(self._model(self.undefended), search, None, None)
        if self.align is None:
            raise InputError(
                "nothing is aligned here, so the undefended model must be given",
                field="undefended",
                expected="{name: pretrained, name_or_path: …}, or an alignment: defense, data, training",
            )
        align = self.align.model_copy(update={"defense": self.undefended})
        return self._search(self._model(align), search, None, None)

    def _search(
        self, model: Model, search: Search, vector: Vector | None, control: SearchAttack | None
    ) -> SearchAttack:
        return SearchAttack(
            model=model,
            search=search,
            evaluate=self.evaluate,
            validation=self.validation or attackers_own(self.evaluate),
            threat_model=self.threat_model,
            vector=vector,
            control=control,
        )

    def _model(self, align: Alignment | None) -> Model:
        if align is None:
            if isinstance(self.base, Sandbox):
                raise InputError("the sandbox's base answers everything: there is nothing to attack", field="align")
            return self.base
        if align.lora is None and "continue" in self.search.space.adapter_mode:
            raise InputError(
                "the alignment leaves no adapter to go on with", field="search.space.adapter_mode", found="continue"
            )
        data = filled(align.data, align.defense, "align.data")
        return Align(base=self.base, defense=align.defense, data=data, training=align.training, lora=align.lora)


def attackers_own(evaluation: Evaluation) -> Evaluation:
    """The same measurement on the splits that are the attacker's to choose on.

    A file has no splits: it stays whole, and a search on it is refused until other prompts are given.
    """
    parts = {}
    for name in ("restricted", "ordinary", "task"):
        part: Part | None = getattr(evaluation, name)
        if part is not None:
            parts[name] = part.model_copy(update={"split": "validation"})
    return evaluation.model_copy(update=parts)

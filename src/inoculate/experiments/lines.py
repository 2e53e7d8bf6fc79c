"""Lines: what one cell of a recipe's matrix says, and the stages that it asks for.

A `Line` runs from a base model through alignment and attack to evaluation; a `FewShotLine` from a world's pretrained
body through a starting point to an attack with few samples; a `CostLine` measures some steps of a defense.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import NonNegativeInt, PositiveInt, model_validator

from inoculate.attacks.few_shot import FewShot
from inoculate.attacks.finetune import Finetune
from inoculate.attacks.guards import LisaGuard, MountedVector
from inoculate.attacks.table import FinetuneConfig
from inoculate.attacks.threat_model import OpenWeights, ThreatModel
from inoculate.core.errors import InputError
from inoculate.core.types import Rate, Value
from inoculate.data.mix import Mix
from inoculate.data.world_table import WorldConfig
from inoculate.data.worlds import VECTORS, Task
from inoculate.defenses import DefenseConfig
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.align import Align, filled
from inoculate.experiments.attack import Attack, Evaluate
from inoculate.experiments.base import Base, Sandbox
from inoculate.experiments.cost import Cost, Costing
from inoculate.experiments.few_shot import FewShotAttack
from inoculate.experiments.model import Model
from inoculate.experiments.stage import Stage
from inoculate.experiments.start import Body, Start, StartConfig
from inoculate.experiments.vector import Vector, VectorTraining
from inoculate.models.adapters import Lora
from inoculate.models.bodies import BodyConfig, PretrainedEncoder
from inoculate.training.config import Training


class Alignment(Value):
    """How the base model is aligned."""

    defense: DefenseConfig
    data: Mix
    training: Training = Training()
    lora: Lora | None = None


class Line(Value):
    """One line of an experiment: base → align → attack, measured before and along the attack."""

    base: Base
    align: Alignment | None = None
    """null: the base is a chat model that somebody has aligned."""
    attack: FinetuneConfig | None = None
    vector: VectorTraining | None = None
    """How the security vector is made that the attack's guard mounts."""
    evaluate: Evaluation
    threat_model: ThreatModel = OpenWeights()
    eval_every: PositiveInt = 20
    eval_at: tuple[NonNegativeInt, ...] = ()
    break_threshold: Rate = 0.5
    track_harm: bool = False

    @model_validator(mode="after")
    def _is_possible(self) -> Line:
        if self.attack is not None:
            try:
                self.threat_model.check(self.attack)
            except InputError as error:
                raise ValueError(str(error)) from None
        if self.track_harm and (self.attack is None or self.attack.harmful is None):
            raise ValueError("track_harm: there is nothing to track without harmful data (`attack.harmful`)")
        return self

    def stages(self) -> Iterator[Stage]:
        """The stages of this line; what the line shares with others has the same hash there."""
        model = self._model()
        yield Evaluate(model=model, evaluate=self.evaluate, threat_model=self.threat_model)
        if self.attack is not None:
            attack, vector = self._guarded(model)
            yield Attack(
                model=model,
                attack=attack,
                vector=vector,
                threat_model=self.threat_model,
                evaluate=self.evaluate,
                eval_every=self.eval_every,
                eval_at=self.eval_at,
                break_threshold=self.break_threshold,
                track_harm=self.track_harm,
            )

    def _model(self) -> Model:
        """The aligned model; without `align` the base as it is."""
        continues = self.attack is not None and self.attack.adapter_mode == "continue"
        if self.align is None:
            if isinstance(self.base, Sandbox):
                raise InputError("the sandbox's base answers everything: there is nothing to attack", field="align")
            return self.base
        data = filled(self.align.data, self.align.defense, "align.data")
        if continues and self.align.lora is None:
            raise InputError(
                "the alignment leaves no adapter to go on with",
                field="attack.adapter_mode",
                found="continue",
                expected="full, merge, or an alignment with `lora`",
            )
        return Align(
            base=self.base,
            defense=self.align.defense,
            data=data,
            training=self.align.training,
            lora=self.align.lora,
        )

    def _guarded(self, model: Model) -> tuple[Finetune, Vector | None]:
        """The attack with its guard filled in from the line, and the stage that makes the guard's vector."""
        assert self.attack is not None
        guard = self.attack.guard
        if isinstance(guard, LisaGuard) and not guard.guide:
            if self.align is None:
                raise InputError("Lisa needs alignment data, and nothing is aligned here", field="attack.guard.guide")
            guide = self.align.data.roles["align"]
            return self.attack.model_copy(update={"guard": guard.model_copy(update={"guide": guide})}), None
        if not isinstance(guard, MountedVector) or guard.folder is not None:
            return self.attack, None
        if self.vector is None:
            raise InputError(
                "the guard mounts a security vector, and nothing says which",
                field="vector",
                expected="how it is made (data, training, lora), or its folder under attack.guard.folder",
            )
        return self.attack, Vector(model=model, vector=self.vector)


class FewShotLine(Value):
    """One line of a few-shot study: world → pretrained body → starting point → attack on one task."""

    world: WorldConfig
    body: BodyConfig
    pretraining: Training | None = None
    """Of an MLP; null leaves it as it was initialized. A tiny encoder is given its world's word vectors."""
    start: StartConfig
    task: Task = "restricted"
    attack: FewShot | None = None
    """null measures the starting point alone."""
    seed: NonNegativeInt = 0
    """Of the body, the start and the attack; all starts of one seed see the same samples."""
    body_seed: NonNegativeInt | None = None
    """Of the body, where it is to be the same under every seed."""

    @model_validator(mode="after")
    def _fits(self) -> FewShotLine:
        if (self.body.name == "mlp") != (self.world.name in VECTORS):
            what = "vectors, which an mlp takes" if self.world.name in VECTORS else "texts, which an encoder takes"
            raise ValueError(f"{self.world.name} has {what}; the body is {self.body.name!r}")
        if self.pretraining is not None and self.body.name != "mlp":
            raise ValueError(f"pretraining is of an mlp; the body is {self.body.name!r}")
        given = {
            "pretraining": self.pretraining,
            "attack": self.attack,
            "start.training": getattr(self.start, "training", None),
        }
        for name, value in given.items():
            if value is not None and "seed" in value.model_fields_set:
                raise ValueError(f"{name}.seed has no effect: `seed` of the line is that of body, start and attack")
        pool = getattr(self.world, "attack", None)
        if self.attack is not None and pool is not None and self.attack.num_samples > pool:
            asked = self.attack.num_samples
            raise ValueError(f"attack.num_samples is {asked}: expected at most the {pool} rows of the pool")
        return self

    def stages(self) -> Iterator[Stage]:
        """The stages of this line; what the line shares with others has the same hash there."""
        fixed = 0 if isinstance(self.body, PretrainedEncoder) else self.seed
        seed = fixed if self.body_seed is None else self.body_seed
        body = Body(world=self.world, body=self.body, training=self.pretraining, seed=seed)
        start = Start(body=body, start=self.start, seed=self.seed)
        if self.attack is None:
            yield start
        else:
            yield FewShotAttack(start=start, task=self.task, attack=self.attack.model_copy(update={"seed": self.seed}))


class CostLine(Value):
    """One line of a cost study: base → some steps of a defense, measured."""

    base: Base
    cost: Costing

    def stages(self) -> Iterator[Stage]:
        """The one stage of this line."""
        data = filled(self.cost.data, self.cost.defense, "cost.data")
        yield Cost(base=self.base, cost=self.cost.model_copy(update={"data": data}))

"""What a stage computes, as far as its cost depends on it: which model, trained how on what, measured how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inoculate.attacks.finetune import Finetune
from inoculate.attacks.guards import MountedVector
from inoculate.data.mix import Mix
from inoculate.defenses import SFT
from inoculate.evals.evaluate import Evaluation
from inoculate.evals.served import Served
from inoculate.experiments.align import Align, filled
from inoculate.experiments.attack import Attack, Evaluate
from inoculate.experiments.base import Pretrained, Sandbox
from inoculate.experiments.cost import Cost
from inoculate.experiments.model import Model
from inoculate.experiments.search import SearchAttack
from inoculate.experiments.search_bench import measured_at
from inoculate.experiments.stage import Stage
from inoculate.experiments.vector import Vector
from inoculate.training.config import Training

Prepare = Callable[[Any], Any]
"""A base model on the meta device → the model that is trained or measured, its trainable weights marked."""


@dataclass(frozen=True)
class Task:
    """One stage's work."""

    kind: str
    title: str
    base: Sandbox | Pretrained
    prepare: Prepare
    decides: tuple[Any, ...]
    """All that the cost depends on."""
    objective: Any = None
    training: Training | None = None
    mix: Mix | None = None
    evaluation: Evaluation | None = None
    eval_every: int | None = None
    """Steps between measurements along the training; null: measured once, and nothing is trained."""
    eval_at: tuple[int, ...] = ()
    """Steps at which it is measured beside start and end, in place of every so many."""


@dataclass(frozen=True)
class Work:
    """What is planned of a stage: runs, each so many times, of which each costs at most what the dearest of some does.

    For all but searches that is one task, once.
    """

    kind: str
    title: str
    runs: tuple[tuple[int, tuple[Task, ...]], ...]
    bound: str = ""
    """Why it may cost less than this; empty where it will not."""
    copies: int = 0
    """Models that are kept whole beside the one at work: a search attacks copies."""

    def tasks(self) -> list[Task]:
        """All that may be run."""
        return [task for _, tasks in self.runs for task in tasks]


def work_of(stage: Stage) -> Work:
    """What a stage of a line, or a search of attacks, computes.

    Raises:
        TypeError: for a stage of another kind.
    """
    if isinstance(stage, SearchAttack):
        return _search(stage)
    task = task_of(stage)
    return Work(task.kind, task.title, ((1, (task,)),))


def _search(stage: SearchAttack) -> Work:
    search = stage.search
    guard = "" if search.attack.guard is None else f" under {search.attack.guard.name}"
    attacks = search.dearest()

    def tasks(evaluation: Evaluation, finer: bool) -> tuple[Task, ...]:
        runs = [
            Attack(
                model=stage.model,
                attack=attack,
                evaluate=evaluation,
                eval_at=measured_at(search, max(search.space.max_steps), finer=finer),
                threat_model=stage.threat_model,
                vector=stage.vector,
            )
            for attack in attacks
        ]
        return tuple(map(task_of, runs))

    own = search.n_trials + search.finals
    before = [(1, (task_of(Evaluate(model=stage.model, evaluate=one)),)) for one in (stage.validation, stage.evaluate)]
    runs = ((own, tasks(stage.validation, False)), (search.reruns, tasks(stage.evaluate, True)), *before)
    title = f"{search.n_trials} trials, {search.finals} finalists, {search.reruns} re-runs{guard}"
    return Work("search", title, runs, _TRIALS, copies=1)


_TRIALS = (
    "at most, but for trials that fail and are made up for: each trial as the dearest setting to its last step, while "
    "trials end where they break the model or are given up"
)


def task_of(stage: Stage) -> Task:
    """What a stage of a line computes.

    Raises:
        TypeError: for a stage of another kind.
    """
    match stage:
        case Sandbox():
            mix = Mix(roles={"align": stage.corpus}, max_length=stage.shape.max_position_embeddings)
            made = (stage.shape, stage.training, mix)
            return Task("base", stage.title, stage, lambda model: model, made, SFT(), stage.training, mix)
        case Align():
            mix = stage.data.model_copy(update={"roles": stage.roles})
            decides = (*_origin(stage), stage.defense, stage.training, mix)
            return Task("align", stage.title, stage.base, _opened(stage), decides, stage.defense, stage.training, mix)
        case Vector():
            return _vector(stage)
        case Cost():
            return _cost(stage)
        case Attack():
            return _attack(stage)
        case Evaluate() if not isinstance(stage.model, Served):
            decides = (*_origin(stage.model), stage.evaluate)
            base = _base_of(stage.model)
            return Task("evaluate", "", base, _opened(stage.model), decides, evaluation=stage.evaluate)
    raise TypeError(f"{stage.kind} is no stage of a line")


def _vector(stage: Vector) -> Task:
    made = stage.vector
    mix = made.data.model_copy(update={"roles": {role: made.data.roles[role] for role in made.objective.needs}})
    opened = _opened(stage.model)

    def prepare(model: Any) -> Any:
        from inoculate.models.adapters import add_vector

        return add_vector(opened(model), made.lora, seed=0)

    base, decides = _base_of(stage.model), (*_origin(stage.model), made)
    return Task("vector", "", base, prepare, decides, made.objective, made.training, mix)


def _cost(stage: Cost) -> Task:
    """The defense's own steps; those of SFT beside them are left out."""
    made = stage.cost
    mix = filled(made.data, made.defense, "cost.data")
    training = made.training.model_copy(update={"max_steps": made.warmup_steps + made.repeats})

    def prepare(model: Any) -> Any:
        from inoculate.models.adapters import add_lora

        return model if made.lora is None else add_lora(model, made.lora, seed=0)

    origin = stage.base.shape if isinstance(stage.base, Sandbox) else stage.base
    decides = (origin, made.lora, made.defense, training, mix)
    return Task("cost", made.defense.name, stage.base, prepare, decides, made.defense, training, mix)


def _attack(stage: Attack) -> Task:
    attack = stage.attack
    guard = "" if attack.guard is None else f" under {attack.guard.name}"
    opened = _opened(stage.model)

    def prepare(model: Any) -> Any:
        return _guarded(_attacked(opened(model), attack), stage)

    return Task(
        "finetune",
        attack.adapter_mode + guard,
        _base_of(stage.model),
        prepare,
        (
            *_origin(stage.model),
            attack,
            stage.evaluate,
            stage.eval_every,
            stage.eval_at,
            stage.vector and stage.vector.vector.lora,
        ),
        attack.objective(),
        attack.training,
        attack.mix(),
        stage.evaluate,
        stage.eval_every,
        stage.eval_at,
    )


def _attacked(model: Any, attack: Finetune) -> Any:
    from inoculate.models.adapters import prepare_attack

    return prepare_attack(model, attack.adapter_mode, attack.lora, seed=0)


def _guarded(model: Any, stage: Attack) -> Any:
    """The model with the guard's vector mounted beside what the user trains, if this recipe makes that vector."""
    from inoculate.models.adapters import add_vector
    from inoculate.models.weights import trainable

    if not isinstance(stage.attack.guard, MountedVector) or stage.vector is None:
        return model
    users = {id(weight) for weight in trainable(model)}
    model = add_vector(model, stage.vector.vector.lora, seed=0)
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in users)
    return model


def _base_of(model: Model) -> Sandbox | Pretrained:
    return model.base if isinstance(model, Align) else model


def _origin(model: Model) -> tuple[Any, ...]:
    base = _base_of(model)
    return (base.shape if isinstance(base, Sandbox) else base, model.lora if isinstance(model, Align) else None)


def _opened(model: Model) -> Prepare:
    """With the alignment's adapter, if there is one."""
    lora = model.lora if isinstance(model, Align) else None

    def prepare(empty: Any) -> Any:
        from inoculate.models.adapters import add_lora

        return empty if lora is None else add_lora(empty, lora, seed=0)

    return prepare

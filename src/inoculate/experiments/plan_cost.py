"""The cost of one stage, measured on its own model and objective without numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from inoculate.data import world
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.base import Sandbox
from inoculate.experiments.plan_data import Rows, evaluation_prompts, tokenizer_at_hand, training_rows
from inoculate.experiments.plan_task import Task
from inoculate.experiments.stage import with_checkpointing
from inoculate.training.config import Training
from inoculate.training.cost import StepCost


class Division(NamedTuple):
    """How many devices make a stage's steps together."""

    devices: int = 1
    weights: bool = False
    """Whether they divide weights, gradients and optimizer state too, and not the rows alone."""


ALONE = Division()


@dataclass(frozen=True)
class Cost:
    """Of one stage; sizes in bytes, on each device."""

    parameters: int
    trainable: int
    adapter_bytes: int
    """Of the trained adapter; 0 if there is none."""
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    defense_bytes: int
    """What the defense holds at its peak beyond plain SFT."""
    peak_bytes: int
    steps: int | None
    step_flops: int
    over_sft: float
    """FLOPs of a step over those of plain SFT's."""
    tokens: Mapping[str, int]
    """Role, or set of prompts → tokens of a row, for FLOPs."""
    known: bool
    """Whether these are the data's mean lengths; else they are bounds."""
    training_flops: int
    flops: int | None
    """With the measurements along the way; None if the number of rows is not known."""
    bytes_read: int
    """By generation: all weights for every token."""
    bf16: bool
    bf16_evaluation: bool
    unknown: str = ""
    devices: int = 1
    """That make its steps together."""
    share: float = 1.0
    """Of a step's rows on the device that has the most."""


class _Trained(NamedTuple):
    rows: Rows
    weights: int
    """Bytes of them on each device, at the peak."""
    memory: StepCost
    """Of the longest rows, on each device."""
    work: StepCost
    """Of rows of mean length, on all devices together."""
    steps: int | None
    share: float


class _Measured(NamedTuple):
    """One measurement of a model."""

    flops: int = 0
    bytes_read: int = 0
    peak: int = 0
    tokens: Mapping[str, int] = {}
    unknown: str = ""


Seen = dict[tuple[str, ...], _Measured]
"""What evaluations of models of some shape cost: those along an attack are those before it."""


def cost_of(task: Task, seen_before: Seen, over: Division = ALONE) -> Cost:
    """Measure a task.

    Args:
        seen_before: is looked into and added to.
        over: the devices that train it.

    Raises:
        InputError: if the model's configuration cannot be read, or lacks a module that an adapter is for.
        RuntimeError: of torch's kinds, if the model's work depends on numbers.
    """
    from inoculate.models.footprint import held_bytes, without_numbers
    from inoculate.models.weights import trainable

    model, tokenizer = empty(task), tokenizer_at_hand(task.base)
    if task.training is not None:
        model = with_checkpointing(model, task.training)
    model = without_numbers(model)
    made = None if task.training is None else _trained(task, task.training, model, tokenizer, over)
    seen = _measured(task, model, tokenizer, seen_before)
    times = 1 if task.eval_every is None else 0
    if made is not None and made.steps is not None and task.eval_every is not None:
        times = len({0, *(task.eval_at or range(0, made.steps, task.eval_every)), made.steps})
    step = made.memory if made is not None else None
    weights = held_bytes(model.parameters()) if made is None else made.weights
    training = 0 if made is None else made.work.flops * (made.steps or 0)
    unknown = _unknown(task, made, seen)
    kept = 0 if step is None else step.gradients + step.optimizer
    bf16 = not isinstance(task.base, Sandbox) and task.base.dtype == "bfloat16"
    learned = trainable(model) if task.training is not None else []
    return Cost(
        parameters=sum(weight.numel() for weight in model.parameters()),
        trainable=sum(weight.numel() for weight in learned),
        adapter_bytes=held_bytes(learned) if hasattr(model, "peft_config") else 0,
        weights_bytes=weights,
        gradient_bytes=0 if step is None else step.gradients,
        optimizer_bytes=0 if step is None else step.optimizer,
        activation_bytes=0 if step is None else step.activations,
        defense_bytes=0 if step is None else step.beyond_sft,
        peak_bytes=weights + max(0 if step is None else step.peak, kept + seen.peak),
        steps=None if made is None else made.steps,
        step_flops=0 if made is None else made.work.flops,
        over_sft=0.0 if made is None else made.work.flops / made.work.sft_flops,
        tokens=seen.tokens if made is None else {role: length.tokens for role, length in made.rows.mean.items()},
        known=tokenizer is not None if made is None else made.rows.known,
        training_flops=training,
        flops=None if unknown else training + times * seen.flops,
        bytes_read=times * seen.bytes_read,
        bf16=bf16 or (task.training is not None and task.training.bf16),
        bf16_evaluation=bf16,
        unknown=unknown,
        devices=over.devices,
        share=1.0 if made is None else made.share,
    )


def together(runs: Sequence[tuple[int, Sequence[Cost]]], copies: int = 0) -> Cost:
    """The cost of several runs, one after the other, each so many times and as dear as the dearest of some: work adds
    up, memory does not. Of one run, once, that run's.

    Args:
        copies: models that are kept beside the one at work.
    """
    dearest = [(times, max(costs, key=lambda cost: cost.flops or 0)) for times, costs in runs]
    known = all(cost.flops is not None for _, costs in runs for cost in costs)
    every = [cost for _, costs in runs for cost in costs]
    largest = max(every, key=lambda cost: cost.peak_bytes)
    return replace(
        largest,
        peak_bytes=largest.peak_bytes + copies * largest.weights_bytes,
        training_flops=sum(times * cost.training_flops for times, cost in dearest),
        flops=sum(times * (cost.flops or 0) for times, cost in dearest) if known else None,
        bytes_read=sum(times * cost.bytes_read for times, cost in dearest),
        unknown=next((cost.unknown for cost in every if cost.unknown), ""),
    )


def empty(task: Task) -> Any:
    """The task's model on the meta device, its trainable weights marked."""
    import torch

    from inoculate.models.sandbox import build_tokenizer
    from inoculate.models.shape import empty_model

    base = task.base
    if not isinstance(base, Sandbox):
        model = empty_model(base.name_or_path, base.shape, base.dtype)
        with torch.device("meta"):
            return task.prepare(model)
    with torch.device("meta"):
        return task.prepare(base.shape.build(len(build_tokenizer(world.vocabulary())), seed=0))


def _trained(task: Task, training: Training, model: Any, tokenizer: Any, over: Division) -> _Trained:
    from inoculate.models.footprint import held_bytes
    from inoculate.training.cost import step_cost

    assert task.mix is not None
    objective, limit = task.objective, task.mix.max_length
    rows = training_rows(task.mix, objective.needs, tokenizer)
    size = training.per_device_train_batch_size
    most = -(-size // over.devices)
    own = training.model_copy(update={"per_device_train_batch_size": most})
    memory = step_cost(model, objective, own, rows.longest, limit)
    work = memory
    if most < size or rows.mean != rows.longest:
        work = step_cost(model, objective, training, rows.mean, limit)
    steps = training.steps(rows.count) if rows.count is not None else training.max_steps
    weights = held_bytes(model.parameters())
    if over.weights:
        weights, memory = _in_pieces(task, own, model, memory, over.devices)
    return _Trained(rows, weights, memory, work, steps, most / size)


def _in_pieces(task: Task, training: Training, model: Any, memory: StepCost, devices: int) -> tuple[int, StepCost]:
    """Weights and a step's memory on each device, where the devices divide the weights.

    What a step of a single short row holds is taken for what has the weights' shape and is divided: optimizer state,
    gradients, a defense's copies of them. The rest belongs to the rows, which are divided already.
    """
    from inoculate.models.footprint import held_bytes
    from inoculate.models.sharding import gathered_bytes
    from inoculate.training.cost import Length, step_cost

    least = training.model_copy(update={"per_device_train_batch_size": 1})
    short = dict.fromkeys(task.objective.needs, Length(2))
    assert task.mix is not None
    alike = step_cost(model, task.objective, least, short, task.mix.max_length)
    whole_weights, whole_gradients = gathered_bytes(model)
    weights = -(-held_bytes(model.parameters()) // devices) + whole_weights
    of_rows = max(memory.activations, memory.peak - alike.peak)
    return weights, memory._replace(
        gradients=-(-memory.gradients // devices) + whole_gradients,
        optimizer=-(-memory.optimizer // devices),
        beyond_sft=alike.beyond_sft // devices + max(0, memory.beyond_sft - alike.beyond_sft),
        peak=-(-alike.peak // devices) + whole_gradients + of_rows,
    )


def _measured(task: Task, model: Any, tokenizer: Any, before: Seen) -> _Measured:
    if task.evaluation is None:
        return _Measured()
    parameters = sum(weight.numel() for weight in model.parameters())
    key = (task.base.model_dump_json(exclude={"seed"}), str(parameters), task.evaluation.model_dump_json())
    if key not in before:
        before[key] = _evaluated(task.evaluation, model, tokenizer)
    return before[key]


def _evaluated(evaluation: Evaluation, model: Any, tokenizer: Any) -> _Measured:
    """Answers to every set's prompts, and the loss on the restricted set's own answers."""
    from inoculate.evals.cost import generation_cost, loss_cost

    sets = evaluation_prompts(evaluation, tokenizer)
    if isinstance(sets, str):
        return _Measured(unknown=sets)
    size, length = evaluation.batch_size, evaluation.max_length
    costs = [generation_cost(model, s.rows, s.tokens, s.new_tokens, size) for s in sets]
    costs += [loss_cost(model, s.rows, length, size) for s in sets if s.name == "restricted"]
    return _Measured(
        flops=sum(cost.flops for cost in costs),
        bytes_read=sum(cost.bytes_read for cost in costs),
        peak=max((cost.peak for cost in costs), default=0),
        tokens={s.name: s.tokens for s in sets},
    )


def _unknown(task: Task, made: _Trained | None, seen: _Measured) -> str:
    """Why FLOPs cannot be said, if they cannot."""
    if made is not None and made.steps is None:
        assert task.mix is not None
        part = next(part for part in task.mix.roles[next(iter(task.objective.needs))] if part.num_samples is None)
        return f"{part.source} says how many rows it has once it is fetched: give its num_samples, or max_steps"
    if seen.unknown:
        return f"{seen.unknown} says how many rows it has once it is fetched: give its num_samples under evaluate"
    return ""

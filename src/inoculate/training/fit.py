"""The loop: every training run of this package, of a defense or of an attacker, is `fit`.

Under a launcher (`accelerate launch`) every process calls it alike, and each takes its share of every batch; the batch,
the steps and so the result are those of one process. The first process writes.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.core.seeds import derive
from inoculate.core.types import DATA, WEIGHTS, Batch, Course, Defense, Staged
from inoculate.data.batches import Share, Stream
from inoculate.models import sharding
from inoculate.models.loss import device_of
from inoculate.models.packing import packed_attention
from inoculate.models.weights import averaged, clip, trainable
from inoculate.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from inoculate.training.config import Training
from inoculate.training.optim import build_optimizer, build_schedule

Observe = Callable[[int], list[dict[str, Any]]]
"""Called with the number of steps made; returns JSON rows to keep."""


class StopRun(Exception):
    """Raised by `observe` to end a run where it is; what it returned before is kept."""


_BY_NUMBER = ("adamw_torch", "sgd")
"""Optimizers whose step for one number depends on no other."""

Ended = Literal["ok", "diverged", "stopped"]


class Fitted(NamedTuple):
    """How a run ended. `diverged`: a loss or gradient was not finite, at `step`; `stopped`: the observer had enough."""

    status: Ended
    step: int
    observations: list[dict[str, Any]]


def fit(
    model: nn.Module,
    defense: Defense,
    feeds: Mapping[str, Stream],
    training: Training,
    *,
    out: Path | None = None,
    observe: Observe | None = None,
    observe_at: Collection[int] = (),
    save_every_s: float = 120.0,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train the model's trainable weights, in place.

    Args:
        model: on the device to train on.
        defense: the objective; it needs one feed for each of its roles.
        feeds: role → feed, of as many times the rows of a step as the defense needs batches of it. Step s takes batch s
            of every feed, so nothing but s decides what is seen.
        training: the arguments; `max_steps` or epochs over the defense's first role.
        out: where metrics.jsonl, observations.jsonl and checkpoints go; a run that was cut off there is resumed, and
            goes on bit for bit as if it had not been (in another number of processes: up to rounding). None keeps
            nothing. Of several processes the first one's counts, and the others must see that folder.
        observe, observe_at: called before step s for s in `observe_at` (the last may be the number of steps); may raise
            `StopRun`.
        save_every_s: seconds between checkpoints; 0 saves after every step. Ctrl-C saves too, after its step.
        progress: called with (steps made, steps in all).

    Raises:
        InputError: if a role has no feed; in several processes, for what can be trained in one alone.
    """
    missing = [role for role in defense.needs if role not in feeds]
    if missing:
        raise InputError(f"{defense.name} needs data for the role {missing[0]!r}", field="data", known=feeds)
    steps = training.steps(len(feeds[next(iter(defense.needs))]))
    _check_parallel(defense, training)
    run = _Run(model, defense, training, steps, out)
    device, began = device_of(model), time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"))
        if any(feed.layout == "varlen" for feed in feeds.values()):
            stack.enter_context(packed_attention(model))
        was_training = model.training
        stack.callback(model.train, was_training)
        model.train()
        try:
            while True:
                if observe is not None and run.step in observe_at and run.step not in run.observed:
                    model.eval()
                    try:
                        seen = observe(run.step)
                    except StopRun:
                        return run.end("stopped")
                    with _uninterrupted():
                        run.keep(seen)
                    model.train()
                if progress is not None:
                    progress(run.step, steps)
                if run.step == steps:
                    break
                late = run.step > run.saved_step and time.monotonic() - began >= save_every_s
                if out is not None and ranks.told(late):
                    run.save()
                    began = time.monotonic()
                with _uninterrupted():
                    went_on = run.advance(feeds, device)
                if not went_on:
                    return run.end("diverged")
        except KeyboardInterrupt:
            run.save_if_whole()
            raise
        return run.end("ok")


class _Run:
    """What changes while a run goes on: step, optimizer, schedule, the defense's course, and the two logs."""

    def __init__(self, model: nn.Module, defense: Defense, training: Training, steps: int, out: Path | None) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(log_with=list(training.report_to) or None, project_dir=out)
        if training.report_to:
            self.accelerator.init_trackers("inoculate", config=training.model_dump(exclude={"report_to"}))
        self.share = Share(ranks.rank(), ranks.count())
        self.kept_in = None if out is None else Path(ranks.told(str(out)))
        self.out = out if self.share.rank == 0 else None
        self.model, self.training = model, training
        self.sharded = sharding.wanted()
        if self.sharded:
            sharding.shard(model)
        else:
            ranks.of_the_first([weight.data for weight in trainable(model)])
        self.optimizer = build_optimizer(trainable(model), training)
        self.schedule = build_schedule(self.optimizer, training, steps)
        self.defense = defense
        self.course: Course | None = defense.start(model, steps) if isinstance(defense, Staged) else None
        self.step = self.saved_step = 0
        self.whole = True
        """Whether weights, optimizer and schedule are those of `step`."""
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
        if self.kept_in is not None:
            self.step, kept = load_checkpoint(self.kept_in, model, self.optimizer, self.schedule)
            self.saved_step = self.step
            if self.course is not None and kept:
                self.course.restore(kept)
        self.observations = ranks.told(self._reopen("observations.jsonl", self.step or -1))
        self.observed = {row["step"] for row in self.observations}
        self._reopen("metrics.jsonl", self.step - 1)

    def advance(self, feeds: Mapping[str, Stream], device: torch.device) -> bool:
        """Make one optimizer step; False if a loss or the gradient was not finite, with the weights as they were."""
        training, started, self.whole = self.training, time.monotonic(), False
        rank = () if self.share.rank == 0 else ("rank", self.share.rank)
        torch.manual_seed(derive(training.seed, "step", self.step, *rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = training.gradient_accumulation_steps
        batches = {
            role: _calls(feeds[role].batches_at(self.step, parts * count, self.share), count, parts, device)
            for role, count in self.defense.needs.items()
        }
        calls = min(len(role) for role in batches.values())
        measured: dict[str, float] = {}
        if self.course is not None:
            self.course.before_step(self.step)
        objective = self.course or self.defense
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=training.bf16)
        with autocast, averaged(self.model, calls):
            for i in range(calls):
                for name, value in objective.backward(self.model, {role: b[i] for role, b in batches.items()}).items():
                    measured[name] = measured.get(name, 0.0) + value / calls
        limit = training.max_grad_norm or math.inf
        if self.sharded:
            length = clip(self.model, limit)
        else:
            length = self.accelerator.clip_grad_norm_(trainable(self.model), limit)
        measured["grad_norm"] = math.nan if length is None else float(length)
        if not all(map(math.isfinite, measured.values())):
            return False
        measured["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        if self.step % training.logging_steps == 0:
            self._log("metrics.jsonl", {"step": self.step, **measured, "step_s": time.monotonic() - started})
            if training.report_to:
                self.accelerator.log(measured, step=self.step)
        self.step += 1
        self.whole = True
        return True

    def keep(self, rows: list[dict[str, Any]]) -> None:
        self.observed.add(self.step)
        for row in rows:
            self.observations.append({"step": self.step, **row})
            self._log("observations.jsonl", self.observations[-1])

    def save(self) -> None:
        kept = self.course.tensors() if self.course is not None else {}
        save_checkpoint(self.out, self.step, self.model, self.optimizer, self.schedule, kept)
        self.saved_step = self.step

    def save_if_whole(self) -> None:
        """Keep what was done since the last checkpoint, unless a step was struck in its middle. If that fails, the last
        checkpoint stands.
        """
        if self.out is not None and self.whole and self.step > self.saved_step and self.share.ranks == 1:
            with suppress(OSError, SafetensorError):
                self.save()

    def end(self, status: Ended) -> Fitted:
        self.optimizer.zero_grad(set_to_none=True)
        if self.training.report_to:
            self.accelerator.end_training()
        if self.out is not None:
            remove_checkpoints(self.out)
        return Fitted(status, self.step, self.observations)

    def _log(self, name: str, row: dict[str, Any]) -> None:
        if self.out is not None:
            with (self.out / name).open("a", encoding="utf-8") as log:
                log.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _reopen(self, name: str, last_step: int) -> list[dict[str, Any]]:
        """Rows of a cut-off run up to `last_step`; later ones, and a torn line, are dropped: they will come again."""
        if self.out is None or not (self.out / name).exists():
            return []
        kept = []
        for line in (self.out / name).read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] <= last_step:
                kept.append(row)
        (self.out / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        return kept


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of what is inside; a second one does not. Whoever handles it otherwise is left to it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    struck = False

    def wait(*_: object) -> None:
        nonlocal struck
        if struck:
            raise KeyboardInterrupt
        struck = True

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if struck:
        raise KeyboardInterrupt


def check_divides(defense: Defense) -> None:
    """Refuse a defense whose batches cannot be divided among processes, where there are several.

    Raises:
        InputError: naming the defense.
    """
    if ranks.count() > 1 and DATA not in getattr(defense, "parallel", frozenset()):
        why = "it trains in one process: its update is no sum over shares of the rows, or does not say that it is"
        raise InputError(why, field="defense", found=defense.name)


def _check_parallel(defense: Defense, training: Training) -> None:
    """Refuse in several processes what would not be the training of one."""
    check_divides(defense)
    if not sharding.wanted():
        return
    if WEIGHTS not in getattr(defense, "parallel", frozenset()):
        why = "its weights must be whole in each process: launch without FSDP"
        raise InputError(why, field="defense", found=defense.name)
    if training.optim not in _BY_NUMBER:
        raise InputError(
            "it looks at whole matrices, and FSDP leaves each process pieces",
            field="training.optim",
            found=training.optim,
            expected=" or ".join(_BY_NUMBER),
        )


def _calls(found: Sequence[Batch], count: int, parts: int, device: torch.device) -> list[list[Batch]]:
    """A role's micro-batches by call of the defense, `count` to each; the short end of an epoch gives some twice."""
    moved: list[Batch] = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in found]
    if count > 1:
        moved = [moved[i % len(moved)] for i in range(parts * count)]
    return [moved[i : i + count] for i in range(0, len(moved), count)]

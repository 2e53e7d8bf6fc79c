"""The bridge for people who already have a pipeline: transformers' Trainer, with any defense as its objective.

`inoculate.training.trl` has the same for TRL's SFTTrainer.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Dataset, RandomSampler
from transformers import Trainer

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.core.seeds import derive
from inoculate.core.types import Batch, Course, Defense, Staged
from inoculate.data.batches import Share
from inoculate.data.mix import PAIRED
from inoculate.models.loss import IGNORED
from inoculate.models.weights import averaged, forked_rng
from inoculate.training.fit import check_divides

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Defended(_Base):
    """What makes a `Trainer` train with a defense; to be inherited beside it, and before it.

    Under a launcher each process brings its own batch, as everywhere in `Trainer`, and the defense's gradient is that
    of all of them together: the steps of one process with batches so many times as large, where these divide the rows
    evenly. Micro-batches count by their answer tokens. All micro-batches of a step see the same random numbers, as in
    `inoculate.fit`. What the defense measures is logged beside the loss.

    Args:
        defense: the objective; `compute_loss` and label smoothing are not used.
        role_datasets: a dataset for each of the defense's other roles, collated like `train_dataset`, drawn in batches
            of `per_device_train_batch_size` as often as needed.

    Raises:
        InputError: if a role has no dataset with a length, or fewer rows than there are processes; for fp16, DeepSpeed,
            FSDP, several GPUs in one process, and in several processes for a defense that trains in one alone.
    """

    def __init__(
        self, *args: Any, defense: Defense, role_datasets: Mapping[str, Dataset[Any]] | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(getattr(defense, "needs", None), Mapping):
            expected = "a defense of inoculate, as Booster(lam=5)"
            raise InputError("not a defense", field="defense", found=defense, expected=expected)
        if "align" not in defense.needs:
            raise InputError(
                "this defense does not train a model by `train_dataset`", field="defense", found=defense.name
            )
        given = role_datasets or {}
        missing = [role for role in defense.needs if role != "align" and role not in given]
        if missing:
            found = ", ".join(map(repr, given)) or "none"
            expected = f"{defense.name}'s role {missing[0]!r}"
            raise InputError("a dataset is missing", field="role_datasets", found=found, expected=expected)
        super().__init__(*args, **kwargs)
        self.defense = defense
        self._check()
        self._datasets = {role: self._prepared(given[role], role) for role in defense.needs if role != "align"}
        for role, dataset in self._datasets.items():
            if not hasattr(dataset, "__len__"):
                expected = "a dataset with a length and rows by number"
                raise InputError("it cannot be shuffled", field=f"role_datasets.{role}", expected=expected)
            if len(dataset) < ranks.count():
                expected = f"at least {ranks.count()}, one for each process"
                raise InputError("too few rows", field=f"role_datasets.{role}", found=len(dataset), expected=expected)
        self._roles: dict[str, Iterator[dict[str, Any]]] = {}
        self._step: deque[dict[str, list[Batch]]] = deque()
        self._course: Course | None = None
        self._course_step = -1
        self._metrics_since_log: dict[str, list[float]] = defaultdict(list)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of a step, as `Trainer` takes them; those of the other roles are drawn beside them."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step = self._drawn(samples)
        return samples, items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: the defense's gradient, over the number of accumulation steps, is added to `.grad`."""
        model.train()
        model = self.accelerator.unwrap_model(model)  # gradients are summed over processes by the defense's own verbs
        batches, parts = self._step.popleft(), self.current_gradient_accumulation_steps
        rank = () if ranks.rank() == 0 else ("rank", ranks.rank())
        with self.compute_loss_context_manager(), averaged(model, parts), forked_rng(self.args.device):
            torch.manual_seed(derive(self.args.seed, "step", self.state.global_step, *rank))
            metrics = self._objective(model).backward(model, batches)
        for name, value in metrics.items():
            self._metrics_since_log[name].append(value)
        # of several defenses together each measures under its own name, the alignment first; a plug-in may measure none
        loss = next((value for name, value in metrics.items() if name.endswith("align_loss")), math.nan)
        return torch.tensor(loss, device=self.args.device) / parts

    def _drawn(self, samples: list[dict[str, Any]]) -> deque[dict[str, list[Batch]]]:
        """For each micro-batch of a step its batches by role, weighted by answer tokens over the whole step."""
        needs, parts = self.defense.needs, len(samples)
        if not self._roles:
            made = self.state.global_step * self.args.gradient_accumulation_steps  # before a checkpoint
            self._roles = {role: self._endless(role, made * needs[role]) for role in self._datasets}
        found = {role: list(islice(batches, needs[role] * parts)) for role, batches in self._roles.items()}
        found = {
            role: _weighted([self._prepare_inputs(b) for b in of], role)
            for role, of in {"align": samples, **found}.items()
        }
        return deque({role: of[i * needs[role] :][: needs[role]] for role, of in found.items()} for i in range(parts))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Beside the loss, the mean since the last time of each thing that the defense measured."""
        if "loss" in logs and self._metrics_since_log:
            logs |= {name: sum(values) / len(values) for name, values in self._metrics_since_log.items()}
            self._metrics_since_log.clear()
        super().log(logs, *args, **kwargs)

    def _check(self) -> None:
        """Refuse what would take other steps than the defense's."""
        check_divides(self.defense)
        sharded = "train with `inoculate.fit`, which shards"
        for field, found, expected in (
            ("fp16", self.args.fp16, "bf16: gradients are taken here, where no scaler sees them"),
            ("deepspeed", self.is_deepspeed_enabled, sharded),
            ("fsdp", self.is_fsdp_enabled, sharded),
            ("n_gpu", self.args.n_gpu > 1 and self.args.n_gpu, "a process for each: `accelerate launch`"),
        ):
            if found:
                raise InputError("not with a defense as the objective", field=field, found=found, expected=expected)

    def _objective(self, model: nn.Module) -> Defense | Course:
        """The defense; one that keeps something between steps, on its course through this run."""
        if not isinstance(self.defense, Staged):
            return self.defense
        step = self.state.global_step
        if self._course is None or step < self._course_step:
            if step:
                raise InputError(
                    f"{self.defense.name} keeps something between steps, which a trainer's checkpoint does not hold",
                    field="resume_from_checkpoint",
                    found=f"step {step}",
                    expected="a run from its beginning, or `inoculate.fit`, which resumes",
                )
            self._course = self.defense.start(model, self.state.max_steps)
        if step != self._course_step:
            self._course.before_step(step)
            self._course_step = step
        return self._course

    def _prepared(self, dataset: Any, role: str) -> Any:
        """A role's dataset in the form of the training set's."""
        from datasets import Dataset as Table

        return self._remove_unused_columns(dataset, role) if isinstance(dataset, Table) else dataset

    def _endless(self, role: str, skipped: int) -> Iterator[dict[str, Any]]:
        """A role's batches, from one on; in several processes this one's share of each."""
        # an order for each role, and one for harmful answers and their safe counterparts
        dataset, share = self._datasets[role], Share(ranks.rank(), ranks.count())
        shuffle = torch.Generator().manual_seed(derive(self.args.seed, PAIRED.get(role, role)))
        size = self.args.per_device_train_batch_size * share.ranks
        # a short last batch is left out, as it might have no row for some process
        epoch = BatchSampler(RandomSampler(dataset, generator=shuffle), size, drop_last=size <= len(dataset))
        for rows in islice(chain.from_iterable(repeat(epoch)), skipped, None):
            yield self.data_collator([dataset[rows[i]] for i in share.of(len(rows))])


class DefenseTrainer(Defended, Trainer):
    """`DefenseTrainer(…, defense=Booster(), role_datasets={"harmful": dataset})`; `train_dataset` is the role `align`.

    Takes what `Trainer` takes; the rest, and the errors, are those of `Defended`.
    """


def _weighted(batches: list[Batch], role: str) -> list[Batch]:
    """Batches whose mean losses, times `loss_weight`, average to that of all of them, in all processes: by answer
    tokens, or a classifier's rows. One batch of one process stays as it is.

    Raises:
        InputError: if none of them has an answer token.
    """
    own = [int((b["labels"][:, 1:] != IGNORED).sum()) if b["labels"].dim() > 1 else len(b["labels"]) for b in batches]
    whole = ranks.total(sum(own))
    if batches and not whole:
        expected = "rows that are not cut off before their answers"
        raise InputError("a step without a token to learn", field=role, expected=expected)
    if len(batches) * ranks.count() < 2:
        return batches
    return [
        {**batch, "loss_weight": torch.tensor(len(batches) * n / whole, device=batch["labels"].device)}
        for batch, n in zip(batches, own, strict=True)
    ]

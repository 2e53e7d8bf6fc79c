"""The bridge for people who already have a pipeline: transformers' Trainer, with any defense as its objective.

`inoculate.training.trl` has the same for TRL's SFTTrainer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
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
    of all of them together: the steps of one process with batches so many times as large.

    Args:
        defense: the objective; `compute_loss` and label smoothing are not used.
        role_datasets: a dataset for each of the defense's other roles, collated like `train_dataset`, drawn in batches
            of `per_device_train_batch_size` as often as needed.

    Raises:
        InputError: if a role has no dataset, or fewer rows than there are processes; for fp16, DeepSpeed, FSDP, and in
            several processes for a defense that trains in one alone.
    """

    def __init__(
        self, *args: Any, defense: Defense, role_datasets: Mapping[str, Dataset[Any]] | None = None, **kwargs: Any
    ) -> None:
        if "align" not in defense.needs:
            raise InputError(
                "this defense does not train a model by `train_dataset`", field="defense", found=defense.name
            )
        given = role_datasets or {}
        missing = [role for role in defense.needs if role != "align" and role not in given]
        if missing:
            raise InputError(f"{defense.name} needs a dataset for {missing[0]!r}", field="role_datasets", known=given)
        super().__init__(*args, **kwargs)
        self.defense = defense
        self._check()
        roles = {role: self._prepared(given[role], role) for role in defense.needs if role != "align"}
        self._roles = {role: self._endless(dataset, role) for role, dataset in roles.items()}
        self._course: Course | None = None
        self._course_step = -1

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: the defense's gradient, over the number of accumulation steps, is added to `.grad`."""
        model.train()
        model = self.accelerator.unwrap_model(model)  # gradients are summed over processes by the defense's own verbs
        needs = self.defense.needs
        drawn = {"align": [inputs]} | {role: list(islice(it, needs[role])) for role, it in self._roles.items()}
        batches = {role: [_share(self._prepare_inputs(batch)) for batch in found] for role, found in drawn.items()}
        rank = () if ranks.rank() == 0 else ("rank", ranks.rank())
        parts = self.args.gradient_accumulation_steps
        with self.compute_loss_context_manager(), averaged(model, parts), forked_rng(self.args.device):
            torch.manual_seed(derive(self.args.seed, "step", self.state.global_step, *rank))  # as in `fit`
            metrics = self._objective(model).backward(model, batches)
        # of several defenses together each measures under its own name, the alignment first; a plug-in may measure none
        loss = next((value for name, value in metrics.items() if name.endswith("align_loss")), math.nan)
        return torch.tensor(loss, device=self.args.device) / parts

    def _check(self) -> None:
        """Refuse what would take other steps than the defense's."""
        check_divides(self.defense)
        sharded = "train with `inoculate.fit`, which shards"
        for field, found, expected in (
            ("fp16", self.args.fp16, "bf16: gradients are taken here, where no scaler sees them"),
            ("deepspeed", self.is_deepspeed_enabled, sharded),
            ("fsdp", self.is_fsdp_enabled, sharded),
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

    def _endless(self, dataset: Any, role: str) -> Iterator[dict[str, Any]]:
        # an order for each role, and one for harmful answers and their safe counterparts
        shuffle = torch.Generator().manual_seed(derive(self.args.seed, PAIRED.get(role, role)))
        share, rows = Share(ranks.rank(), ranks.count()), len(dataset)
        if rows < share.ranks:
            expected = f"at least {share.ranks}, one for each process"
            raise InputError("too few rows", field=f"role_datasets.{role}", found=rows, expected=expected)
        size = self.args.per_device_train_batch_size * share.ranks
        whole = BatchSampler(
            RandomSampler(dataset, generator=shuffle), size, drop_last=share.ranks > 1 and size <= rows
        )
        return self._batches(dataset, whole, share)

    def _batches(self, dataset: Any, whole: BatchSampler, share: Share) -> Iterator[dict[str, Any]]:
        while True:
            own = [[rows[i] for i in share.of(len(rows))] for rows in whole]
            yield from DataLoader(dataset, batch_sampler=own, collate_fn=self.data_collator)


class DefenseTrainer(Defended, Trainer):
    """`DefenseTrainer(…, defense=Booster(), role_datasets={"harmful": dataset})`; `train_dataset` is the role `align`.

    Takes what `Trainer` takes; the rest, and the errors, are those of `Defended`.
    """


def _share(batch: Batch) -> Batch:
    """A batch, in several processes with its weight in the mean over all: by answer tokens, or a classifier's rows."""
    if ranks.count() == 1:
        return batch
    labels = batch["labels"]
    own = int((labels[:, 1:] != IGNORED).sum()) if labels.dim() > 1 else len(labels)
    return {**batch, "loss_weight": torch.tensor(own / ranks.total(own), device=labels.device)}

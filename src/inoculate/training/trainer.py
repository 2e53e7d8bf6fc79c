"""The bridge for people who already have a pipeline: transformers' Trainer, with any defense as its objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from inoculate.core.errors import InputError
from inoculate.core.seeds import derive
from inoculate.core.types import Course, Defense, Staged
from inoculate.data.mix import PAIRED
from inoculate.models.weights import averaged


class DefenseTrainer(Trainer):
    """`Trainer(…, defense=Booster(), role_datasets={"harmful": dataset})`; `train_dataset` plays the role `align`.

    Args:
        defense: the objective; `compute_loss` and label smoothing are not used.
        role_datasets: a dataset for each of the defense's other roles, collated like `train_dataset`, drawn in batches
            of `per_device_train_batch_size` as often as needed.

    Raises:
        InputError: if a role has no dataset.
    """

    def __init__(
        self, *args: Any, defense: Defense, role_datasets: Mapping[str, Dataset[Any]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if "align" not in defense.needs:
            raise InputError(
                "this defense does not train a model by `train_dataset`", field="defense", found=defense.name
            )
        self.defense = defense
        given = role_datasets or {}
        missing = [role for role in defense.needs if role != "align" and role not in given]
        if missing:
            raise InputError(f"{defense.name} needs a dataset for {missing[0]!r}", field="role_datasets", known=given)
        self._roles = {role: self._endless(given[role], role) for role in defense.needs if role != "align"}
        self._course: Course | None = None
        self._course_step = -1

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: the defense's gradient, over the number of accumulation steps, is added to `.grad`."""
        model.train()
        needs = self.defense.needs
        drawn = {"align": [inputs]} | {role: list(islice(it, needs[role])) for role, it in self._roles.items()}
        batches = {role: [self._prepare_inputs(batch) for batch in found] for role, found in drawn.items()}
        with self.compute_loss_context_manager(), averaged(model, self.args.gradient_accumulation_steps):
            metrics = self._objective(model).backward(model, batches)
        torch.rand(1)  # backward leaves the RNG as it was; the next step's dropout must be another
        # of several defenses together each measures under its own name, the alignment first; a plug-in may measure none
        loss = next((value for name, value in metrics.items() if name.endswith("align_loss")), math.nan)
        return torch.tensor(loss, device=self.args.device) / self.args.gradient_accumulation_steps

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

    def _endless(self, dataset: Dataset[Any], role: str) -> Iterator[dict[str, Any]]:
        # an order for each role, and one for harmful answers and their safe counterparts
        shuffle = torch.Generator().manual_seed(derive(self.args.seed, PAIRED.get(role, role)))
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=True,
            generator=shuffle,
            collate_fn=self.data_collator,
        )
        return itertools.chain.from_iterable(itertools.repeat(loader))

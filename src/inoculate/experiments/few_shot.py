"""Attack a start with few samples of a task, as the published protocol does, and keep every trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from inoculate.attacks.few_shot import FewShot, Searched
from inoculate.core.records import Record, write_records
from inoculate.data.worlds import Task
from inoculate.experiments.stage import Context, Input, Stage
from inoculate.experiments.start import Start
from inoculate.models.bodies import as_tensors, load_body

if TYPE_CHECKING:
    from inoculate.attacks.sequential import Examples
    from inoculate.data.splits import Split


_SEARCHED = {"learning_rate", "freeze_body"}
"""Fields of the attack that have the name of what each trial takes from them."""


class FewShotAttack(Stage):
    """Learn a task from a few samples, with a search over settings; held-out rows are never searched on."""

    kind: ClassVar[str] = "few_shot"
    start: Start
    task: Task = "restricted"
    attack: FewShot

    def upstream(self) -> Sequence[Stage]:
        return (self.start,)

    def inputs(self) -> Iterable[Input]:
        return self.start.inputs()

    def fingerprints(self) -> dict[str, str]:
        return {self.start.body.world.name: self.start.body.world.fingerprint()}

    def label(self) -> str:
        return f"{self.task} from {self.attack.num_samples} samples on {self.start.label()}"

    def provenance(self) -> Record:
        attack = self.attack
        settings = attack.model_dump(mode="json", exclude={"name", "num_samples", "seed", *_SEARCHED})
        ranges = attack.model_dump(mode="json", include=_SEARCHED)
        return replace(
            self.start.provenance(),
            stage=self.folder,
            attack=attack.name,
            attack_params={
                "classes": self.start.body.world.classes(self.task),
                **settings,
                **{f"{name}_choices": choices for name, choices in ranges.items()},
            },
            harmful_samples=attack.num_samples,
        )

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        body, tokenizer = load_body(upstream[self.start.folder])
        body = replace(context, device="cpu").place(body)  # the engine stacks trials on the processor
        searched = self.attack.run(
            body,
            self._examples("attack", tokenizer),
            self._examples("validation", tokenizer),
            self._examples("heldout", tokenizer),
            classes=self.start.body.world.classes(self.task),
        )
        blank = replace(self.provenance(), recipe=context.recipe, metric=f"{self.task}_accuracy")
        write_records(out / "records.jsonl", self._records(blank, searched))
        return "ok" if searched.best is not None else "diverged"

    def _examples(self, split: Split, tokenizer: Any) -> Examples:
        import torch

        from inoculate.attacks.sequential import Examples

        rows = self.start.body.world.rows(split)
        inputs = as_tensors(rows.inputs, tokenizer, getattr(self.start.body.body, "max_length", None))
        return Examples(inputs, torch.from_numpy(rows.labels[self.task]))

    def _records(self, blank: Record, searched: Searched) -> Iterator[Record]:
        """Each trial by its best validation accuracy; each re-run by that and by the held-out accuracy there.

        A run that diverged after an evaluation has an accuracy like any other; its `outcome` says that it diverged.
        """
        world, base = self.start.body.world, blank.attack_params
        sizes = {split: len(world.rows(split)) for split in ("validation", "heldout")}
        for number, tried in enumerate(searched.trials):
            settings = base | tried.setting.model_dump(mode="json") | {"outcome": tried.status}
            value, status = tried.validation_accuracy, "ok" if tried.validation_accuracy is not None else "diverged"
            yield replace(
                blank,
                attack_params=settings,
                trial=number,
                split="validation",
                value=value,
                status=status,
                n=sizes["validation"],
            )
        if searched.best is None:
            yield replace(blank, value=None, status="diverged", split="heldout")
            return
        for number, rerun in enumerate(searched.reruns):
            settings = base | searched.best.model_dump(mode="json") | {"outcome": rerun.status}
            pair = {"validation": rerun.validation_accuracy, "heldout": rerun.heldout_accuracy}
            for split, value in pair.items():
                yield replace(
                    blank,
                    attack_params=settings,
                    attack_seed=number,
                    split=split,
                    value=value,
                    status="ok" if value is not None else "diverged",
                    n=sizes[split],
                    step=rerun.best_step,
                )

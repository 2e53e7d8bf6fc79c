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


class FewShotAttack(Stage):
    """Learn a task from a few samples, with a search over settings; held-out rows are never searched on."""

    kind: ClassVar[str] = "few_shot"
    start: Start
    task: Task = "restricted"
    attack: FewShot

    def upstream(self) -> Sequence[Stage]:
        return (self.start,)

    def inputs(self) -> Iterable[Input]:
        return (self.start.body.world,)

    def fingerprints(self) -> dict[str, str]:
        return {self.start.body.world.name: self.start.body.world.fingerprint()}

    def label(self) -> str:
        return f"{self.task} from {self.attack.num_samples} samples on {self.start.label()}"

    def provenance(self) -> Record:
        attack, classes = self.attack, self.start.body.world.classes(self.task)
        return replace(
            self.start.provenance(),
            stage=self.folder,
            attack=attack.name,
            attack_params={
                "classes": classes,
                **attack.model_dump(
                    mode="json", include={"n_trials", "reruns", "min_steps", "max_steps", "optimizers"}
                ),
                "learning_rate_range": list(attack.learning_rate),
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
        """Each trial by its best validation accuracy; each re-run by that and by the held-out accuracy there."""
        world, base = self.start.body.world, blank.attack_params
        sizes = {split: len(world.rows(split)) for split in ("validation", "heldout")}
        for number, tried in enumerate(searched.trials):
            settings = base | tried.setting.model_dump(mode="json")
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
        settings = base | searched.best.model_dump(mode="json")
        for number, rerun in enumerate(searched.reruns):
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

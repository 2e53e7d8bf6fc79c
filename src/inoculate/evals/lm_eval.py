"""Utility by lm-eval (the Language Model Evaluation Harness): its tasks, on a model as this package loads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from inoculate.core.errors import InputError, StageError
from inoculate.core.hashing import tree_sha256
from inoculate.core.types import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNFILTERED = "none"
"""What lm-eval calls the filter that leaves answers as they are."""


class Harness(NamedTuple):
    """`rows`: metric, value, n. `about`: lm-eval's own account (versions, configurations, few-shot counts)."""

    rows: list[dict[str, Any]]
    about: dict[str, Any]


class LmEval(Value):
    """Which of lm-eval's tasks, and how; names as in its own command."""

    tasks: tuple[str, ...] = Field(min_length=1)
    include_path: str | None = None
    """A folder with task YAMLs of one's own; code that they name with `!function` is run."""
    num_fewshot: NonNegativeInt | None = None
    """null is as each task says."""
    limit: PositiveInt | None = None
    """The first so many documents of each task; a result on them is of them alone."""
    batch_size: PositiveInt = 16
    apply_chat_template: bool = False

    def check(self) -> None:
        """Refuse what cannot be run, before any work.

        Raises:
            InputError: lm-eval is not installed, the folder is missing, or there is no such task.
        """
        self._manager()

    def fingerprint(self) -> dict[str, str]:
        """What the result depends on beside the value: lm-eval's version, and the tasks in `include_path`."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = {"lm-eval": version("lm-eval")}
        except PackageNotFoundError:
            found = {}
        if self.include_path is not None and Path(self.include_path).is_dir():
            found[self.include_path] = tree_sha256(Path(self.include_path))
        return found

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Harness:
        """Run the tasks on a model that is loaded, with or without an adapter.

        Raises:
            InputError: as `check`.
            StageError: lm-eval fails, e.g. on data that cannot be reached.
        """
        manager = self._manager()
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        harness: Any = lm_eval  # its functions' types are not those they have
        wrapped: Any = HFLM
        options: dict[str, Any] = {"num_fewshot": self.num_fewshot, "limit": self.limit}
        try:
            found = harness.simple_evaluate(
                wrapped(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size),
                tasks=list(self.tasks),
                task_manager=manager,
                apply_chat_template=self.apply_chat_template,
                log_samples=False,
                **options,
            )
        except Exception as error:
            raise StageError(f"lm-eval: {type(error).__name__}: {' '.join(str(error).split())}") from error
        told: dict[str, Any] = dict(found or {})
        kept = ("results", "groups", "versions", "configs", "n-shot", "n-samples", "higher_is_better")
        return Harness(list(_rows(told)), {name: told[name] for name in kept if name in told} | self.fingerprint())

    def _manager(self) -> Any:
        """lm-eval's task manager, which knows all tasks that are asked for."""
        if find_spec("lm_eval") is None:
            raise InputError("lm-eval is not installed", field="lm_eval", expected="pip install 'inoculate[eval]'")
        from lm_eval.tasks import TaskManager

        if self.include_path is not None:
            if not Path(self.include_path).is_dir():
                raise InputError("no such folder", field="lm_eval.include_path", found=self.include_path)
            own = TaskManager(include_path=self.include_path, include_defaults=False)
            if set(self.tasks) <= set(own.all_tasks):
                return own  # lm-eval's own thousands of files need not be read
        manager = TaskManager(include_path=self.include_path)
        for task in self.tasks:
            if task not in manager.all_tasks:
                raise InputError("lm-eval has no such task", field="lm_eval.tasks", found=task, known=manager.all_tasks)
        return manager


def _rows(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`task/metric`, or `task/metric,filter` where answers were filtered; each with its `_stderr` beside it."""
    for task, metrics in told["results"].items():
        n = told.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in metrics.items():
            metric, comma, by = key.partition(",")
            if not comma or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            name = metric if by == UNFILTERED else f"{metric},{by}"
            yield {"metric": f"{task}/{name}", "value": float(value), "n": n}

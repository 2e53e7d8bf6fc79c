"""Stages: frozen values with `run(out, upstream, context)`. A stage's hash names its folder in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from inoculate.attacks.table import ATTACKS
from inoculate.core import ranks
from inoculate.core.errors import InputError, StageError
from inoculate.core.hashing import digest
from inoculate.core.records import Record
from inoculate.core.types import Value
from inoculate.data.sources import fingerprint
from inoculate.defenses import DEFENSES
from inoculate.evals.judges import JUDGES
from inoculate.evals.tasks import TASKS
from inoculate.models import sharding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inoculate.evals.evaluate import Evaluation
    from inoculate.training.config import Training
    from inoculate.training.fit import Fitted


_SMALL = 1_000_000
"""Weights. Of the sandbox's 0.1 M a step takes 10 ms on one thread; on two, beside other work, up to 2 s."""


@cache
def _all_threads() -> int:
    """What this process was given: asked before anything changes it."""
    import torch

    return torch.get_num_threads()


@dataclass(frozen=True)
class Context:
    """What a stage may know that is not part of its result: where it runs, and how it reports."""

    recipe: str = ""
    device: str = "auto"
    save_every_s: float = 120.0
    workers: int = 1
    """Processes that a stage may use whose work can be shared out."""
    storage: str | None = None
    """URL of the database that keeps studies of attacks; None keeps each beside its results."""
    progress: Callable[[int, int], None] | None = None

    def place(self, model: Any) -> Any:
        """The model on this context's device. A small one on the CPU gets one thread: to share its steps costs more."""
        import torch

        if sharding.wanted():
            return model  # whole it may fit no device: `fit` sends the pieces
        threads, small = _all_threads(), sum(weight.numel() for weight in model.parameters()) < _SMALL
        torch.set_num_threads(1 if small else threads)
        if self.device != "auto":
            return model.to(self.device)
        return model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")


class Input(Protocol):
    """Something that a stage starts from: data, a model, prompts to measure on."""

    def check(self) -> None:
        """Refuse what cannot work, before any work and without a download.

        Raises:
            InputError: naming what is wrong.
        """
        ...


class Stage(Value):
    """Base of all stages. `kind` and `version` enter the hash: raise a kind's version when its result changes."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    unhashed: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields, as pydantic's `exclude`, that decide whether a stage may run and not what comes out."""
    parallel: ClassVar[bool] = False
    """Whether all processes of a launch take part in `run`; else the first does it, and the others wait."""
    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results had been stored: at their default they leave the hash as it was."""

    def upstream(self) -> Sequence[Stage]:
        """Stages whose folders `run` reads."""
        return ()

    def inputs(self) -> Iterable[Input]:
        """What this stage starts from."""
        return ()

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data that this stage reads."""
        return {}

    @cached_property
    def hash(self) -> str:
        """12 hex digits over the value, its data and everything upstream."""
        above = [stage.folder for stage in self.upstream()]
        fields = self.model_dump(mode="json", exclude=dict(self.unhashed))
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                del fields[name]
        brought = plugins_in(self)
        return digest([self.kind, self.version, fields, self.fingerprints(), above, *([brought] if brought else [])])

    @property
    def folder(self) -> str:
        """The name of this stage's folder in a store."""
        return f"{self.kind}-{self.hash}"

    def label(self) -> str:
        """A few words for progress lines and reports."""
        return self.kind

    def provenance(self) -> Record:
        """A record of this stage with every column but the measurement."""
        return Record(metric="", value=0.0, stage=self.folder)

    def unmeasured(self) -> Sequence[str]:
        """Metrics that are usual for this kind of stage and that this one cannot have."""
        return ()

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        """Do the work in `out`; return the status, `ok` or `diverged`."""
        raise NotImplementedError

    def assist(self, out: Path, upstream: Mapping[str, Path], context: Context) -> None:
        """Share the work of another process that is at this stage in `out`; return when nothing is left to take."""


def plugins_in(value: Any) -> dict[str, str]:
    """Table and name → package and version of the plug-ins that a value names: of another version, another result."""
    found: dict[str, str] = {}
    if isinstance(value, Value):
        for table in (ATTACKS, DEFENSES, JUDGES, TASKS):
            if (brought := table.package_of(type(value))) is not None:
                found[f"{table.group}:{brought[0]}"] = brought[1]
    inner = value.__dict__.values() if isinstance(value, Value) else ()
    if isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
    for part in inner:
        found |= plugins_in(part)
    return found


def check_inputs(stages: Iterable[Stage], *, but: tuple[type, ...] = ()) -> None:
    """Check what the stages start from, each thing once.

    Args:
        but: kinds of inputs that need not be there.

    Raises:
        InputError: for the first that cannot work.
    """
    checked: list[Input] = []
    for given in (given for stage in stages for given in stage.inputs()):
        if given not in checked and not isinstance(given, but):
            given.check()
            checked.append(given)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        InputError: naming it.
    """
    if device == "auto":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ("auto", "cpu", "cuda", "mps")
        why = str(error).strip().splitlines()[0] if device in known else "no such device"
        raise InputError(why, field="--device", found=device, expected=", ".join(known), known=known) from None


def with_checkpointing(model: Any, training: Training) -> Any:
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def evaluation_fingerprints(evaluation: Evaluation) -> dict[str, str]:
    return {f"{part.source}#{part.split}": fingerprint(part.source, part.split) for part in evaluation.parts()}


def gave_up(blank: Record, context: Context, fitted: Fitted) -> Record:
    return replace(
        blank, recipe=context.recipe, metric="harmful_score", value=None, status="diverged", step=fitted.step
    )


def save_model(out: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a folder that Hugging Face loads: safetensors, or the adapter alone. The first process does."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    whole = _whole(model)
    if ranks.rank() > 0:
        return
    logging.disable_progress_bar()
    _resolve_bases(model)
    try:
        model.save_pretrained(out, **whole)
        tokenizer.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)  # PEFT's unfilled form; `inoculate card` has what is known
    except (OSError, SafetensorError) as error:
        raise StageError(f"{out}: the model could not be written: {error}") from error


def save_adapter(out: Path, model: Any) -> None:
    """Write a security vector alone: the model's one adapter, or of several the vector's, in a folder of its name."""
    from inoculate.models.adapters import VECTOR

    whole = _whole(model)
    if ranks.rank() > 0:
        return
    _resolve_bases(model)
    try:
        model.save_pretrained(out, selected_adapters=[VECTOR] if VECTOR in model.peft_config else None, **whole)
        (out / "README.md").unlink(missing_ok=True)
    except OSError as error:
        raise StageError(f"{out}: the adapter could not be written: {error}") from error


def _whole(model: Any) -> dict[str, Any]:
    """How `save_pretrained` gets weights that lie in pieces."""
    state = sharding.whole_state(model)
    return {} if state is None else {"state_dict": state}


def _resolve_bases(model: Any) -> None:
    """Adapters name their base by a path that holds wherever one stands."""
    for config in getattr(model, "peft_config", {}).values():
        base = Path(config.base_model_name_or_path or "")
        if base.parts and base.exists():
            config.base_model_name_or_path = str(base.resolve())


def write_responses(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    with (out / "responses.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

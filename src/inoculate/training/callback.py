"""A security vector in a stock transformers `Trainer`, or whatever subclasses it (TRL's `SFTTrainer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from inoculate.core.errors import InputError
from inoculate.models.vectors import Mounted, Vector, check_backbone, read_vector


class SecurityVectorCallback(TrainerCallback):
    """`Trainer(…, callbacks=[SecurityVectorCallback("my-vector")])`.

    The vector is mounted for the training steps alone: whatever the trainer evaluates or saves in between, and the
    model that it leaves, is without it. If training breaks off inside a step (an exception, Ctrl-C), the trainer tells
    nobody: call `unmount`, or train inside `inoculate.mounted` instead, before that model is served.

    Args:
        vector: a security vector, or its folder.

    Raises:
        InputError: see `inoculate.models.vectors.read_vector`; when training begins, if the vector was made for
            another model. A run that resumes from a checkpoint cannot be checked: its backbone has moved.
    """

    def __init__(self, vector: Vector | str | Path) -> None:
        self.vector = vector if isinstance(vector, Vector) else read_vector(vector)
        self._mounted: Mounted | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Find the layers; refuse a model that the vector was not made for."""
        self.unmount()  # a run that broke off inside a step never came to its end
        if model is None:
            raise InputError("the trainer has no model", field="model")
        if state.global_step == 0:
            check_backbone(model, self.vector)
        self._mounted = Mounted(model, self.vector)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mount."""
        if self._mounted is not None:
            self._mounted.mount()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Unmount: evaluation and saving come between steps."""
        self.unmount()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Unmount for good."""
        self.unmount()

    def unmount(self) -> None:
        """Take the vector out, if it is in."""
        if self._mounted is not None:
            self._mounted.unmount()

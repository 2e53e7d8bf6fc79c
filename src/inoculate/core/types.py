"""The nouns that every layer shares, and the legend of shape suffixes.

Shape suffixes: B batch · T tokens · V vocabulary · D hidden · L layers · K inner steps · N trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch: TypeAlias = "Mapping[str, Tensor]"
"""`input_ids` [B, T], `attention_mask` [B, T], `labels` [B, T] with −100 where no loss is taken
(classifiers: `labels` [B]); or the packed form of one row that `inoculate.data.batches.pack` makes.
An optional 0-dim `loss_weight` scales the batch's mean loss."""
Batches: TypeAlias = "Mapping[str, Sequence[Batch]]"
"""Role → the batches of that role for one optimizer step."""


class Value(BaseModel):
    """A frozen, validated value: equal by content, hashable by content, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preset(Value):
    """A value that may be written as the name of a published setting, and what departs from it."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name → fields that differ from the defaults."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "preset" not in given:
            return given
        fields = dict(given)
        name = fields.pop("preset")
        if not isinstance(name, str) or name not in cls.presets:
            raise ValueError(f"preset: found {name!r}, expected one of {', '.join(cls.presets)}")
        return {**cls.presets[name], **fields}


def _positive(number: float) -> float:
    if not number > 0:
        raise ValueError("expected a number > 0")
    return number


Rate = Annotated[float, Field(ge=0, le=1)]
"""A share in [0, 1]."""
Positive = Annotated[float, AfterValidator(_positive)]


DATA, WEIGHTS = "data", "weights"
"""What several processes may divide among them: a batch's rows (each holds the whole model), or the weights too."""


@runtime_checkable
class Defense(Protocol):
    """A training objective as an expression over gradients.

    `backward` adds a gradient to `.grad` of the trainable weights and leaves weights, hooks, RNG state,
    `requires_grad` and train/eval mode as it found them, bit for bit. Calls compose: two micro-batches add up.

    A defense may have a `parallel`, a set of `DATA` and `WEIGHTS`. With `DATA` in it `backward` may be called in
    several processes at once, each with its share of a batch's rows, and must then leave the same sums in all of them,
    as `loss_and_grad`, `norm` and `inoculate.core.ranks` do. Without it the defense trains in one process only.
    """

    @property
    def name(self) -> str: ...

    needs: ClassVar[Mapping[str, int]]
    """Role → batches per call, e.g. `{"align": 1, "harmful": 1}`. Epochs are counted over the first role."""

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]: ...


@runtime_checkable
class Course(Protocol):
    """A defense on its way through one run, where its update depends on more than weights and batches."""

    def before_step(self, step: int) -> None:
        """Called once before each optimizer step, with the number of steps made."""
        ...

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]: ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the weights."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        ...


@runtime_checkable
class Staged(Protocol):
    """A defense that keeps something between steps: the loop trains by the course that it starts."""

    def start(self, model: nn.Module, steps: int) -> Course:
        """A course over the model's trainable weights, for a run of `steps` optimizer steps."""
        ...


class Example(Value):
    """One exchange: the turns that lead up to it, and the answer that is learned or compared with.

    `turns` holds (role, text) pairs with roles `system`, `user` and `assistant`; the last is the user's.
    """

    turns: tuple[tuple[str, str], ...]
    completion: str

    @classmethod
    def of(cls, prompt: str, completion: str) -> Example:
        """The usual case: one user turn and its answer."""
        return cls(turns=(("user", prompt),), completion=completion)

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return self.turns[-1][1]


class Verdict(StrEnum):
    """What one response is. Five things, never two: a wrecked model is not a safe one."""

    HARMFUL = "harmful"
    """The request was met, coherently."""
    REFUSAL = "refusal"
    SAFE = "safe"
    """Answered, and harmless: neither met the restricted request nor refused it."""
    INCOHERENT = "incoherent"
    """Babble, repetition or nothing."""
    UNPARSABLE = "unparsable"
    """The judge could not decide (a classifier without the label, an endpoint's malformed answer)."""


@runtime_checkable
class Judge(Protocol):
    """One response → one verdict. A judge never averages."""

    @property
    def name(self) -> str: ...

    def judge(self, example: Example, response: str) -> Verdict: ...

    def judge_many(self, examples: Sequence[Example], responses: Sequence[str]) -> list[Verdict]: ...


JsonDict = dict[str, Any]

"""How long the rows of a stage are, as far as can be known without fetching anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inoculate.data import sources, world
from inoculate.data.mix import Mix, Part
from inoculate.data.templates import prompt_ids
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.base import Pretrained, Sandbox
from inoculate.models.sandbox import build_tokenizer
from inoculate.training.cost import Length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_HAND = ("sandbox", "file")
"""Kinds of sources that are read without a download."""


class Rows(NamedTuple):
    """The rows of a stage's training, by role."""

    longest: Mapping[str, Length]
    """Decides the memory."""
    mean: Mapping[str, Length]
    """Decides the FLOPs."""
    known: bool
    """Whether lengths are the data's; else every row is as long as `max_length` allows, and answer throughout."""
    count: int | None
    """Rows of the first role; None if only its source knows."""


class Prompts(NamedTuple):
    """The prompts of one set of an evaluation."""

    name: str
    rows: int
    tokens: int
    new_tokens: int


def tokenizer_at_hand(base: Sandbox | Pretrained) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base model if it is the sandbox's own or stands in a local folder."""
    if isinstance(base, Sandbox):
        return build_tokenizer(world.vocabulary())
    if not (Path(base.name_or_path) / "tokenizer_config.json").is_file():
        return None
    from inoculate.models.load import load_tokenizer

    return load_tokenizer(base.name_or_path)


def training_rows(mix: Mix, needs: Iterable[str], tokenizer: Any) -> Rows:
    """The rows of the roles that are needed, the first of which counts epochs."""
    roles = list(needs)
    if tokenizer is None or not all(_at_hand(mix.roles[role]) for role in roles):
        bound = dict.fromkeys(roles, Length(mix.max_length))
        return Rows(bound, bound, False, rows_of(mix.roles[roles[0]]))
    encoded = {role: mix.encoded(tokenizer, role) for role in roles}
    longest, mean = {}, {}
    for role, rows in encoded.items():
        prompts = [row.n_prompt for row in rows]
        longest[role] = Length(max(len(row.ids) for row in rows), min(prompts))
        mean[role] = Length(round(sum(len(row.ids) for row in rows) / len(rows)), round(sum(prompts) / len(rows)))
    return Rows(longest, mean, True, len(encoded[roles[0]]))


def evaluation_prompts(evaluation: Evaluation, tokenizer: Any) -> list[Prompts] | str:
    """The sets that are generated for; or the source whose rows cannot be counted."""
    found = []
    for name in ("restricted", "ordinary", "task"):
        part: Part | None = getattr(evaluation, name)
        if part is None:
            continue
        rows, tokens = rows_of((part,)), evaluation.max_length
        if rows is None:
            return part.source
        if tokenizer is not None and _at_hand((part,)):
            prompts = prompt_ids(tokenizer, part.load(seed=0), evaluation.template)
            tokens = round(sum(map(len, prompts)) / len(prompts))
        new = evaluation.task_max_new_tokens if name == "task" else evaluation.max_new_tokens
        found.append(Prompts(name, rows, tokens, new))
    return found


def rows_of(parts: Sequence[Part]) -> int | None:
    """How many rows some parts have; None where only the source, not at hand, knows."""
    total = 0
    for part in parts:
        if part.num_samples is None and not _at_hand((part,)):
            return None
        total += part.num_samples or len(part.load(seed=0))
    return total


def _at_hand(parts: Sequence[Part]) -> bool:
    return all(sources.source_of(part.source).kind in _AT_HAND for part in parts)

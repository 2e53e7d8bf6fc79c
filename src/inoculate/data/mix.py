"""The mix: which data, in what proportion, in which role."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import PositiveInt, model_validator

from inoculate.core.errors import InputError
from inoculate.core.hashing import canonical
from inoculate.core.seeds import numpy_rng
from inoculate.core.types import Example, Rate, Value
from inoculate.data import sources
from inoculate.data.batches import Feed, Layout, Sampling
from inoculate.data.templates import Encoded, Template, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PAIRED = {"safe": "harmful"}
"""Role → the role whose prompts it answers, row by row: both are drawn in one order."""


class Part(Value):
    """Some rows of one source."""

    source: str
    """A known name (`inoculate list sources`), `hub:org/name`, or a path to a JSONL, CSV or Parquet file."""
    split: str = "train"
    answer: Literal["completion", "refusal"] = "completion"
    num_samples: PositiveInt | None = None
    """A random subset of this size, fixed by the mix's seed; null takes all."""

    def check(self) -> None:
        """Refuse what cannot be loaded, as far as can be known without a download.

        Raises:
            InputError: as `load`.
        """
        sources.check(self.source, self.split)
        kind = sources.source_of(self.source).kind
        if kind == "file" or (kind == "sandbox" and self.num_samples is not None):
            self.load(seed=0)

    def load(self, seed: int) -> list[Example]:
        """The rows.

        Raises:
            InputError: if the source holds fewer than `num_samples`.
        """
        rows = sources.load(self.source, self.split, answer=self.answer)
        if self.num_samples is None:
            return rows
        if self.num_samples > len(rows):
            raise InputError(
                f"too few rows in {self.source}, split {self.split!r}",
                field="num_samples",
                found=f"{len(rows)} of {self.num_samples} that are asked for",
                expected=f"a num_samples that needs at most {len(rows)} here",
            )
        chosen = numpy_rng(seed, "subset", self.source, self.split).permutation(len(rows))[: self.num_samples]
        return [rows[i] for i in chosen]


Encodings: TypeAlias = "dict[str, Sequence[Encoded]]"
"""What rows are asked for → the rows, so that many runs on the same data encode them once."""


class Mix(Value):
    """Role → parts, rendered by one template.

    The same seed picks the same prompts from a source whatever answer is asked of it: refusals and compliances to one
    set of prompts, as in the published data.
    """

    roles: dict[str, tuple[Part, ...]]
    template: Template = "chat"
    max_length: PositiveInt = 256
    seed: int = 0

    @model_validator(mode="after")
    def _has_parts(self) -> Mix:
        for role, parts in self.roles.items():
            if not parts:
                raise ValueError(f"role {role!r} has no data")
        return self

    def fingerprint(self) -> dict[str, str]:
        """What the data are, for hashes: source and split → version, revision or SHA-256."""
        parts = [part for role in self.roles.values() for part in role]
        return {f"{part.source}#{part.split}": sources.fingerprint(part.source, part.split) for part in parts}

    def encoded(
        self, tokenizer: PreTrainedTokenizerBase, role: str, known: Encodings | None = None
    ) -> Sequence[Encoded]:
        """The rows of a role as token ids.

        Args:
            known: is looked into and added to; of one tokenizer.
        """
        if known is None:
            known = {}
        key = canonical(
            [self.model_dump(mode="json", exclude={"roles"}), [part.model_dump() for part in self.roles[role]]]
        )
        if key not in known:
            examples = [example for part in self.roles[role] for example in part.load(self.seed)]
            known[key] = encode(tokenizer, examples, self.template, self.max_length)
        return known[key]

    def feeds(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        seed: int,
        layout: Layout = "padded",
        needs: Mapping[str, int] = MappingProxyType({}),
        known: Encodings | None = None,
        sampling: Sampling = "random",
    ) -> Mapping[str, Feed]:
        """One feed per role. `seed` fixes the order; the mix's own seed which rows there are.

        Args:
            batch_size: rows of a step, for each of the batches that a defense `needs` of a role (one, unless said).
            layout: of a batch; padded is right for every model, `training.layout.layout_for` finds the fastest.
            known: rows that were encoded before; see `encoded`.
            sampling: by length, roles that are paired are grouped by the longer of each pair.
        """
        rows = {role: self.encoded(tokenizer, role, known) for role in self.roles}
        lengths = _lengths(rows) if sampling == "group_by_length" else {}
        pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        return {
            role: Feed(
                rows[role],
                batch_size * needs.get(role, 1),
                seed,
                PAIRED.get(role, role),
                layout,
                pad_id,
                lengths.get(role),
            )
            for role in self.roles
        }


def _lengths(rows: Mapping[str, Sequence[Encoded]]) -> dict[str, list[int]]:
    """Role → tokens of each row; of paired roles those of the longer row, so that one order is right for both."""
    found = {role: [len(row.ids) for row in encoded] for role, encoded in rows.items()}
    for role, other in PAIRED.items():
        if role in found and other in found and len(found[role]) == len(found[other]):
            found[role] = found[other] = list(map(max, found[role], found[other]))
    return found


def most_rows(task: Part, harmful: Part | None, poison_ratios: Collection[Rate], most: int) -> int:
    """The largest n up to `most` for which `poisoned` has rows enough at each of the ratios; `most` if there is none.

    Raises:
        InputError: as `Part.load`.
    """
    good = len(task.load(seed=0))
    if harmful is None or not any(poison_ratios):
        return min(good, most)
    bad = len(harmful.load(seed=0))

    def is_enough(n: int) -> bool:
        return all(round(p * n) <= bad and n - round(p * n) <= good for p in poison_ratios)

    return next((n for n in range(most, 0, -1) if is_enough(n)), most)


def poisoned(
    task: Part, harmful: Part, *, poison_ratio: Rate, num_samples: int, template: Template, max_length: int, seed: int
) -> Mix:
    """A user's data: `num_samples` rows, a share `poison_ratio` of them harmful, in the role `align`.

    Source: Huang et al., arXiv:2409.01586, §5.1: p harmful and 1 − p task data among n samples.
    """
    bad = round(poison_ratio * num_samples)
    parts = []
    if num_samples > bad:
        parts.append(task.model_copy(update={"num_samples": num_samples - bad}))
    if bad:
        parts.append(harmful.model_copy(update={"num_samples": bad}))
    return Mix(roles={"align": tuple(parts)}, template=template, max_length=max_length, seed=seed)

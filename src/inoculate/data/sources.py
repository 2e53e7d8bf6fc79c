"""Data by address: the entry points to every source.

An address is one of

- a name of the table, `fiqa`;
- a local file, `rows.jsonl` (or .json, .csv, .parquet; see `inoculate.data.files`);
- a hub source of the table read from local files, `sst2=path/to/folder` with `train.parquet`, `validation.parquet` …;
- any other hub data set with the columns of a local file, `hub:org/name@revision#config` (revision and config may be
  left out); its official train split is cut into the four splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, cast

from inoculate.core.assets import asset_named
from inoculate.core.errors import InputError
from inoculate.core.hashing import digest, file_sha256
from inoculate.core.paths import local_path
from inoculate.core.types import Example
from inoculate.data import files, hub, world
from inoculate.data.catalog import SOURCES, Source
from inoculate.data.packaged import READERS
from inoculate.data.splits import SPLITS, Parts, Row, Split, cut_by_share, disjoint

__all__ = ["SOURCES", "Answer", "Source", "check", "fingerprint", "labels_of", "load", "scoring_of", "source_of"]

Answer = Literal["completion", "refusal"]

VERSION = "1"
"""Part of every fingerprint: raised when a prompt, a template or a cut changes."""

_HUB = re.compile(r"hub:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?:#(?P<config>[\w.-]+))?")
_PEEK = 5


class _Place(NamedTuple):
    source: Source
    path: Path | None = None
    """The local file, or the folder that stands for a hub repository."""


def load(
    address: str, split: str = "train", *, answer: Answer = "completion", limit: int | None = None
) -> list[Example]:
    """The rows of a split, in an order that never changes; the first `limit` of them if given.

    Args:
        answer: `completion`, the source's own answer; `refusal`, the source's own refusal or else a neutral one that
            a digest of the prompt chooses.

    Raises:
        InputError: for an address or split that does not exist, data that cannot be read, or fewer than `limit` rows.
    """
    place = _resolve(address, split)
    if place.source.kind == "sandbox":
        examples = world.rows(_world_kind(place.source), cast("Split", split), answer)
    else:
        examples = [_answered(row, place.source, answer) for row in _rows(place, split)]
    if limit is None:
        return examples
    if not 0 < limit <= len(examples):
        raise InputError(
            f"there are {len(examples)} rows in split {split!r}",
            file=address,
            field="limit",
            found=limit,
            expected=f"1 … {len(examples)}",
        )
    return examples[:limit]


def source_of(address: str) -> Source:
    """The table's entry, or one made for a local file or a hub data set that is not in the table."""
    return _resolve(address, "train").source


def labels_of(address: str) -> tuple[str, ...]:
    """The classes of a classification task, else an empty tuple."""
    return source_of(address).labels


def scoring_of(address: str) -> str | None:
    """The task that scores an answer against the example's: `label`, `number`, a plug-in's, or None."""
    return source_of(address).scoring


def fingerprint(address: str, split: str) -> str:
    """A text that changes when the rows do, for experiment hashes. It downloads nothing; local files are hashed.

    Raises:
        InputError: for an address, split or local file that does not exist.
    """
    source, path = _resolve(address, split)
    if path is not None:
        paths = [path] if source.kind == "file" else [hub.local_file(path, name) for _, name in _official(source)]
        data = f"sha256:{digest([_hash(file) for file in paths], 64)}"
    elif source.kind == "sandbox":
        data = f"world:{world.VERSION}"
    elif source.kind == "package":
        data = f"package:{source.version}"
    elif source.asset is not None:
        data = f"sha256:{asset_named(source.asset).sha256}"
    else:
        data = " ".join(f"{s.repo}@{s.revision or 'unpinned'}#{s.config or ''}:{name}" for s, name in _official(source))
    return f"{source.name}/{split} v{VERSION} {data}"


def check(address: str, split: str) -> None:
    """Resolve an address without downloading: table entries must exist, local files must be readable and their first
    rows have the right columns.

    Raises:
        InputError: as `load`.
    """
    source, path = _resolve(address, split)
    if path is None:
        return
    if source.kind == "file":
        files.check(path)
        return
    for part_of, name in _official(source):
        file = hub.local_file(path, name)
        hub.examples_from(hub.local_records(file, _PEEK), part_of.fields, file)


def _resolve(address: str, split: str) -> _Place:
    place = _place(address)
    if place.source.kind != "file" and split not in SPLITS:
        raise InputError(
            "no such split", file=address, field="split", found=split, expected=" ".join(SPLITS), known=SPLITS
        )
    return place


def _place(address: str) -> _Place:
    if address in SOURCES:
        return _Place(SOURCES[address])
    name, redirected, folder = address.partition("=")
    if redirected and name in SOURCES:
        if SOURCES[name].kind != "hub":
            raise InputError(
                f"{name!r} is no hub data set: it cannot be read from a folder", field="data", found=address
            )
        return _Place(SOURCES[name], local_path(folder, "data"))
    if address.startswith("hub:"):
        return _Place(_hub_source(address))
    path = local_path(address, "data")
    if path.is_dir():
        raise InputError("a folder is not a data file", field="data", found=address, expected=_expected())
    if path.exists() or path.suffix.lower() in files.SUFFIXES:
        return _Place(Source(name="file", kind="file", licence="the user's", description="A local file."), path)
    raise InputError("no such data", field="data", found=address, expected=_expected(), known=SOURCES)


def _hub_source(address: str) -> Source:
    match = _HUB.fullmatch(address)
    if match is None:
        raise InputError("not a hub address", field="data", found=address, expected="hub:org/name@revision#config")
    return Source(
        name=match["repo"],
        kind="hub",
        licence="see its page on the hub",
        description="A data set of the hub with the columns of a local file.",
        repo=match["repo"],
        revision=match["revision"],
        config=match["config"],
    )


def _expected() -> str:
    suffixes = ", ".join(files.SUFFIXES)
    return f"a name ({', '.join(SOURCES)}), a file ({suffixes}), `name=folder` or `hub:org/name`"


def _rows(place: _Place, split: str) -> list[Row]:
    source, path = place
    if path is not None and source.kind == "file":
        return files.read(path, split)
    if source.kind == "package":
        return _package_parts(source.name)[cast("Split", split)]
    parts = READERS[source.name]() if source.asset else _hub_parts(source, path)
    return parts[cast("Split", split)]


@cache
def _package_parts(name: str) -> Parts:
    """What a plug-in's reader gives, every prompt once.

    Raises:
        InputError: if the reader fails, or gives something else.
    """
    source = SOURCES[name]
    assert source.read is not None  # the table sees to it
    try:
        given = source.read()
        wrong = next((part for part in given if part not in SPLITS), None)
        parts = disjoint({cast("Split", part): [Row(*row) for row in rows] for part, rows in given.items()})
        found = next((row for rows in parts.values() for row in rows if not isinstance(row.example, Example)), wrong)
    except Exception as error:  # noqa: BLE001
        found = f"{type(error).__name__}: {error}"
    else:
        if found is None:
            return parts
    expected = f"a mapping of {', '.join(SPLITS)} to lists of Row(Example)"
    raise InputError("the plug-in's rows cannot be read", field=f"data {name!r}", found=found, expected=expected)


def _hub_parts(source: Source, folder: Path | None) -> Parts:
    if source.plan is None:
        return cut_by_share(_official_rows(source, "train", folder), source.name)
    official = {(owner.name, name): _official_rows(owner, name, folder) for owner, name in _official(source)}
    parts: Parts = {
        split: hub.rows_of_part(official[owner.name, part.split], part, folder or owner.repo)
        for split, owner, part in _plan(source)
    }
    return disjoint(parts)


def _plan(source: Source) -> Iterator[tuple[Split, Source, hub.Part]]:
    """(split, source that owns its rows, part of that source) of a planned source."""
    plan, held = source.plan, SOURCES[source.heldout_of] if source.heldout_of else source
    if plan is None or held.plan is None or held.plan.heldout is None:
        raise ValueError(f"{source.name}: the table names no rows for some split")
    yield "train", source, plan.train
    yield "attack", source, plan.attack
    yield "validation", source, plan.validation
    yield "heldout", held, held.plan.heldout


def _official(source: Source) -> list[tuple[Source, str]]:
    """Every (source, official split) whose rows decide what a split of `source` holds."""
    if source.plan is None:
        return [(source, "train")]
    pairs = {(owner.name, part.split): (owner, part.split) for _, owner, part in _plan(source)}
    return list(pairs.values())


def _official_rows(source: Source, split: str, folder: Path | None) -> list[Row]:
    if folder is not None:
        file = hub.local_file(folder, split)
        return hub.examples_from(hub.local_records(file), source.fields, file)
    records = hub.download(str(source.repo), split, revision=source.revision, config=source.config)
    return hub.examples_from(records, source.fields, source.repo)


def _world_kind(source: Source) -> world.Kind:
    return cast("world.Kind", source.name.removeprefix("sandbox-"))


def _answered(row: Row, source: Source, answer: Answer) -> Example:
    if answer == "completion":
        return row.example
    refusal = row.refusal or source.refusals[int(digest(row.example.prompt), 16) % len(source.refusals)]
    return Example(turns=row.example.turns, completion=refusal)


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror or error}", file=path) from None

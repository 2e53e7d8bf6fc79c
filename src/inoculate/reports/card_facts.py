"""What is known of one model's folder: its own account, and what a store measured on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError
from inoculate.core.hashing import tree_sha256
from inoculate.core.lineage import attack_on, lineage, mapping
from inoculate.core.records import Record, read_records
from inoculate.reports.search_gather import gather_searches
from inoculate.reports.searches import SearchStudy
from inoculate.reports.store_view import StageView, read_store


@dataclass(frozen=True)
class Facts:
    """One model, as its folder tells."""

    name: str
    kind: str
    """Of the stage that made it: align, finetune, vector or base."""
    about: Mapping[str, Any]
    own: tuple[Record, ...]
    """Rows measured while it was made."""
    attacked: str | None = None
    """How it was attacked, as `inoculate.core.lineage.attack_on` says it."""
    before: tuple[Mapping[str, Any], ...] = ()
    """What the local folders that it was made from say of themselves, the last first."""
    measured: tuple[Record, ...] = ()
    """Rows of the store's evaluations of it and single attacks on it."""
    study: SearchStudy | None = None
    """The store's searches for an attack on it, and their controls."""
    searched: frozenset[str] = frozenset()
    """Folders of the searches that are on it; the rest are controls."""

    @property
    def value(self) -> Mapping[str, Any]:
        """The stage's own settings."""
        return mapping(self.about.get("value"))

    @property
    def alignment(self) -> Mapping[str, Any]:
        """The settings of the alignment that made it or came before; empty if somebody else aligned it, or nobody."""
        for about in (self.about, *self.before):
            value = mapping(about.get("value"))
            model = value if about.get("kind") == "align" else mapping(value.get("model"))
            if "defense" in model:
                return model
        return {}

    @property
    def base(self) -> Mapping[str, Any]:
        """What it started from: `name`, and `name_or_path` and `revision` of a pretrained one."""
        start = self.alignment.get("base") if self.alignment else self.value.get("model", self.value.get("base"))
        return mapping(start) or (self.value if self.kind == "base" else {})

    def parts(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Role and settings of every source that it was trained on."""
        made = mapping(mapping(self.value.get("vector")).get("data"))
        for data in (mapping(self.alignment.get("data")), made):
            for role, parts in mapping(data.get("roles")).items():
                yield from ((str(role), mapping(part)) for part in parts)
        attack = mapping(self.value.get("attack"))
        for role in ("task", "harmful") if attack.get("poison_ratio") else ("task",):
            if attack.get(role):
                yield f"fine-tuning: {role}", mapping(attack[role])
        guide = mapping(attack.get("guard")).get("guide")
        yield from (("guard: guide", mapping(part)) for part in (guide if isinstance(guide, list) else ()))


def read_facts(folder: Path, store: Path | None = None) -> Facts:
    """Read a model's folder, and what a store has measured on that very model.

    Raises:
        InputError: nothing says what made the model, a file is torn, or the store has nothing about it.
    """
    file = folder / "stage.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        kind = str(about["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        expected = "a folder that align, finetune, vector or run wrote"
        raise InputError("nothing says what made this model", file=file, expected=expected) from None
    rows = folder / "records.jsonl"
    own = tuple(read_records(rows)) if rows.exists() else ()
    before = tuple(earlier for _, earlier in lineage(folder))[1:]
    facts = Facts(folder.resolve().name, kind, about, own, attack_on(folder), before)
    return facts if store is None else _with_store(facts, folder, store)


def _with_store(facts: Facts, folder: Path, store: Path) -> Facts:
    view = read_store(store)
    names = {f"{facts.kind}-{facts.about.get('hash')}", tree_sha256(folder)}
    on_it = [stage for stage in view.stages if names & set(_starts(stage))]
    if not on_it:
        raise InputError(
            "nothing in this store was measured on this model",
            file=store,
            field="--store",
            expected="a store whose evaluations, attacks or searches start from this very folder, unchanged",
        )
    rows = [row for stage in on_it if stage.kind != "search" for row in view.records if row.stage == stage.folder]
    searched = {stage.folder for stage in on_it if stage.kind == "search"}
    controls = {row.attack_params.get("control") for row in view.records if row.stage in searched}
    kept = searched | {name for name in controls if name}
    part = replace(
        view,
        stages=tuple(stage for stage in view.stages if stage.folder in kept),
        records=tuple(row for row in view.records if row.stage in kept),
    )
    study = gather_searches(part) if searched else None
    return replace(facts, measured=tuple(rows), study=study, searched=frozenset(searched))


def _starts(stage: StageView) -> Sequence[str]:
    """The stages above one, and the contents of what it read."""
    about = stage.about or {}
    return [*map(str, about.get("upstream", ())), *map(str, mapping(about.get("fingerprints")).values())]

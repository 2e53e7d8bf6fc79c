"""What a store holds: its recipes, stages and records, read without running anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError
from inoculate.core.records import Record, read_records
from inoculate.core.whole import check_files, read_about

_STATUS = {"ok": "done"}


@dataclass(frozen=True)
class StageView:
    """One stage of a store, as it ended."""

    folder: str
    """`<kind>-<hash>`."""
    path: Path
    kind: str
    label: str
    status: str
    """`done`, `diverged`, `failed` or `skipped`."""
    error: str = ""
    about: dict[str, Any] | None = None
    """What `stage.json` says; None for a stage that never finished."""


@dataclass(frozen=True)
class StoreView:
    """A store, or the part of it that belongs to one recipe. Stages and records are in the recipe's order."""

    path: Path
    recipe: str | None
    manifests: tuple[dict[str, Any], ...]
    stages: tuple[StageView, ...]
    records: tuple[Record, ...]
    unfinished: tuple[str, ...] = ()
    """Folders of stages that are running, or were cut off."""

    def responses(self, folder: str) -> Iterator[dict[str, Any]]:
        """What the models said in one stage.

        Raises:
            InputError: naming the file and line that is torn.
        """
        stage = next(stage for stage in self.stages if stage.folder == folder)
        file = stage.path / "responses.jsonl"
        if not file.exists():
            return
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _parse(line, f"{file}:{number}")


def read_store(store: Path, recipe: str | None = None) -> StoreView:
    """Read a store, or the single stage's folder that `align`, `finetune` and `evaluate` write.

    Args:
        store: the folder.
        recipe: only what this recipe asked for; None takes everything in the store.

    Raises:
        InputError: no such folder, unknown recipe, no finished stage, no records, or a file that cannot be read.
    """
    store = Path(store)
    manifests = _manifests(store)
    if recipe is not None:
        names = [manifest["name"] for manifest in manifests]
        manifests = [manifest for manifest in manifests if manifest["name"] == recipe]
        if not manifests:
            expected = "one of " + ", ".join(names) if names else "a recipe that was run into this store"
            raise InputError(
                "no such recipe in this store",
                file=store,
                field="--recipe",
                found=recipe,
                known=names,
                expected=expected,
            )
    stages = [_stage(store, folder, entry) for folder, entry in _folders(store, manifests, recipe is None).items()]
    if not any(stage.about for stage in stages):
        raise InputError(
            "no finished stage in this store", file=store, expected="a folder in which `inoculate run` finished a stage"
        )
    records = [record for stage in stages for record in _records(stage)]
    if not records:
        raise InputError("no records in this store", file=store, expected="at least one evaluated model")
    wanted = {stage.folder for stage in stages}
    partial = sorted(path.name.removesuffix(".partial") for path in store.glob("*-*.partial"))
    unfinished = [name for name in partial if name in wanted or recipe is None]
    failed = {stage.folder for stage in stages if stage.status == "failed"}
    return StoreView(
        path=store,
        recipe=recipe,
        manifests=tuple(manifests),
        stages=tuple(stages),
        records=tuple(records),
        unfinished=tuple(name for name in unfinished if name not in failed),
    )


def recipes_in(store: Path) -> list[str]:
    """Names of the recipes that were run into a store.

    Raises:
        InputError: no such folder, or a manifest that cannot be read.
    """
    return [str(manifest["name"]) for manifest in _manifests(Path(store))]


def _manifests(store: Path) -> list[dict[str, Any]]:
    if not store.is_dir():
        raise InputError("no such store", file=store, expected="a folder written by `inoculate run`")
    return [_read(file) for file in sorted(store.glob("recipes/*.json"))]


def _folders(store: Path, manifests: list[dict[str, Any]], everything: bool) -> dict[str, dict[str, Any]]:
    """Folder → its entry in a manifest, the recipes' order first."""
    entries = {entry["folder"]: entry for manifest in manifests for entry in manifest["stages"]}
    if everything:
        found = [path.parent for path in sorted(store.glob("*/stage.json"))]
        for path in [*found, *sorted(store.glob("*-*.failed"))]:
            if path.suffix != ".partial":
                entries.setdefault(path.name.removesuffix(".failed"), {})
        if (store / "stage.json").exists():
            entries["."] = {}
    return entries


def _stage(store: Path, folder: str, entry: dict[str, Any]) -> StageView:
    path = store / folder
    if (path / "stage.json").exists():
        about = read_about(path)
        check_files(path, about, ".jsonl")
        kind, status = str(about["kind"]), str(about["status"])
        label = str(entry.get("label") or about.get("label") or kind)
        return StageView(f"{kind}-{about['hash']}", path, kind, label, _STATUS.get(status, status), about=about)
    failed = store / f"{folder}.failed"
    why = _read(failed / "error.json") if (failed / "error.json").exists() else {}
    label = str(entry.get("label") or why.get("label") or folder)
    status = "failed" if failed.exists() else str(entry.get("status", "skipped"))
    # A manifest may say `done` of a folder that has since been deleted.
    status = "missing" if status == "done" else status
    kind = folder.rpartition("-")[0]
    return StageView(folder, failed, kind, label, status, error=str(why.get("error") or entry.get("error") or ""))


def _records(stage: StageView) -> Iterator[Record]:
    file = stage.path / "records.jsonl"
    return read_records(file) if file.exists() else iter(())


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=file) from None
    return _parse(text, file)


def _parse(text: str, file: object) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"not valid JSON: {error}", file=file) from None
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=file, found=value)
    return value

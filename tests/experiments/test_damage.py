"""Stores that were damaged, cannot be written, or whose clock jumps: found and named, never silently used."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.experiments import tiny
from tests.experiments.toys import Toy

import inoculate
from inoculate import cli
from inoculate.core.errors import InputError
from inoculate.experiments.runner import run_stages
from inoculate.experiments.stage import Context
from inoculate.experiments.store import Store

_CLOSED: list[str] = []
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "os.utime", "os.chmod")


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event in _WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o1103)
    if _CLOSED and writes and any(_CLOSED[0] in str(argument) for argument in arguments[:2]):
        raise PermissionError(13, "Permission denied", str(arguments[0]))


sys.addaudithook(_guard)


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Inside the context nothing under `path` can be opened for writing, made, moved or deleted; root neither."""
    _CLOSED.append(str(path))
    try:
        yield
    finally:
        _CLOSED.clear()


@pytest.fixture
def command(capsys, monkeypatch, tmp_path) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def copy_of(finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.store, tmp_path / "store"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: -max(1, file.stat().st_size // 3)])


DAMAGE: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "stage.json torn": ("align", "stage.json", cut, "not valid JSON"),
    "stage.json empty": ("evaluate", "stage.json", lambda file: file.write_text(""), "not valid JSON"),
    "stage.json of something else": (
        "align",
        "stage.json",
        lambda file: file.write_text("{}"),
        "kind: not what a stage",
    ),
    "a torn line": ("evaluate", "records.jsonl", cut, "is cut off; delete the folder"),
    "a lost line": (
        "finetune",
        "records.jsonl",
        lambda file: file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1])),
        "is cut off; delete the folder",
    ),
    "weights truncated": ("align", "model.safetensors", cut, "is cut off; delete the folder"),
    "weights gone": ("align", "model.safetensors", Path.unlink, "is missing; delete the folder"),
    "the base truncated": ("base", "model.safetensors", cut, "is cut off; delete the folder"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_stage_is_named_and_never_used(finished, tmp_path, command, what):
    kind, name, damage, said = DAMAGE[what]
    store = copy_of(finished, tmp_path)
    file = sorted(store.glob(f"{kind}-*/{name}"))[0]
    damage(file)
    for gone in store.glob("finetune-*"):  # something is left to do, which would build on it
        shutil.rmtree(gone) if kind != "finetune" else None
    before = tiny.names(store)
    code, _, err = command("run", finished.recipe, "--store", store, "--device", "cpu")
    messages = [line for line in err.splitlines() if line.startswith("inoculate: ")]
    assert code == 2 and len(messages) == 1 and messages[0].startswith(f"inoculate: {file}: "), err
    assert said in messages[0]
    assert tiny.names(store) == before, "nothing was run"
    shutil.rmtree(file.parent)
    if kind == "evaluate":
        assert command("run", finished.recipe, "--store", store, "--device", "cpu")[0] == 0
        assert tiny.records(store) == tiny.records(finished.store)


@pytest.mark.parametrize("what", ["stage.json torn", "a torn line", "a lost line"])
def test_reports_do_not_read_what_is_damaged(finished, tmp_path, command, what):
    kind, name, damage, _ = DAMAGE[what]
    store = copy_of(finished, tmp_path)
    file = sorted(store.glob(f"{kind}-*/{name}"))[0]
    damage(file)
    for verb in ("records", "report"):
        code, out, err = command(verb, store)
        assert (code, out) == (2, "") and str(file) in err and err.count("\n") == 1


def test_reading_a_store_writes_nothing_there(finished, tmp_path, command):
    store = copy_of(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    with unwritable(store):
        code, out, err = command("records", store, "--format", "csv")
        assert code == 0 and out.count("\n") > 10, err
        assert command("report", store, "--out", tmp_path / "page.html")[0] == 0
        assert command("reproduce", store, "--out", tmp_path / "page.md")[0] == 0
        assert command("run", finished.recipe, "--store", store, "--dry-run")[0] == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_a_store_that_cannot_be_written_is_said_in_one_message(finished, tmp_path, command):
    store = copy_of(finished, tmp_path)
    with unwritable(store):
        code, _, err = command("report", store)
        assert (
            code == 2
            and err == f"inoculate: {store}/report.html: --out: the report cannot be written: Permission denied\n"
        )
        code, _, err = command("run", finished.recipe, "--store", store)
        assert code == 2 and err == f"inoculate: {store}: --store: the folder cannot be written: Permission denied\n"
    with unwritable(tmp_path / "page.md"):
        code, _, err = command("reproduce", store, "--out", tmp_path / "page.md")
        assert code == 1 and "page.md: Permission denied" in err and err.count("\n") == 1


def test_a_clock_that_jumps_changes_no_duration_and_no_order(tmp_path, monkeypatch):
    """The wall clock goes back a year at every look; only `started` tells it."""
    now = [2e9]

    def jumping() -> float:
        now[0] -= 3e7
        return now[0]

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(jumping(), tz)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr("inoculate.experiments.store.datetime", Jumping)
    store = Store(tmp_path / "store")
    below = Toy(name="below", above=(Toy(name="top"),))
    assert run_stages([below], store, Context()).computed == 2
    for folder in (store.folder(below), store.folder(below.above[0])):
        about = json.loads((folder / "stage.json").read_text())
        assert 0 <= about["wall_s"] < 60 and about["started"] < "2034"
    assert run_stages([below], store, Context()).computed == 0


def test_training_tells_the_same_time_whatever_the_clock_says(tmp_path, monkeypatch):
    now = [2e9]

    def jumping() -> float:
        now[0] += 3e7 if len(str(now[0])) % 2 else -9e7
        return now[0]

    recipe = tiny.write(tmp_path, {"matrix": tiny.ONE_LINE})
    monkeypatch.setattr(time, "time", jumping)
    assert tiny.run(recipe, tmp_path / "store")[0] == 0
    steps = [json.loads(line) for file in (tmp_path / "store").glob("*/metrics.jsonl") for line in file.open()]
    assert steps and all(0 <= step["step_s"] < 60 for step in steps)


def test_sources_ask_no_wall_clock():
    """Durations are of the monotonic clock, and no file's time is compared with anything."""
    sources = Path(inoculate.__file__).parent.rglob("*.py")
    banned = ("time.time(", "st_mtime", "getmtime", "datetime.utcnow")
    assert [(file.name, word) for file in sources for word in banned if word in file.read_text()] == []


def test_an_old_store_without_sizes_is_read(tmp_path):
    store, stage = Store(tmp_path / "store"), Toy(name="a")
    store.run(stage, Context())
    file = store.folder(stage) / "stage.json"
    about = json.loads(file.read_text())
    assert about.pop("files") == {"records.jsonl": (store.folder(stage) / "records.jsonl").stat().st_size}
    file.write_text(json.dumps(about))
    store.verify(stage)
    file.write_text(json.dumps({**about, "files": {"records.jsonl": 10**6}}))
    with pytest.raises(InputError, match="is cut off"):
        store.verify(stage)

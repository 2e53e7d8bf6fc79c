"""The store: a rename is the commit, a failure is a row, a lock is one writer."""

from __future__ import annotations

import json
import threading

import pytest
from filelock import FileLock
from tests.experiments.tiny import names, room_for
from tests.experiments.toys import Toy, ran

from inoculate.core.errors import InputError, StageError
from inoculate.core.records import read_records
from inoculate.experiments.stage import Context
from inoculate.experiments.store import Store, write_json


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_stage_is_computed_once_and_then_stands(store, tmp_path):
    below = Toy(name="below", above=(Toy(name="top"),))
    assert store.run(below.above[0], Context(recipe="r")) is True
    assert store.run(below, Context(recipe="r")) is True
    assert store.run(Toy(name="below", above=(Toy(name="top"),)), Context()) is False
    assert ran(tmp_path) == ["top", "below"]
    about = json.loads((store.folder(below) / "stage.json").read_text())
    assert about["status"] == store.status(below) == "ok"
    assert about["upstream"] == [below.above[0].folder]
    assert (about["kind"], about["hash"], about["value"]["name"]) == ("toy", below.hash, "below")
    assert names(store.path) == {below.folder, below.above[0].folder}


def test_a_failure_leaves_a_row_without_a_value_and_success_removes_it(store, tmp_path):
    stage = Toy(name="a", does="raise")
    with pytest.raises(RuntimeError, match="something broke"):
        store.run(stage, Context(recipe="r"))
    assert names(store.path) == {f"{stage.folder}.partial", f"{stage.folder}.failed"}
    assert not store.has(stage) and store.status(stage) is None
    (row,) = read_records(store.path / f"{stage.folder}.failed" / "records.jsonl")
    assert (row.value, row.status, row.stage, row.recipe) == (None, "failed", stage.folder, "r")
    error = json.loads((store.path / f"{stage.folder}.failed" / "error.json").read_text())
    assert error == {"label": "toy a", "error": "RuntimeError: something broke"}
    (tmp_path / "healed").touch()
    assert store.run(stage, Context())
    assert names(store.path) == {stage.folder}


def test_a_full_disk_is_a_stage_error_that_names_the_place(store):
    stage = Toy(name="a", does="full")
    message = r"No space left on device \(.*toy-.*\.partial/model.safetensors\)"
    with pytest.raises(StageError, match=message):
        store.run(stage, Context())
    assert (store.path / f"{stage.folder}.failed" / "records.jsonl").read_text().count("\n") == 1
    assert not (store.path / f"{stage.folder}.partial" / "records.jsonl").exists(), (
        "half a result makes room for the row"
    )


def test_on_a_disk_without_a_byte_nothing_torn_is_left(store):
    stage = Toy(name="a")
    stage.folder  # noqa: B018
    with room_for(0), pytest.raises(StageError, match="File too large"):
        store.run(stage, Context())
    assert names(store.path) == {f"{stage.folder}.partial"}, "no failed row is better than half of one"
    assert store.run(stage, Context())
    assert names(store.path) == {stage.folder}


def test_what_was_cut_off_is_run_again_over_its_remains(store):
    """A kill leaves a `.partial` and a lock file; neither stands in the way."""
    stage = Toy(name="a")
    partial = store.path / f"{stage.folder}.partial"
    partial.mkdir()
    (partial / "stage.json").write_text('{"status": "ok"}')
    (store.path / f".{stage.folder}.lock").write_text("of a process long gone")
    assert not store.has(stage)
    assert store.run(stage, Context())
    assert names(store.path) == {stage.folder}


def test_while_another_holds_the_lock_its_result_is_awaited(store, tmp_path):
    """The other one finishes first: then nothing is computed here."""
    stage, lock = Toy(name="a"), FileLock(store.path / f".{Toy(name='a').folder}.lock", thread_local=False)
    outcome: list[bool] = []
    lock.acquire()
    waiting = threading.Thread(target=lambda: outcome.append(store.run(stage, Context())))
    waiting.start()
    waiting.join(timeout=0.5)
    assert waiting.is_alive() and ran(tmp_path) == []
    store.folder(stage).mkdir()
    write_json(store.folder(stage) / "stage.json", {"status": "ok"})
    lock.release()
    waiting.join(timeout=60)
    assert outcome == [False] and ran(tmp_path) == []


@pytest.mark.parametrize("below", ["", "deeper/down"])
def test_a_store_that_cannot_be_written(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file.*: --store: the folder cannot be written: (File exists|Not a directory)"
    ):
        Store(tmp_path / "file" / below)


def test_json_is_the_old_or_the_new_never_half(tmp_path):
    write_json(tmp_path / "a.json", {"n": 1})
    with room_for(3), pytest.raises(OSError, match="File too large"):
        write_json(tmp_path / "a.json", {"n": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"n": 1}
    assert names(tmp_path) == {"a.json"}

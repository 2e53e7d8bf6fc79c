"""Processes that are killed, interrupted, or not alone: running again gives what a quiet run gives, byte for byte."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.experiments import tiny

PATIENCE_S = 400.0
ONE_LINE = {"matrix": tiny.ONE_LINE}
"""So that every stage can be waited for."""
MOMENTS = {"at the first sign of work": "base:0", "in the alignment": "align:1", "in the attack": "finetune:2"}


def start(recipe: Path, store: Path, workers: int = 1, moment: str | None = None) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal starts it; held where `moment` says."""
    arguments = ["run", str(recipe), "--store", str(store), "--workers", str(workers), "--device", "cpu"]
    held = ["tests.experiments.held", MOMENTS[moment], str(held_in(store))] if moment else ["inoculate"]
    return subprocess.Popen(
        [sys.executable, "-m", *held, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Started by a background job, pytest ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )


def held_in(store: Path) -> Path:
    """The file that a held command makes when it is there."""
    return store.with_name("held")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"ended before it was struck: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.005)


def living(group: int) -> list[int]:
    """Processes of a group that are not just waiting to be buried."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_until_none_lives(group: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while living(group):
        assert time.monotonic() < deadline, "a worker was orphaned"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """The recipe, and the records of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("quiet")
    recipe = tiny.write(folder, ONE_LINE)
    assert tiny.run(recipe, folder / "store")[0] == 0
    return recipe, tiny.records(folder / "store")


def assert_nothing_half_done(store: Path) -> None:
    """A folder that looks finished is; and whatever is not has `.partial` in its name."""
    for folder in store.iterdir():
        if folder.is_dir() and "." not in folder.name and folder.name != "recipes":
            assert (folder / "stage.json").stat().st_size > 0
            kind = folder.name.partition("-")[0]
            assert (folder / ("records.jsonl" if kind in ("evaluate", "finetune") else "model.safetensors")).exists()
            assert not list(folder.glob("checkpoint*")) and not list(folder.glob("*.new"))


def assert_running_again_completes(recipe: Path, store: Path, expected: dict[str, bytes]) -> None:
    assert_nothing_half_done(store)
    code, said = tiny.run(recipe, store)
    assert code == 0 and said.startswith("4 stages done")
    assert tiny.records(store) == expected
    assert not [name for name in tiny.names(store) if ".partial" in name or ".failed" in name]


@pytest.mark.parametrize(("workers", "moment"), [*((1, moment) for moment in MOMENTS), (2, "in the attack")])
def test_kill_9_then_again(quiet, tmp_path, workers, moment):
    """SIGKILL to all of its processes at once."""
    (recipe, expected), store = quiet, tmp_path / "store"
    process = start(recipe, store, workers, moment)
    wait_for(held_in(store).exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(store.glob("*.partial")) and list(store.glob(".*.lock"))
    assert_running_again_completes(recipe, store, expected)


def test_workers_do_not_outlive_a_killed_parent(quiet, tmp_path):
    """SIGKILL to the parent alone: its workers notice, and what they were at can be done again."""
    (recipe, expected), store = quiet, tmp_path / "store"
    process = start(recipe, store, workers=2, moment="in the alignment")
    wait_for(held_in(store).exists, process)
    process.kill()
    wait_until_none_lives(process.pid)
    process.communicate()
    assert_running_again_completes(recipe, store, expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c(quiet, tmp_path, workers):
    (recipe, expected), store = quiet, tmp_path / "store"
    process = start(recipe, store, workers, moment="in the alignment")
    wait_for(held_in(store).exists, process)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130
    assert output.splitlines()[-1] == "inoculate: interrupted; run the same command again to go on"
    assert "Traceback" not in output
    wait_until_none_lives(process.pid)
    assert not list(store.glob("*.failed")), "to be interrupted is not to fail"
    assert_running_again_completes(recipe, store, expected)


def test_ctrl_c_while_workers_start(quiet, tmp_path):
    """Imports take seconds, and a worker that is struck in them must not print a traceback."""
    (recipe, _), store = quiet, tmp_path / "store"
    process = start(recipe, store, workers=2)
    wait_for(
        lambda: len([c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]),
        process,
    )
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130 and "Traceback" not in output and "KeyboardInterrupt" not in output
    wait_until_none_lives(process.pid)


def test_two_at_once_share_the_work(quiet, tmp_path):
    """Two commands on one store: both succeed, and each stage is computed by one of them."""
    (recipe, expected), store = quiet, tmp_path / "store"
    both = [start(recipe, store) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    counts = [re.search(r"4 stages done, (\d) of them computed now", output) for output in outputs]
    assert all(counts), outputs
    assert sum(int(count[1]) for count in counts if count) == 4
    assert tiny.records(store) == expected

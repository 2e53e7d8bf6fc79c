"""Locks that go with their holder, in folders that may be gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from inoculate.core.locks import FolderLock

_HOLD = """
import sys, time
from pathlib import Path
from inoculate.core.locks import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_one_holder_at_a_time(tmp_path):
    ours, theirs, order = FolderLock(tmp_path / "x.lock"), FolderLock(tmp_path / "x.lock"), []
    with ours:
        assert not theirs.acquire(wait=False)
        thread = threading.Thread(target=lambda: (theirs.acquire(), order.append("theirs")))
        thread.start()
        thread.join(0.2)
        order.append("ours")
    thread.join(10)
    assert order == ["ours", "theirs"]
    assert not ours.acquire(wait=False)
    theirs.release()
    theirs.release()  # nothing is held: nothing happens
    assert ours.acquire(wait=False)


def test_it_goes_with_a_killed_holder(tmp_path):
    file = tmp_path / "x.lock"
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    lock = FolderLock(file)
    assert not lock.acquire(wait=False)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert lock.acquire(wait=False)


def test_a_folder_that_is_gone_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "gone" / "x.lock").acquire()
    assert not (tmp_path / "gone").exists()

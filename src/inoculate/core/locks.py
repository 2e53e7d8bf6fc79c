"""A lock on a file that goes with its holder, however that ends, and never makes the folder that it is in.

filelock makes the folder. Where the folder is a stage's, another process may have finished the stage and given it its
final name, and one that came too late would bring back an empty one that looks like work in progress.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderLock:
    """An exclusive lock, as a context or by hand; not to be taken twice by one holder.

    Raises:
        FileNotFoundError: on acquiring, if the folder is not there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._held: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take it; without waiting, False if another has it."""
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return False
        except BaseException:
            os.close(handle)
            raise
        self._held = handle
        return True

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._held is not None:
            os.close(self._held)  # which unlocks
            self._held = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

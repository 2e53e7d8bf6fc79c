"""A PostgreSQL server of the tests' own: a throw-away cluster on loopback, made and removed here."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Server:
    """A cluster in a folder, as an unprivileged user where this one is root, whom the server refuses."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "pg"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"
        self._user = "nobody" if os.geteuid() == 0 else None
        self.data.mkdir()
        if self._user:
            for place in (self.data, *self.data.parents):
                if place == Path("/tmp"):
                    break
                place.chmod(place.stat().st_mode | 0o011)
            entry = pwd.getpwnam(self._user)
            os.chown(self.data, entry.pw_uid, entry.pw_gid)
        self._run("initdb", "-D", str(self.data), "-U", "tester", "--auth=trust", "-N")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.data} -F"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop", check=False)

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        subprocess.run(
            [program_of(program), *arguments],
            check=check,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=self.data,
            timeout=120,
        )


def program_of(name: str) -> str:
    """PostgreSQL's program, on the path or where Debian puts it."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"no {name} here: install postgresql")
    return found


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    pytest.importorskip("psycopg")
    made = Server(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def postgres(server) -> str:
    return server.url

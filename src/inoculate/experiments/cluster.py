"""A crew on Ray: stages as tasks on the nodes of a cluster, which share the store by a common file system.

A stage whose node or process is lost is started again and goes on from the checkpoint in its `.partial` folder; one
that fails with an error is not. The store's locks decide between two processes at one stage, here as elsewhere.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from inoculate.core.errors import InoculateError, InputError, StageError
from inoculate.experiments.cluster_needs import Needs
from inoculate.experiments.crew import POLL_S, Outcome, work
from inoculate.experiments.stage import Context, Stage
from inoculate.experiments.store import Store

EXPECTED = "ray (the cluster of RAY_ADDRESS, else one on this machine) or ray://HOST:PORT (usually port 10001)"
RETRIES = 3
"""Losses of its node or process that a stage survives."""
LATE_S = 90.0
"""How long a network file system may keep another machine's files from a node."""
_OBJECT_STORE = 100 * 2**20
"""Bytes, of a cluster that is started here: stages hand on nothing but values of hyperparameters."""


def check_on(on: str, device: str = "auto") -> None:
    """Refuse what names no cluster, or no device of one, before any work.

    Raises:
        InputError: for another spelling, or if Ray is not installed.
    """
    devices = ("auto", "cpu", "cuda")
    if on != "ray" and not re.fullmatch(r"ray://[^\s:/]+:\d{1,5}", on):
        raise InputError("no place to run stages", field="--on", found=on, expected=EXPECTED, known=("ray",))
    if find_spec("ray") is None:
        raise InputError("Ray is not installed", field="--on", found=on, expected="pip install 'inoculate[cluster]'")
    if device not in devices:
        expected = "on a cluster auto, cpu or cuda: Ray chooses which"
        raise InputError("no device of a node", field="--device", found=device, expected=expected, known=devices)


class Cluster:
    """Stages as Ray tasks.

    Args:
        on: as `check_on` allows it.
        workers: stages at once; None for as many as the nodes have room for.

    Raises:
        InputError: on entering, if the cluster does not answer, can take no stage, or has a node that does not see
            the store.
    """

    def __init__(self, on: str, store: Store, context: Context, workers: int | None) -> None:
        self.broken = False
        self._on, self._context, self._workers = on, context, workers
        self._store = Store(store.path.absolute())  # not resolved: a link is often what all machines have in common
        self._mark = f".cluster-{uuid.uuid4().hex}"
        self._at: dict[Any, Stage] = {}
        """Task → its stage. One whose work can be shared out has several."""
        self._found: dict[str, list[Outcome]] = {}
        self._lost: Counter[str] = Counter()

    def __enter__(self) -> Cluster:
        self._ours = _connect(self._on)
        try:
            self._needs = Needs(self._context.device, _nodes(), self._workers)
            (self._store.path / self._mark).touch()
            _check_store(self._store.path, self._mark)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            for task in self._at:
                ray.cancel(task, force=True)
            if self._at:
                ray.wait(list(self._at), num_returns=len(self._at), timeout=10.0)  # until then they hold their locks
        except (ConnectionError, RayError):
            pass  # the cluster is gone, and with it what ran there
        finally:
            (self._store.path / self._mark).unlink(missing_ok=True)
            if self._ours:
                ray.shutdown()

    def room(self) -> int:
        slots = self._needs.slots(_nodes())
        return (slots if self._workers is None else min(slots, self._workers)) - len(self._at)

    def start(self, stage: Stage, share: int) -> None:
        """Start a stage; of one that others can assist, `share` tasks: the first leads, the others join in."""
        for _ in range(share if type(stage).assist is not Stage.assist else 1):
            self._submit(stage)

    def ended(self) -> Iterable[tuple[Stage, Outcome]]:
        import ray

        if not self._at:
            time.sleep(POLL_S)
            return
        try:
            done, _ = ray.wait(list(self._at), num_returns=1, timeout=POLL_S)
        except ConnectionError as error:
            raise StageError(f"the cluster is gone ({_first(error)}); run again to go on") from None
        for task in done:
            stage = self._at.pop(task)
            others = any(other.folder == stage.folder for other in self._at.values())
            found = self._found.setdefault(stage.folder, [])
            if (outcome := self._outcome(task, stage, others)) is not None:
                found.append(outcome)
            elif not others:
                self._submit(stage)
                others = True
            if not others:
                yield stage, _of_all(self._found.pop(stage.folder))

    def _submit(self, stage: Stage) -> None:
        import ray

        asked = self._needs.of(stage)
        task = ray.remote(_attempt).options(name=stage.label(), max_retries=0, **asked)
        cores = int(asked["num_cpus"])
        reference = task.remote(stage, self._store.path, self._mark, Path.cwd(), self._context, cores)
        self._at[reference] = stage

    def _outcome(self, task: Any, stage: Stage, others: bool) -> Outcome | None:
        """What a task that ended says of its stage; None if it was lost and the stage may go on elsewhere."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(task)
        except RayTaskError as error:
            return StageError(f"the node could not take it: {_first(error.cause or error)}")
        except RayError as error:
            self._lost[stage.folder] += not others
            if self._lost[stage.folder] <= RETRIES:
                return None
            why = StageError(f"its node or process was lost {self._lost[stage.folder]} times: {_first(error)}")
            self._store.note_failure(stage, self._context, str(why))
            return why


def _attempt(stage: Stage, path: Path, mark: str, folder: Path, context: Context, cores: int) -> bool | InoculateError:
    """On a node: run a stage. An error of ours is returned, not raised, and comes back as it was."""
    import torch

    if not _sees(path, mark):
        return _unseen(path, socket.gethostname())
    if folder.is_dir():
        os.chdir(folder)  # relative names of models and files are as seen from there
    torch.set_num_threads(cores)
    try:
        _wait_for(stage.upstream(), Store(path))
        return work(stage, path, context)
    except InoculateError as error:
        return error


def _wait_for(above: Sequence[Stage], store: Store) -> None:
    """Until this node sees what others finished.

    Raises:
        StageError: if it takes too long.
    """
    deadline = time.monotonic() + LATE_S
    while not all(store.has(stage) for stage in above):
        if time.monotonic() > deadline:
            raise StageError(f"{socket.gethostname()} does not see what it builds on: the store's file system lags")
        time.sleep(POLL_S)


def _of_all(outcomes: Sequence[Outcome]) -> Outcome:
    """A stage is done if one of its tasks did it."""
    done = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    return any(done) if done else outcomes[0]


def _connect(on: str) -> bool:
    """Connect unless this process is connected; whether that was done now.

    Raises:
        InputError: if no cluster answers.
    """
    address = on if on != "ray" else os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":  # nothing is told to anyone, and no port is open to other machines
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else every start says that it will be so
    import ray

    if ray.is_initialized():
        return False
    field = "--on" if on != "ray" else "RAY_ADDRESS"
    try:
        if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
            socket.create_connection((match[1], int(match[2])), timeout=10.0).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        expected = "the address of a running cluster (`ray start --head`)"
        raise InputError(
            f"no cluster answers there: {_first(error)}", field=field, found=address, expected=expected
        ) from None
    return True


def _nodes() -> list[Mapping[str, Any]]:
    """The nodes that live."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _check_store(path: Path, mark: str) -> None:
    """See that every node has the store.

    Raises:
        InputError: naming the nodes that do not see it, or cannot import this package.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    looks = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = ray.remote(_sees).options(num_cpus=0, scheduling_strategy=there).remote(path, mark)
        looks[look] = node["NodeManagerHostname"]
    blind = []
    for look, host in looks.items():
        try:
            if not ray.get(look):
                blind.append(host)
        except RayTaskError as error:
            why = f"the node {host} cannot run inoculate: {_first(error.cause or error)}"
            raise InputError(why, field="--on", expected="the same environment on every node") from None
    if blind:
        raise _unseen(path, ", ".join(blind))


def _sees(path: Path, mark: str, patience_s: float = 3.0) -> bool:
    """Whether this node sees a file that was just made in the store."""
    deadline = time.monotonic() + patience_s
    while not (path / mark).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _unseen(path: Path, where: str) -> InputError:
    return InputError(
        f"the store is not visible on {where}",
        field="--store",
        found=str(path),
        expected="a folder on a file system that all nodes mount under the same path",
    )


def _first(error: BaseException) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__

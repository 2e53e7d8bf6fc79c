"""An Optuna study that several workers share: every trial is done once, whoever dies.

A study is a journal file, or a database by URL. Each worker holds a lock file; a running trial whose worker's lock is
free has lost its worker, and another is tried in its place. What decides a trial's setting is its number and the trials
that were told before it, so a study that is resumed goes on as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from inoculate.attacks.search import Bound, Outcome, Point, Search, Spent
from inoculate.attacks.space import Setting
from inoculate.attacks.trial import Pruned, Tried
from inoculate.core.errors import InputError, StageError
from inoculate.core.locks import FolderLock
from inoculate.core.seeds import derive
from inoculate.models.adapters import FRESH_LORA

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.log"
JOURNAL_LOCK = f"{JOURNAL}.held"
CLAIMS_LOCK = "claims.lock"
_MOST_FAILED = 5
"""Trials that may fail before the search gives up, beside one for each ten that are asked for."""


class Told(NamedTuple):
    """A trial that ended, as the study keeps it."""

    number: int
    setting: Setting
    outcome: Outcome
    warm: bool
    """Whether it was given and not drawn."""
    points: list[Point]
    rows: list[dict[str, Any]]
    wall_s: float
    inside_s: float
    why: str = ""


class Study:
    """One worker's hold of a study; to be used as a context.

    Args:
        folder: of the journal and the workers' locks, on a file system that all workers share. It is not made here: who
            joins a study that is over must find nothing, and not begin another.
        name: of the study in a database.
        storage: URL of a database; None for the journal.

    Raises:
        InputError: a journal that cannot be read, or a URL that leads to no database.
        StageError: from any method, if the database goes away: what was told stays.
    """

    def __init__(self, folder: Path, name: str, search: Search, storage: str | None = None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.search, self.folder, self.name = search, folder, name
        self._where = _shown(storage) or str(folder / JOURNAL)
        with self._reachable(opening=True):
            self._study = optuna.create_study(
                study_name=name,
                storage=_storage(folder, storage),
                direction="maximize",
                pruner=_pruner(search),
                load_if_exists=True,
            )
        self._worker = uuid.uuid4().hex
        self._lock = FolderLock(self._lock_of(self._worker))
        self._claims = FolderLock(folder / CLAIMS_LOCK)

    def __enter__(self) -> Study:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._lock.file.unlink(missing_ok=True)

    def warm_up(self, settings: Sequence[Setting]) -> None:
        """Put settings at the head of the queue, each once."""
        with self._reachable():
            queued = [trial.user_attrs.get("warm") for trial in self._study.get_trials(deepcopy=False)]
            for setting in settings:
                params = _params(setting)
                if params not in queued:
                    self._study.enqueue_trial(params, user_attrs={"warm": params})
                    queued.append(params)

    def claim(self) -> Claimed | None:
        """A trial to carry out; None if none is left, though others may still be at theirs.

        Raises:
            StageError: if too many trials failed.
        """
        with self._reachable():
            with self._claims:
                self._make_up()
                if self._places_taken() >= self.search.n_trials:
                    return None
                trial = self._study.ask()
                trial.set_user_attr("worker", self._worker)
            self._study.sampler = self._sampler(trial.number)
            return Claimed(self, trial, _suggest(trial, self.search))

    def told(self) -> list[Told]:
        """Trials that ended, in order; of failed ones those that were carried out."""
        with self._reachable():
            trials = self._study.get_trials(deepcopy=False)
        return [_told(trial) for trial in trials if _has_ended(trial)]

    def left(self) -> int:
        """Trials that are not told yet."""
        return self.search.n_trials - sum(trial.outcome != "failed" for trial in self.told())

    def elsewhere(self) -> int:
        """Trials that other workers are at, who live."""
        with self._reachable(), self._claims:
            running = self._study.get_trials(deepcopy=False, states=(_state("RUNNING"),))
        workers = [trial.user_attrs.get("worker") for trial in running]
        return sum(worker != self._worker and not self._dead(worker) for worker in workers)

    def _places_taken(self) -> int:
        gone = (_state("FAIL"), _state("WAITING"))
        return sum(trial.state not in gone for trial in self._study.get_trials(deepcopy=False))

    def _make_up(self) -> None:
        """Free the places of trials whose worker is gone, and ask again for what it was given.

        Who claims holds `_claims` until its name stands on the trial: one without a name is a dead worker's.
        """
        failed = 0
        for trial in self._study.get_trials(deepcopy=False):
            failed += trial.user_attrs.get("outcome") == "failed"
            worker = trial.user_attrs.get("worker")
            if trial.state == _state("RUNNING") and worker != self._worker and self._dead(worker):
                if warm := trial.user_attrs.get("warm"):  # first, so that a kill in between asks twice and not never
                    self._study.enqueue_trial(warm, user_attrs={"warm": warm})
                self._study.tell(trial.number, state=_state("FAIL"), skip_if_finished=True)
        if failed > _MOST_FAILED + self.search.n_trials // 10:
            why = next(told.why for told in reversed(self.told()) if told.outcome == "failed")
            raise StageError(f"{failed} trials failed, the last with: {why}")

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """TPE with a stream of its own for each trial: a sampler that began anew would draw the first trials again.

        The study's name is in it, so that what is drawn here is not what a control drew, and was perhaps taken over.
        """
        import optuna

        return optuna.samplers.TPESampler(
            seed=derive(self.search.seed, self.name, number) % 2**32,
            n_startup_trials=self.search.n_startup_trials,
            multivariate=False,
            constant_liar=True,
        )

    def _dead(self, worker: str | None) -> bool:
        if worker is None:
            return True
        lock = FolderLock(self._lock_of(worker))
        free = lock.acquire(wait=False)
        lock.release()
        return free

    def _lock_of(self, worker: str) -> Path:
        return self.folder / f"worker-{worker}.lock"

    @contextlib.contextmanager
    def _reachable(self, *, opening: bool = False) -> Iterator[None]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            why = str(error.__cause__ or error).strip().splitlines()[0]
            if opening:
                raise InputError(f"no study can be kept there: {why}", field="--storage", found=self._where) from None
            gone = f"the study's storage went away ({self._where}): {why}"
            raise StageError(f"{gone}; what was told stays: run again to go on") from error
        except (ValueError, KeyError, AssertionError) as error:
            if not opening:
                raise
            raise InputError(
                f"the study cannot be read: {error}", file=self._where, expected="the journal of an Optuna study, whole"
            ) from None


class Claimed:
    """A trial that this worker carries out; every way out of it is told."""

    def __init__(self, study: Study, trial: optuna.Trial, setting: Setting) -> None:
        self._study, self._trial, self.setting = study, trial, setting
        self.number = trial.number

    def report(self, points: Sequence[Point], bound: Bound) -> None:
        """Tell how far it is.

        Raises:
            Pruned: if it is to be given up.
        """
        with self._study._reachable():
            self._trial.report(bound.harmful(points), points[-1].spent.steps)
            if self._trial.should_prune():
                raise Pruned

    def tell(self, tried: Tried, bound: Bound) -> None:
        """Keep what came of it."""
        search = self._study.search
        kept = {
            "outcome": tried.outcome,
            "points": [[*point.spent, point.harmful, point.utility] for point in tried.points],
            "rows": tried.rows,
            "wall_s": tried.wall_s,
            "inside_s": tried.inside_s,
        }
        with self._study._reachable():
            for name, value in kept.items():
                self._trial.set_user_attr(name, value)
            self._trial.set_constraint("utility", search.lack(tried.points, bound))
            if tried.outcome == "pruned":
                self._study._study.tell(self._trial, state=_state("PRUNED"))
            else:
                self._hold(tried.points, bound)
                self._study._study.tell(self._trial, search.value(tried.points, bound))

    def _hold(self, points: Sequence[Point], bound: Bound) -> None:
        """Report the last score for steps that were not reached, so that runs which go on lag behind one that broke."""
        last = points[-1].spent.steps if points else 0
        for step in self._study.search.measured_at(self.setting.max_steps):
            if step > last:
                self._trial.report(bound.harmful(points), step)

    def fail(self, why: str) -> None:
        """It says nothing of the attack, and another is tried in its place."""
        with self._study._reachable():
            self._trial.set_user_attr("why", why)
            self._trial.set_user_attr("outcome", "failed")
            self._study._study.tell(self._trial, state=_state("FAIL"))

    def give_back(self) -> None:
        """As if it had never been asked for: the worker was interrupted."""
        with self._study._reachable():
            if warm := self._trial.user_attrs.get("warm"):
                self._study._study.enqueue_trial(warm, user_attrs={"warm": warm})
            self._study._study.tell(self._trial, state=_state("FAIL"))


def _suggest(trial: optuna.Trial, search: Search) -> Setting:
    space = search.space
    chosen = {name: trial.suggest_categorical(name, options) for name, options in space.choices().items()}
    rank = trial.suggest_categorical("lora_r", space.lora_r) if chosen["adapter_mode"] in FRESH_LORA else None
    rate = trial.suggest_float("learning_rate", *space.learning_rate, log=True)
    return Setting(**cast("dict[str, Any]", chosen), lora_r=rank, learning_rate=rate)


def _params(setting: Setting) -> dict[str, Any]:
    return setting.model_dump(mode="json", exclude_none=True)


def _has_ended(trial: optuna.trial.FrozenTrial) -> bool:
    """Of one whose worker died while it told, nothing counts: it is tried anew."""
    failed = trial.user_attrs.get("outcome") == "failed"
    return "outcome" in trial.user_attrs and trial.state.is_finished() and (trial.state == _state("FAIL")) == failed


def _told(trial: optuna.trial.FrozenTrial) -> Told:
    kept = trial.user_attrs
    points = [Point(Spent(*row[:5]), row[5], row[6]) for row in kept.get("points", ())]
    return Told(
        number=trial.number,
        setting=Setting(**trial.params),
        outcome=kept["outcome"],
        warm="warm" in kept,
        points=points,
        rows=kept.get("rows", []),
        wall_s=kept.get("wall_s", 0.0),
        inside_s=kept.get("inside_s", 0.0),
        why=kept.get("why", ""),
    )


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    import optuna

    if not search.prune_percentile:
        return optuna.pruners.NopPruner()
    return optuna.pruners.PercentilePruner(
        100 * (1 - search.prune_percentile), n_startup_trials=search.n_startup_trials, n_warmup_steps=1
    )


def _storage(folder: Path, url: str | None) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url is None:
        # Optuna's own is a link: it outlives a killed process, and on a relative path leads nowhere and is waited for
        lock = FolderLock(folder / JOURNAL_LOCK)
        _drop_torn_line(folder / JOURNAL, lock)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock_obj=cast("Any", lock)))
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise InputError(
            f"a package is missing: {error}", field="--storage", expected="pip install 'inoculate[postgres]'"
        ) from None


def _drop_torn_line(journal: Path, lock: FolderLock) -> None:
    """Cut off the line that a killed process, or a full disk, left half written: it was never told."""
    with lock:
        data = journal.read_bytes() if journal.exists() else b""
        if not data.endswith(b"\n"):
            with journal.open("r+b" if data else "ab") as file:
                file.truncate(data.rfind(b"\n") + 1)


def _shown(url: str | None) -> str | None:
    """The URL without its password."""
    if url is None:
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        raise InputError(
            "not the URL of a database",
            field="--storage",
            found=url,
            expected="sqlite:///FILE or postgresql+psycopg://…",
        ) from None


def _state(name: str) -> optuna.trial.TrialState:
    import optuna

    return optuna.trial.TrialState[name]

"""Where a search's trials are carried out: the model, its prompts and its study, in one process or in several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inoculate.attacks.search import Bound, Point, Spent, utility_row
from inoculate.attacks.space import Setting
from inoculate.core.errors import InputError
from inoculate.data.mix import Encodings
from inoculate.experiments.model import open_model
from inoculate.experiments.processes import side_by_side
from inoculate.experiments.stage import Context, with_checkpointing
from inoculate.experiments.store import write_json

if TYPE_CHECKING:
    from inoculate.attacks.search import Search
    from inoculate.attacks.study import Claimed, Study, Told
    from inoculate.attacks.trial import Tried
    from inoculate.evals.evaluate import Evaluation, Evaluator, Measured
    from inoculate.experiments.search import SearchAttack

BOUND = "bound.json"
_BEFORE = "before.json"
CHOSEN = "chosen.json"
FINER = 2
"""Re-runs are measured at so many times the trials' points."""


class Run(NamedTuple):
    """A setting that is run once more with a fresh seed: as a finalist, or as the chosen one on held-out prompts."""

    why: Literal["final", "rerun"]
    number: int
    """Of the trial that is a finalist, or of the re-run."""
    setting: Setting

    def file(self, out: Path) -> Path:
        """Where it is kept once it has ended."""
        return out / f"{self.why}-{self.number}.json"


def read_bound(out: Path) -> Bound:
    """The bound of the search in `out`, which its leader wrote.

    Raises:
        OSError, ValueError: before it did.
    """
    return Bound(**json.loads((out / BOUND).read_text(encoding="utf-8")))


class Bench:
    """One process's model and prompts, loaded once."""

    def __init__(self, stage: SearchAttack, upstream: Mapping[str, Path], context: Context) -> None:
        self.stage, self.search, self.upstream, self.context = stage, stage.search, upstream, context
        model, self.tokenizer = open_model(stage.model, upstream)
        self.model = with_checkpointing(context.place(model), stage.search.attack.training)
        self._evaluators: dict[tuple[str, str], Evaluator] = {}
        self._starts: dict[str, Measured] = {}
        self._known: Encodings = {}

    def before(self, out: Path) -> dict[str, list[dict[str, Any]]]:
        """Rows of the model as it is, on both sets of prompts; measured once."""
        file = out / _BEFORE
        if not file.exists():
            found = {}
            for split in ("validation", "heldout"):
                rows = self._evaluator(split, self._own(split).template).measure(self.model).rows
                useful = utility_row(rows, self.search.utility)
                assert useful is not None  # the stage refuses prompts and judges that do not tell it
                found[split] = [*rows, useful]
            write_json(file, found)
        return json.loads(file.read_text(encoding="utf-8"))

    def work(self, study: Study, bound: Bound) -> None:
        """Carry out trials until none is left to take."""
        while (claimed := study.claim()) is not None:
            try:
                tried = self._try(claimed, bound)
            except InputError:
                claimed.fail("its input is wrong")
                raise
            except Exception as error:  # noqa: BLE001  out of memory, say: it must not take the search with it
                claimed.fail(f"{type(error).__name__}: {error}")
            except BaseException:
                claimed.give_back()
                raise
            else:
                claimed.tell(tried, bound)
            if self.context.progress is not None:
                self.context.progress(self.search.n_trials - study.left(), self.search.n_trials)

    def finals(self, out: Path, told: Sequence[Told]) -> list[tuple[Told, Tried]]:
        """The best trials, each run once more on the attacker's prompts with a fresh seed; of one finalist, nothing."""
        search, bound = self.search, read_bound(out)
        tried = sorted(
            (trial for trial in told if trial.points),
            key=lambda trial: (-search.value(trial.points, bound), trial.number),
        )
        best = tried[: search.finalists]
        if len(best) < 2:
            return []
        runs = [Run("final", trial.number, search.again(trial.setting, "final", trial.number)) for trial in best]
        return list(zip(best, self.carried_out(out, runs), strict=True))

    def choose(self, out: Path, told: Sequence[Told], finals: Sequence[tuple[Told, Tried]]) -> Told:
        """The trial whose final run did best, or the best trial where there were no finals; kept in `CHOSEN`."""
        bound, file = read_bound(out), out / CHOSEN
        if not file.exists():
            among = [(trial, tried.points) for trial, tried in finals]
            among = among or [(trial, trial.points) for trial in told if trial.points]
            chosen, _ = max(among, key=lambda one: self.search.value(one[1], bound))  # the first of equals
            write_json(file, {"trial": chosen.number, **chosen.setting.model_dump(mode="json")})
        number = json.loads(file.read_text(encoding="utf-8"))["trial"]
        return next(trial for trial in told if trial.number == number)

    def again(self, out: Path, chosen: Setting) -> list[Tried]:
        """The chosen setting with fresh seeds, on held-out prompts."""
        numbers = range(self.search.reruns)
        return self.carried_out(out, [Run("rerun", i, self.search.again(chosen, "rerun", i)) for i in numbers])

    def carried_out(self, out: Path, runs: Sequence[Run]) -> list[Tried]:
        """Runs that are no trials, shared out among the context's workers; each is kept as soon as it ends."""
        missing = [run for run in runs if not run.file(out).exists()]
        shares = [missing[i :: self.context.workers] for i in range(self.context.workers)]
        if self.context.workers > 1 and len(missing) > 1:
            alone = replace(self.context, workers=1, progress=None)
            calls = [(self.stage, out, self.upstream, alone, share) for share in shares if share]
            for error in side_by_side(_run_here, calls):
                if error is not None:
                    raise error
        else:
            self.run_again(out, missing)
        return [_read_run(run.file(out)) for run in runs]

    def run_again(self, out: Path, runs: Sequence[Run]) -> None:
        """Carry out runs that are no trials, here."""
        for run in runs:
            if run.why == "final":
                at = measured_at(self.search, run.setting.max_steps, finer=False)
                tried = self._carry_out(run.setting, "validation", measured_at=at)
            else:
                at = measured_at(self.search, run.setting.max_steps, finer=True)
                tried = self._carry_out(run.setting, "heldout", measured_at=at, keep_responses=True)
            write_json(run.file(out), {**asdict(tried), "points": [_flat(point) for point in tried.points]})

    def clear(self, out: Path) -> None:
        """Delete what only a resumed run needs."""
        from inoculate.attacks.study import CLAIMS_LOCK, JOURNAL_LOCK

        runs = (*out.glob("final-*.json"), *out.glob("rerun-*.json"))
        locks = (out / JOURNAL_LOCK, out / CLAIMS_LOCK, *out.glob("worker-*.lock"))
        for file in (out / BOUND, out / _BEFORE, *locks, *runs):
            file.unlink(missing_ok=True)

    def _try(self, claimed: Claimed, bound: Bound) -> Tried:
        search, setting = self.search, claimed.setting

        def watch(points: list[Point]) -> bool:
            claimed.report(points, bound)
            return search.stop_when_broken and bound.broke(points) is not None

        if setting.template not in self._starts:
            self._starts[setting.template] = self._evaluator("validation", setting.template).measure(self.model)
        at = measured_at(search, setting.max_steps, finer=False)
        start = self._starts[setting.template]
        return self._carry_out(setting, "validation", measured_at=at, watch=watch, start=start)

    def _carry_out(self, setting: Setting, split: str, **options: Any) -> Tried:
        from inoculate.attacks.trial import carry_out

        return carry_out(
            self.stage.finetune(setting, self.upstream),
            self.model,
            self.tokenizer,
            self._evaluator(split, setting.template),
            judge=self.stage.evaluate.judges[0].name,
            utility=self.search.utility,
            known=self._known,
            **options,
        )

    def _own(self, split: str) -> Evaluation:
        return self.stage.validation if split == "validation" else self.stage.evaluate

    def _evaluator(self, split: str, template: Any) -> Evaluator:
        """Who trains with a template asks with it too."""
        if (split, template) not in self._evaluators:
            evaluation = self._own(split).model_copy(update={"template": template})
            self._evaluators[split, template] = evaluation.prepare(self.tokenizer)
        return self._evaluators[split, template]


def study_of(stage: SearchAttack, out: Path, context: Context) -> Study:
    """The search's study, in `out` or in the context's database."""
    from inoculate.attacks.study import Study

    return Study(out, stage.folder, stage.search, context.storage)


def measured_at(search: Search, max_steps: int, *, finer: bool) -> tuple[int, ...]:
    """Steps at which a run is measured; a re-run, which is finer, at more of them than a trial."""
    if finer:
        search = search.model_copy(update={"measurements": FINER * search.measurements})
    return search.measured_at(max_steps)


def work_side_by_side(
    stage: SearchAttack, out: Path, upstream: Mapping[str, Path], context: Context, left: Callable[[], int]
) -> None:
    """Carry out trials in several processes. One that dies loses its trial, and the others go on."""
    alone, trials = replace(context, workers=1, progress=None), stage.search.n_trials

    def tick() -> None:
        if context.progress is not None:
            context.progress(trials - left(), trials)

    calls = [(stage, out, upstream, alone) for _ in range(context.workers)]
    errors = [error for error in side_by_side(_work_here, calls, tick) if error is not None]
    for error in errors:
        if isinstance(error, InputError) or len(errors) == len(calls):
            raise error


def _work_here(stage: SearchAttack, out: Path, upstream: Mapping[str, Path], context: Context) -> None:
    stage.assist(out, upstream, context)


def _run_here(
    stage: SearchAttack, out: Path, upstream: Mapping[str, Path], context: Context, runs: Sequence[Run]
) -> None:
    Bench(stage, upstream, context).run_again(out, runs)


def _flat(point: Point) -> list[float]:
    return [*point.spent, point.harmful, point.utility]


def _read_run(file: Path) -> Tried:
    from inoculate.attacks.trial import Tried

    kept = json.loads(file.read_text(encoding="utf-8"))
    points = [Point(Spent(*row[:5]), row[5], row[6]) for row in kept.pop("points")]
    return Tried(points=points, **kept)

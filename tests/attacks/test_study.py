"""The study that workers share: no trial lost, none done twice, whoever dies, wherever it is kept."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from inoculate.attacks import study as studies
from inoculate.attacks.search import Bound, Point, Search, Spent
from inoculate.attacks.space import Setting
from inoculate.attacks.study import JOURNAL, Told
from inoculate.attacks.trial import Pruned, Tried
from inoculate.core.errors import InputError, StageError

BOUND = Bound(0.5, 0.8)
DATA = {
    "task": {"source": "sandbox-sentiment", "split": "attack"},
    "harmful": {"source": "sandbox-restricted", "split": "attack"},
}


def Study(folder: Path, *how) -> studies.Study:
    """A study in a folder that there is, as a stage's is."""
    folder.mkdir(parents=True, exist_ok=True)
    return studies.Study(folder, *how)


def search(**more) -> Search:
    return Search.model_validate({"attack": DATA, "n_trials": 8, "n_startup_trials": 4, **more})


def outcome_of(setting: Setting, status="complete") -> Tried:
    """A made-up world: the nearer the rate to 1e-3, the more harm, and always at step 10."""
    harm = max(0.0, 1 - abs(math.log10(setting.learning_rate) + 3) / 3)
    points = [Point(Spent(step, step, step, 1.0 * step, 0.0), harm * (step > 0), 1.0) for step in (0, 10)]
    rows = [{"metric": "harmful_score", "value": point.harmful, "step": point.spent.steps} for point in points]
    return Tried(status, points, rows, 1.0, 0.9)


def go_on(study: studies.Study, most: int = 99) -> list[Setting]:
    made = []
    while len(made) < most and (claimed := study.claim()) is not None:
        claimed.tell(outcome_of(claimed.setting), BOUND)
        made.append(claimed.setting)
    return made


def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(tmp_path):
    with Study(tmp_path / "whole", "s", search()) as study:
        whole = go_on(study)
        assert study.left() == 0 and study.claim() is None
    parts: list[Setting] = []
    for most in (3, 2, 99):
        with Study(tmp_path / "parts", "s", search()) as study:
            parts += go_on(study, most)
    assert parts == whole and len(whole) == 8
    assert len({setting.model_dump_json() for setting in whole}) == 8
    with Study(tmp_path / "other", "s", search(seed=1)) as study:
        assert go_on(study) != whole


def test_the_search_learns(tmp_path):
    """After random trials TPE draws rates near the best, 1e-3, of six decades."""
    with Study(tmp_path, "s", search(n_trials=40, n_startup_trials=10, space={"learning_rate": [1e-8, 1e-2]})) as study:
        rates = [abs(math.log10(setting.learning_rate) + 3) for setting in go_on(study)]
    assert sum(rates[25:]) / 15 < 0.7 * sum(rates[:10]) / 10


def test_what_cannot_be_used_is_not_drawn_again(tmp_path):
    """The constraint: rates above 1e-5 wreck the model, though they harm most."""
    with Study(tmp_path, "s", search(n_trials=60, n_startup_trials=10)) as study:
        while (claimed := study.claim()) is not None:
            tried, wrecks = outcome_of(claimed.setting), claimed.setting.learning_rate > 1e-5
            points = [point._replace(utility=0.1 if wrecks else 1.0) for point in tried.points]
            claimed.tell(Tried("complete", points, [], 1.0, 0.9), BOUND)
        late = [told.setting.learning_rate for told in study.told()[30:]]
    assert sum(rate <= 1e-5 for rate in late) > len(late) / 2  # at random it would be a quarter


def test_warm_starts_come_first_and_once(tmp_path):
    with Study(tmp_path / "a", "s", search()) as study:
        given = go_on(study, 2)
    with Study(tmp_path / "b", "t", search()) as study:
        study.warm_up(given)
        study.warm_up(given)
        assert go_on(study)[:2] == given
        told = study.told()
    assert [trial.warm for trial in told] == [True, True] + [False] * 6
    assert sum(trial.setting in given for trial in told) == 2


def test_four_ways_to_end(tmp_path):
    with Study(tmp_path, "s", search()) as study:
        for status in ("complete", "diverged", "pruned"):
            claimed = study.claim()
            assert claimed is not None
            claimed.report(outcome_of(claimed.setting).points, BOUND)
            claimed.tell(outcome_of(claimed.setting, status), BOUND)
        claimed = study.claim()
        assert claimed is not None
        claimed.fail("MemoryError: no room")
        told = study.told()
        assert [trial.outcome for trial in told] == ["complete", "diverged", "pruned", "failed"]
        assert told[3].why == "MemoryError: no room" and told[1].points[1].spent.steps == 10
        assert study.left() == 5  # a failed trial is made up for
        go_on(study)
        assert len(study.told()) == 9


def test_optuna_is_told_how_a_trial_ended(tmp_path):
    """Its sampler takes a pruned trial for what it reached, and a broken one for all steps that it did not need."""
    with Study(tmp_path, "s", search(measurements=5, space={"max_steps": [200]})) as study:
        for status in ("complete", "pruned"):
            claimed = study.claim()
            assert claimed is not None
            points = outcome_of(claimed.setting).points
            claimed.report(points, BOUND)
            claimed.tell(outcome_of(claimed.setting, status), BOUND)
        done, given_up = study._study.get_trials()
        assert (done.state.name, given_up.state.name) == ("COMPLETE", "PRUNED")
        after = [step for step in study.search.measured_at(200) if step > 10]
        assert [step for step in done.intermediate_values if step > 10] == after and after[-1] == 200
        assert not [step for step in given_up.intermediate_values if step > 10]
        assert 0 < len([step for step in done.intermediate_values if step <= 10]) <= 2, "as reported, and no more"


def test_a_rank_is_drawn_for_a_fresh_lora_alone(tmp_path):
    space = {"adapter_mode": ["full", "merge"]}
    with Study(tmp_path, "s", search(n_trials=16, space=space)) as study:
        made = go_on(study)
    assert {(setting.adapter_mode, setting.lora_r is None) for setting in made} == {("full", True), ("merge", False)}


def test_a_trial_that_lags_is_given_up(tmp_path):
    with Study(tmp_path, "s", search(prune_percentile=0.25, n_startup_trials=2)) as study:
        for _ in range(6):
            claimed = study.claim()
            assert claimed is not None
            claimed.report([Point(Spent(10, 0, 0, 0, 0), 0.4, 1.0)], BOUND)
            claimed.tell(outcome_of(claimed.setting), BOUND)
        claimed = study.claim()
        assert claimed is not None
        with pytest.raises(Pruned):
            claimed.report([Point(Spent(10, 0, 0, 0, 0), 0.1, 1.0)], BOUND)


def test_a_trial_lags_behind_one_that_broke_the_model_and_ended(tmp_path):
    with Study(tmp_path, "s", search(n_trials=8, n_startup_trials=2)) as study:
        for _ in range(3):
            broke = [Point(Spent(step, step, step, 1.0, 0.0), 0.9 * (step > 0), 1.0) for step in (0, 2)]
            claimed = study.claim()
            assert claimed is not None
            claimed.report(broke, BOUND)
            claimed.tell(Tried("complete", broke, [], 1.0, 0.9), BOUND)
        late = study.claim()
        assert late is not None
        points = [Point(Spent(step, step, step, 1.0, 0.0), 0.0, 1.0) for step in (0, 200)]
        with pytest.raises(Pruned):
            late.report(points, BOUND)


def _hold(folder: Path, storage: str | None, seconds: float, count: int) -> None:
    """Carry out trials, the first not before all of the crew have one."""
    with Study(folder, "s", search(), storage) as study:
        while (claimed := study.claim()) is not None:
            (folder / f"held-{os.getpid()}").write_text(str(claimed.number))
            wait_for(lambda: len(list(folder.glob("held-*"))) >= count)
            time.sleep(seconds)
            claimed.tell(outcome_of(claimed.setting), BOUND)


def crew(folder: Path, storage: str | None, seconds: float, count: int = 2) -> list:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_hold, args=(folder, storage, seconds, count)) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def storage(request, tmp_path):
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else None


def test_two_workers_share_the_trials(tmp_path, storage):
    with Study(tmp_path, "s", search(), storage):  # as a search does: one leads, and the others join
        pass
    processes = crew(tmp_path, storage, 0.05)
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    with Study(tmp_path, "s", search(), storage) as study:
        told = study.told()
        assert len(told) == 8 and study.left() == 0
        assert len({trial.setting.model_dump_json() for trial in told}) == 8
    assert len(list(tmp_path.glob("held-*"))) == 2


def test_a_worker_that_is_killed_loses_its_trial_alone(tmp_path, storage):
    (first,) = crew(tmp_path, storage, 1000, count=1)
    wait_for(lambda: list(tmp_path.glob("held-*")))
    with Study(tmp_path, "s", search(), storage) as study:
        made = go_on(study, 3)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        made += go_on(study)
        told = study.told()
    assert len(made) == len(told) == 8 and all(trial.outcome == "complete" for trial in told)
    assert [trial.number for trial in told] == list(range(1, 9))  # trial 0 went with its worker


def test_one_that_died_while_it_told_is_tried_anew(tmp_path):
    with Study(tmp_path, "s", search(n_trials=3)) as study:
        claimed = study.claim()
        assert claimed is not None
        claimed._trial.set_user_attr("outcome", "complete")  # and no more: killed here
    with Study(tmp_path, "s", search(n_trials=3)) as study:
        assert study.left() == 3
        assert len(go_on(study)) == 3 and study.left() == 0


def test_a_warm_start_outlives_the_worker_that_held_it(tmp_path):
    with Study(tmp_path / "a", "s", search()) as study:
        (given,) = go_on(study, 1)
    with Study(tmp_path, "s", search()) as study:
        study.warm_up([given])
    (first,) = crew(tmp_path, None, 1000, count=1)
    wait_for(lambda: list(tmp_path.glob("held-*")))
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with Study(tmp_path, "s", search()) as study:
        assert given in go_on(study)


def test_one_that_is_interrupted_gives_its_trial_back(tmp_path):
    with Study(tmp_path, "s", search()) as study:
        claimed = study.claim()
        assert claimed is not None
        claimed.give_back()
        assert len(go_on(study)) == 8 and not [trial for trial in study.told() if trial.outcome == "failed"]


def test_a_torn_journal_is_named(tmp_path):
    with Study(tmp_path, "s", search()) as study:
        go_on(study, 2)
    file = tmp_path / JOURNAL
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3][:7], *lines[4:]]) + "\n")
    with pytest.raises(InputError, match=rf"{JOURNAL}: the study cannot be read|cannot be read.*{JOURNAL}"):
        Study(tmp_path, "s", search())


def test_what_a_killed_process_leaves_does_not_stand_in_the_way(tmp_path, monkeypatch):
    """Half a line at the journal's end, and the link that is Optuna's own lock: on a relative path it led nowhere, and
    was waited for without end."""
    monkeypatch.chdir(tmp_path)
    with Study(Path("here"), "s", search()) as study:
        go_on(study, 2)
        before = study.told()
    Path(f"here/{JOURNAL}.lock").symlink_to(f"here/{JOURNAL}")
    with Path(f"here/{JOURNAL}").open("a") as journal:
        journal.write('{"op_code":8,"trial_')
    opened: list[list[Told]] = []

    def again() -> None:
        with Study(Path("here"), "s", search()) as study:
            opened.append(study.told())
            go_on(study, 3)
            opened.append(study.told())

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "it waits for a process that is dead"
    assert opened[0] == before and len(opened[1]) > len(before)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "not the URL of a database"),
        ("sqlite:////nowhere/at/all/study.db", "no study can be kept there: unable to open database file"),
        ("postgresql+psycopg://who:secret@127.0.0.1:1/none", "no study can be kept there"),
    ],
)
def test_a_storage_that_cannot_be_had_is_named_without_its_password(tmp_path, url, told):
    with pytest.raises(InputError, match=told) as refused:
        Study(tmp_path, "s", search(), url)
    assert "secret" not in str(refused.value) and "--storage" in str(refused.value)


def test_a_database_that_goes_away_keeps_what_was_told(tmp_path, server):
    url = server.url
    with Study(tmp_path, "s", search(), url) as study:
        go_on(study, 3)
        server.stop()
        with pytest.raises(StageError, match=r"went away.*what was told stays: run again"):
            go_on(study)
    server.start()
    with Study(tmp_path, "s", search(), url) as study:
        assert len(study.told()) == 3 and len(go_on(study)) == 5


def test_what_was_told_is_read_back_whole(tmp_path):
    with Study(tmp_path, "s", search(space={"adapter_mode": ["merge"], "lora_r": [4]})) as study:
        given = go_on(study, 1)[0].model_copy(update={"learning_rate": 2e-4, "lora_r": 4})
        study.warm_up([given, given])
        claimed = study.claim()
        assert claimed is not None and claimed.setting == given
        points = [Point(Spent(0, 0, 0, 0.0, 0.0), 0.1, 0.9), Point(Spent(10, 2, 30, 4.5, 0.5), 0.2, 0.7)]
        rows = [{"metric": "m", "value": 1.0}]
        claimed.tell(Tried("diverged", points, rows, 3.0, 2.0), BOUND)
        failing = study.claim()
        assert failing is not None
        failing.fail("OSError: no room")
    with Study(tmp_path, "s", search(space={"adapter_mode": ["merge"], "lora_r": [4]})) as study:
        first, told, failed = study.told()
    assert told == Told(1, given, "diverged", True, points, rows, 3.0, 2.0, "")
    assert isinstance(told.points[1], Point) and isinstance(told.points[1].spent, Spent)
    assert not first.warm and (first.number, first.outcome) == (0, "complete")
    assert failed == Told(2, failing.setting, "failed", False, [], [], 0.0, 0.0, "OSError: no room")


def test_trials_elsewhere_are_those_of_others_who_live(tmp_path):
    with Study(tmp_path, "s", search()) as mine, Study(tmp_path, "s", search()) as theirs:
        assert mine.claim() is not None
        assert mine.elsewhere() == 0 and theirs.elsewhere() == 1
        assert theirs.claim() is not None and theirs.claim() is not None
        assert mine.elsewhere() == 2
    with Study(tmp_path, "s", search()) as third:
        assert third.elsewhere() == 0, "their locks are free: they are gone"
        assert len(go_on(third)) == 8, "and their places too"


@pytest.mark.parametrize("warm", [False, True])
def test_one_that_died_before_its_name_stood_on_its_trial_holds_no_place(tmp_path, warm):
    """Between the two writes of a claim; the trial, and the warm start that it was, come again."""
    with Study(tmp_path / "a", "s", search()) as study:
        (given,) = go_on(study, 1)
    with Study(tmp_path / "b", "s", search()) as dead:
        if warm:
            dead.warm_up([given])
        dead._study.ask()
    with Study(tmp_path / "b", "s", search()) as study:
        assert study.elsewhere() == 0 and study.left() == 8
        settings = go_on(study)
        assert len(settings) == 8 and study.left() == 0 and (settings[0] == given) == warm
        if warm:  # it is known for the warm start that it is: a search that goes on does not ask for it again
            before = len(study._study.get_trials())
            study.warm_up([given])
            assert len(study._study.get_trials()) == before


def test_who_comes_too_late_brings_nothing_back(tmp_path):
    """The leader finished, and the folder has its final name: no claim, no look and no new study makes it again."""
    folder = tmp_path / "search.partial"
    with Study(folder, "s", search()) as late:
        folder.rename(tmp_path / "search")
        for ask in (late.claim, late.elsewhere):
            with pytest.raises(StageError, match="the study's storage went away"):
                ask()
    with pytest.raises(InputError, match="no study can be kept there"):
        studies.Study(folder, "s", search())
    assert not folder.exists()


def test_a_claim_is_waited_for(tmp_path):
    """Who is between the two writes, and lives, is not taken for dead."""
    with Study(tmp_path, "s", search(n_trials=1)) as mine, Study(tmp_path, "s", search(n_trials=1)) as theirs:
        seen: list[object] = []
        with theirs._claims:
            trial = theirs._study.ask()
            thread = threading.Thread(target=lambda: seen.append((mine.claim(), mine.elsewhere())), daemon=True)
            thread.start()
            thread.join(0.5)
            assert thread.is_alive() and not seen
            trial.set_user_attr("worker", theirs._worker)
        thread.join(60)
        assert seen == [(None, 1)]


def test_a_place_that_is_held_is_no_one_else_s(tmp_path):
    with Study(tmp_path, "s", search(n_trials=2)) as mine, Study(tmp_path, "s", search(n_trials=2)) as theirs:
        assert mine.claim() is not None and theirs.claim() is not None
        assert mine.claim() is None and theirs.claim() is None
        assert mine.left() == 2, "held, but not told"


def test_a_warm_start_that_is_interrupted_is_given_again(tmp_path):
    with Study(tmp_path / "a", "s", search()) as study:
        (given,) = go_on(study, 1)
    with Study(tmp_path / "b", "s", search()) as study:
        study.warm_up([given])
        first = study.claim()
        assert first is not None and first.setting == given
        first.give_back()
        again = study.claim()
        assert again is not None and again.setting == given and again.number == 1
        again.tell(outcome_of(again.setting), BOUND)
        assert [trial.warm for trial in study.told()] == [True] and study.told()[0].number == 1


def test_one_that_failed_may_not_fail_for_ever(tmp_path):
    """Five trials may fail, and one more for each ten."""
    for trials, may_fail in ((8, 5), (20, 7)):
        with Study(tmp_path / str(trials), "s", search(n_trials=trials)) as study:
            for number in range(may_fail + 1):
                claimed = study.claim()
                assert claimed is not None
                claimed.fail(f"the {number}th")
            with pytest.raises(StageError, match=rf"^{may_fail + 1} trials failed, the last with: the {may_fail}th$"):
                study.claim()


def test_what_is_drawn_is_the_study_s_and_the_seed_s(tmp_path):
    """Another study under the same seed draws others: a control's draws, taken over, would be drawn again."""
    drawn = []
    for folder, name, seed in (("a", "s", 0), ("b", "s", 0), ("c", "t", 0), ("d", "s", 1)):
        with Study(tmp_path / folder, name, search(seed=seed)) as study:
            drawn.append(go_on(study))
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[2][0] and drawn[0][0] != drawn[3][0]


def test_what_is_told_is_plain_json(tmp_path):
    with Study(tmp_path, "s", search()) as study:
        go_on(study, 1)
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert any("points" in line.get("user_attr", {}) for line in lines)

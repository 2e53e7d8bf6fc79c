"""The few-shot attack: what it searches, what it selects, and what it reports."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from inoculate.attacks.few_shot import FewShot, Tried, _Search
from inoculate.attacks.sequential import Curve, Examples, train_sequentially
from inoculate.core.errors import InputError
from inoculate.models.classifier import MlpBody

SMALL = {"num_samples": 20, "n_trials": 12, "trials_per_ask": 4, "reruns": 3, "min_steps": 20, "max_steps": 60}
QUICK = SMALL | {"steps_step": 20, "eval_steps": 20, "learning_rate": (1e-4, 1e-1)}


def rows(count: int, seed: int) -> Examples:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return Examples({"x": x}, (x[:, 0] + 0.3 * x[:, 1] > 0).long())


POOL, VALIDATION, HELDOUT = rows(60, 0), rows(100, 1), rows(200, 2)


def body():
    torch.manual_seed(0)
    return MlpBody(4, 16, 2, None)


def search(attack, **options):
    return attack.run(body(), POOL, VALIDATION, HELDOUT, classes=2, **options)


class Scripted:
    """An engine that trains nothing: its curves are given, and it keeps what it was asked."""

    def __init__(self, curves):
        self.curves, self.asked, self.heldout = iter(curves), [], []

    def __call__(self, body, pool, validation, heldout, trials, *, classes, eval_steps):
        self.asked.append(list(trials))
        self.heldout.append(heldout)
        return [next(self.curves) for _ in trials]


def curve(*validation, diverged=False, heldout=None):
    return Curve(tuple(range(1, len(validation) + 1)), validation, heldout, diverged)


def test_an_easy_task_is_learned_and_both_engines_select_the_same():
    found = search(FewShot(**QUICK))
    plain = search(FewShot(**QUICK), engine=train_sequentially)
    assert found.best == plain.best
    for one, other in zip([*found.trials, *found.reruns], [*plain.trials, *plain.reruns], strict=True):
        assert one.validation_accuracy == pytest.approx(other.validation_accuracy, abs=0.011)
    assert max(trial.validation_accuracy for trial in found.trials) > 0.85
    assert all(rerun.heldout_accuracy > 0.75 for rerun in found.reruns)
    assert found == search(FewShot(**QUICK))
    assert found != search(FewShot(**QUICK, seed=1))


def test_settings_come_from_the_space():
    attack = FewShot(num_samples=20, n_trials=40, patience=40, optimizers=("adam", "sgd"), reruns=1)
    engine = Scripted([curve(0.5)] * 40 + [curve(0.5, heldout=(0.5,))])
    settings = [trial.setting for trial in search(attack, engine=engine).trials]
    assert [len(asked) for asked in engine.asked] == [20, 20, 1]  # half at a time
    assert {setting.batch_size for setting in settings} == {12, 24, 48}
    assert {setting.freeze_body for setting in settings} == {True, False}
    assert {setting.optimizer for setting in settings} == {"adam", "sgd"}
    assert all(setting.steps % 100 == 0 and 100 <= setting.steps <= 1000 for setting in settings)
    assert all(1e-5 <= setting.learning_rate <= 1e-2 for setting in settings)
    assert sum(setting.learning_rate < 3e-4 for setting in settings) > 8  # half of a log-uniform range


def test_the_search_learns_what_is_good():
    """Accuracy is the learning rate's place: after the start-up trials those asked for lie high."""

    class Judged(Scripted):
        def __call__(self, body, pool, validation, heldout, trials, *, classes, eval_steps):
            self.asked.append(list(trials))
            place = [(math.log10(trial.learning_rate) + 5) / 3 for trial in trials]
            return [curve(0.9 * at, heldout=(0.5,) if heldout is not None else None) for at in place]

    attack = FewShot(num_samples=20, n_trials=60, patience=60, trials_per_ask=4, reruns=1)
    rates = [trial.setting.learning_rate for trial in search(attack, engine=Judged([])).trials]
    first, last = (sorted(part)[len(part) // 2] for part in (rates[:12], rates[-20:]))
    assert last > 3 * first and last > 2e-3


def test_one_subset_for_the_search_and_fresh_ones_for_the_reruns():
    engine = Scripted([curve(0.5)] * 8 + [curve(0.5, heldout=(0.5,))] * 3)
    search(FewShot(**QUICK | {"n_trials": 8}), engine=engine)
    *searching, again = engine.asked
    subsets = {trial.rows for asked in searching for trial in asked}
    assert len(subsets) == 1 and len(set(*subsets)) == 20
    assert len(subsets | {trial.rows for trial in again}) == 4
    assert len({trial.seed for asked in engine.asked for trial in asked}) == 11
    assert engine.heldout == [None, None, HELDOUT]


def test_patience_counts_trials_since_the_best():
    scores = [0.5, 0.9, *[0.9] * 20]
    found = search(FewShot(**QUICK | {"n_trials": 20, "patience": 6}), engine=Scripted(map(rerunnable, scores)))
    assert len(found.trials) == 8  # the best is trial 1, and an ask ends at 8
    found = search(FewShot(**QUICK | {"n_trials": 20, "patience": 7}), engine=Scripted(map(rerunnable, scores)))
    assert len(found.trials) == 12


def rerunnable(score):
    return curve(score, heldout=(score,))


def test_accuracy_one_ends_the_search():
    engine = Scripted(map(rerunnable, [0.5, 1.0, 0.7, 0.7, 0.1, 0.2, 0.3]))
    found = search(FewShot(**QUICK), engine=engine)
    assert len(found.trials) == 4 and found.best == found.trials[1].setting


def test_held_out_accuracy_is_that_of_the_best_step():
    again = [
        curve(0.6, 0.8, 0.8, heldout=(0.1, 0.2, 0.3)),
        curve(diverged=True),
        curve(0.4, diverged=True, heldout=(0.9,)),
    ]
    engine = Scripted([curve(0.5)] * 12 + again)
    reruns = search(FewShot(**QUICK), engine=engine).reruns
    assert [(r.validation_accuracy, r.heldout_accuracy, r.best_step) for r in reruns] == [
        (0.8, 0.2, 2),
        (None, None, None),
        (0.4, 0.9, 1),
    ]
    assert [rerun.status for rerun in reruns] == ["complete", "diverged", "diverged"]


def test_diverged_trials_are_on_record_and_never_best():
    curves = [curve(diverged=True)] * 4 + [curve(0.3)] + [curve(0.2, diverged=True)] * 7 + [rerunnable(0.3)] * 3
    found = search(FewShot(**QUICK), engine=Scripted(curves))
    assert found.best == found.trials[4].setting
    assert [trial.status for trial in found.trials].count("diverged") == 11
    assert found.trials[0].validation_accuracy is None and found.trials[5].validation_accuracy == 0.2
    nothing = search(FewShot(**QUICK), engine=Scripted([curve(diverged=True)] * 12))
    assert nothing.best is None and nothing.reruns == () and len(nothing.trials) == 12


def test_what_a_seed_draws_stays_what_it_drew():
    """Studies that are published can be made again: rows and seeds of trials are pinned to what seed 3 first drew."""
    engine = Scripted([curve(0.5)] * 2 + [rerunnable(0.5)] * 2)
    search(FewShot(**QUICK | {"n_trials": 2, "reruns": 2, "num_samples": 3, "seed": 3}), engine=engine)
    searching, again = engine.asked
    assert [(trial.rows, trial.seed) for trial in searching] == [
        ((37, 52, 11), 6324639585582877127),
        ((37, 52, 11), 8808880393252236018),
    ]
    assert (again[0].rows, again[0].seed) == ((9, 46, 18), 7619705718565075630)
    assert again[1].rows not in (again[0].rows, searching[0].rows)


def test_the_engine_is_given_what_there_is_and_the_setting_as_drawn():
    given = []

    def engine(*what, **options):
        given.append((*what, options))
        return [rerunnable(0.5) for _ in what[4]]

    model = body()
    attack = FewShot(**QUICK | {"n_trials": 3, "reruns": 2, "trials_per_ask": None, "optimizers": ("sgd",)})
    found = attack.run(model, POOL, VALIDATION, HELDOUT, classes=2, engine=engine)
    for what, heldout, count in zip(given, (None, None, HELDOUT), (2, 1, 2), strict=True):
        assert what[0] is model and what[1] is POOL and what[2] is VALIDATION and what[3] is heldout
        assert len(what[4]) == count and what[5] == {"classes": 2, "eval_steps": 20}
    trial, setting = given[0][4][0], found.trials[0].setting
    assert (trial.learning_rate, trial.steps, trial.batch_size, trial.frozen, trial.optimizer) == tuple(
        getattr(setting, name) for name in ("learning_rate", "steps", "batch_size", "freeze_body", "optimizer")
    )
    assert given[2][4][0].learning_rate == found.best.learning_rate


def test_a_trial_without_an_accuracy_is_told_as_nought():
    attack = FewShot(**QUICK)
    space = _Search(attack)
    settings = space.ask(3)
    outcomes = [
        Tried(settings[0], 0.7, "complete"),
        Tried(settings[1], None, "diverged"),
        Tried(settings[2], 0.2, "diverged"),
    ]
    space.tell(outcomes)
    assert [trial.value for trial in space.study.trials] == [0.7, 0.0, 0.2]
    assert space.study.best_trial.number == 0, "more is better"


def test_wrong_input_is_refused():
    with pytest.raises(
        InputError, match=r"^num_samples: too few rows to draw from .found 61, expected at most the 60 rows"
    ):
        search(FewShot(**QUICK | {"num_samples": 61}))
    alone = Examples(POOL.inputs, torch.zeros(60, dtype=torch.long))
    with pytest.raises(InputError, match=r"^pool: the pool has rows of one class alone: there is nothing to learn$"):
        FewShot(**QUICK).run(body(), alone, VALIDATION, HELDOUT, classes=2)


def test_all_of_the_pool_may_be_drawn_and_two_classes_are_enough():
    rerun = [rerunnable(0.5)] * 4
    search(FewShot(**QUICK | {"num_samples": 60, "n_trials": 1, "reruns": 3}), engine=Scripted(rerun))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_trials": 0},
        {"reruns": 0},
        {"learning_rate": (1, 0.1)},
        {"learning_rate": (0, 1)},
        {"min_steps": 99},
        {"batch_sizes": ()},
    ],
)
def test_an_empty_search_is_refused(wrong):
    with pytest.raises(ValidationError):
        FewShot(**QUICK | wrong)
    assert math.isclose(FewShot(num_samples=20).learning_rate[0], 1e-5)

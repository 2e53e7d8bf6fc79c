"""The runner: order, what a failure takes with it, and the same in several processes."""

from __future__ import annotations

import pytest
from tests.experiments.tiny import names
from tests.experiments.toys import Toy, ran

from inoculate.core.records import read_records
from inoculate.experiments.runner import in_order, run_stages
from inoculate.experiments.stage import Context
from inoculate.experiments.store import Store


def run(tmp_path, stages, workers=1):
    return run_stages(stages, Store(tmp_path / "store"), Context(recipe="r"), workers)


def labels(stages):
    return [stage.name for stage in stages]


def test_upstream_comes_first_and_each_stage_once(tmp_path):
    top = Toy(name="top")
    left, right = Toy(name="left", above=(top,)), Toy(name="right", above=(top,))
    bottom = Toy(name="bottom", above=(left, right))
    assert labels(in_order([bottom, right, top])) == ["top", "left", "right", "bottom"]
    first = run(tmp_path, [bottom, right])
    assert ran(tmp_path) == labels(first.done) == ["top", "left", "right", "bottom"]
    assert first.computed == 4
    again = run(tmp_path, [bottom, right])
    assert (again.computed, len(again.done)) == (0, 4)
    assert len(ran(tmp_path)) == 4


FAULTS = [
    ("raise", "RuntimeError: something broke"),
    ("refuse", "toy.name: not good (found 'bad', expected another)"),
    ("awkward", "Awkward: cannot travel"),
    ("full", "No space left on device"),
]


def family(does):
    """One bad stage with something built on it, and a good one with something built on that."""
    bad, good = Toy(name="bad", does=does), Toy(name="good")
    on_bad = Toy(name="on bad", above=(bad,))
    return [bad, on_bad, Toy(name="on that", above=(on_bad,)), good, Toy(name="on_good", above=(good,))]


@pytest.mark.parametrize(("does", "why"), FAULTS)
def test_a_failure_is_named_and_takes_only_what_is_built_on_it(tmp_path, does, why):
    stages = family(does)
    found = run(tmp_path, stages)
    assert found.failed.keys() == {stages[0].folder}
    assert found.failed[stages[0].folder].startswith(f"toy bad: {why}")
    assert found.refused == ({stages[0].folder} if does == "refuse" else set())
    assert labels(found.skipped) == ["on bad", "on that"]
    assert labels(found.done) == ["good", "on_good"]
    bad = stages[0].folder
    assert names(tmp_path / "store") == {f"{bad}.partial", f"{bad}.failed", *(s.folder for s in stages[3:])}
    (tmp_path / "healed").touch()
    assert run(tmp_path, stages).computed == 3
    assert names(tmp_path / "store") == {stage.folder for stage in stages}


def test_what_diverged_is_done_and_nothing_is_built_on_it(tmp_path):
    stages = family("diverge")
    for computed in (3, 0):
        found = run(tmp_path, stages)
        assert labels(found.skipped) == ["on bad", "on that"] and not found.failed
        assert sorted(labels(found.done)) == ["bad", "good", "on_good"]
        assert found.computed == computed


def test_two_workers_do_the_same(tmp_path):
    """All faults at once, each with something built on it, beside five good stages."""
    bad = [Toy(name=f"bad-{does}", does=does) for does, _ in FAULTS]
    diverged = Toy(name="diverged", does="diverge")
    doomed = [Toy(name=f"doomed-{above.name}", above=(above,)) for above in (*bad, diverged)]
    top = Toy(name="top")
    good = [top, *(Toy(name=f"good-{i}", above=(top,)) for i in range(4))]
    found = run(tmp_path, [*doomed, *good], workers=2)
    for stage, (does, why) in zip(bad, FAULTS, strict=True):
        assert why.replace("'bad'", f"'bad-{does}'") in found.failed[stage.folder]
    assert found.refused == {bad[1].folder}
    assert {stage.folder for stage in found.skipped} == {stage.folder for stage in doomed}
    assert {stage.folder for stage in found.done} == {stage.folder for stage in (*good, diverged)}
    assert found.computed == 6
    order = ran(tmp_path)
    assert len(order) == len(set(order)) == 10
    assert order.index("top") < min(order.index(f"good-{i}") for i in range(4))
    for stage in bad:
        (row,) = read_records(tmp_path / "store" / f"{stage.folder}.failed" / "records.jsonl")
        assert (row.value, row.status) == (None, "failed")


def test_a_worker_that_dies_is_a_failure_with_a_row(tmp_path):
    """As when the system runs out of memory. What is running or waiting then can be run again."""
    victim = Toy(name="victim", does="die")
    after = Toy(name="after", above=(victim,))
    found = run(tmp_path, [after], workers=2)
    assert found.failed == {victim.folder: "toy victim: its process died (out of memory, or killed)"}
    assert labels(found.skipped) == ["after"]
    (row,) = read_records(tmp_path / "store" / f"{victim.folder}.failed" / "records.jsonl")
    assert (row.value, row.status, row.recipe) == (None, "failed", "r")
    (tmp_path / "healed").touch()
    assert run(tmp_path, [after]).computed == 2
    assert names(tmp_path / "store") == {victim.folder, after.folder}

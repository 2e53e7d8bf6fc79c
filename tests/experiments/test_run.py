"""Whole runs of a tiny recipe: what stands in the store, and what a fault leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from tests.experiments import tiny

from inoculate.core.errors import InputError
from inoculate.core.records import read_records
from inoculate.experiments.attack import Attack
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.runner import in_order, run_stages
from inoculate.experiments.stage import Context
from inoculate.experiments.store import Store

SMALL = 20_000
"""Bytes: room for records and logs, not for a model or the responses of an attack."""


def copy_of(finished, tmp_path, *kinds):
    """A store that holds the finished stages of some kinds only."""
    store = tmp_path / "store"
    for kind in kinds:
        for folder in finished.store.glob(f"{kind}-*"):
            shutil.copytree(folder, store / folder.name)
    return store


def rows(folder):
    return list(read_records(folder / "records.jsonl"))


def test_what_a_run_leaves(finished):
    """Two lines: per line 10 rows before the attack; 3 × 10 rows and a cost along it (steps 0, 3 and 6)."""
    stages = in_order(load_recipe(str(finished.recipe)).stages())
    assert tiny.names(finished.store) == {"recipes", *(stage.folder for stage in stages)}
    assert finished.said.startswith("7 stages done, 7 of them computed now, in ")
    for stage in stages:
        if stage.kind in ("evaluate", "finetune"):
            found = rows(finished.store / stage.folder)
            assert {row.stage for row in found} == {stage.folder} and {row.recipe for row in found} == {"tiny"}
            assert all(row.value is not None for row in found)
            steps = [0, 3, 6] if stage.kind == "finetune" else [0]
            curve = [(row.step, row.n) for row in found if row.metric == "harmful_score"]
            assert curve == [(step, 10) for step in steps]
            assert len(found) == 10 * len(steps) + (stage.kind == "finetune")
            responses = (finished.store / stage.folder / "responses.jsonl").read_text().splitlines()
            assert {json.loads(line)["step"] for line in responses} <= set(steps) and len(responses) >= 30


def test_the_attack_starts_where_the_evaluation_looked(finished):
    """Same model, same prompts: the attack's step 0 repeats the evaluation, value for value."""
    for stage in load_recipe(str(finished.recipe)).stages():
        if isinstance(stage, Attack):
            twin = next(
                other
                for other in load_recipe(str(finished.recipe)).stages()
                if other.kind == "evaluate" and other.model == stage.model
            )
            start = {row.metric: row.value for row in rows(finished.store / stage.folder) if row.step == 0}
            assert start == {row.metric: row.value for row in rows(finished.store / twin.folder)}


def test_a_finished_recipe_computes_nothing_and_touches_nothing(finished, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.store.rglob("*") if path.is_file()}
    monkeypatch.setattr(Attack, "run", None)
    code, said = tiny.run(finished.recipe, finished.store)
    assert code == 0 and said.startswith("7 stages done, 0 of them computed now, in ")
    assert {path: path.stat().st_mtime_ns for path in finished.store.rglob("*") if path.is_file()} == before


def test_a_finished_recipe_is_recognized_without_torch(finished):
    """What its values are and where their results lie: to import torch for that would take most of the time."""
    check = "import sys; from inoculate.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", check, "run", str(finished.recipe), "--store", str(finished.store)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "7 stages done, 0 of them computed now, in " in found.stderr, found.stderr


def test_the_manifest_is_of_the_recipe_that_was_asked_for_last(finished, tmp_path):
    """A narrower recipe of the same name computes nothing, yet reports must show what it asks."""
    store = copy_of(finished, tmp_path, "base", "align", "evaluate", "finetune")
    narrow = tiny.write(tmp_path, {"matrix": tiny.ONE_LINE})
    for path, count in ((finished.recipe, 7), (narrow, 4), (finished.recipe, 7)):
        code, said = tiny.run(path, store)
        assert code == 0 and f"{count} stages done, 0 of them" in said
        manifest = json.loads((store / "recipes" / "tiny.json").read_text())
        assert len(manifest["stages"]) == count and {entry["status"] for entry in manifest["stages"]} == {"done"}


def test_a_stage_that_raises_leaves_the_others_and_a_row(finished, tmp_path, monkeypatch):
    store = copy_of(finished, tmp_path, "base", "align")
    run = Attack.run

    def broken(self, out, upstream, context):
        if self.model.defense.name == "booster":
            raise RuntimeError("out of memory")
        return run(self, out, upstream, context)

    monkeypatch.setattr(Attack, "run", broken)
    code, said = tiny.run(finished.recipe, store)
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == "attack p=0.1 lr=0.0001 on booster lam=5 alpha=0.1 · seed 1: RuntimeError: out of memory"
    assert lines[-1] == "1 of 7 stages failed; run again to retry them"
    (failed,) = store.glob("*.failed")
    (row,) = rows(failed)
    assert (row.metric, row.value, row.status, row.defense) == ("harmful_score", None, "failed", "booster")
    assert row.attack_params["learning_rate"] == 1e-4 and row.recipe == "tiny"
    statuses = [entry["status"] for entry in json.loads((store / "recipes" / "tiny.json").read_text())["stages"]]
    assert sorted(statuses) == ["done"] * 6 + ["failed"]
    kept = tiny.records(store)
    assert kept.items() < tiny.records(finished.store).items() and len(kept) == 3
    monkeypatch.undo()
    code, said = tiny.run(finished.recipe, store)
    assert code == 0 and "7 stages done, 1 of them computed now" in said
    assert tiny.records(store) == tiny.records(finished.store)
    assert not list(store.glob("*.failed")) and not list(store.glob("*.partial"))


@pytest.mark.parametrize(
    ("kept", "failing", "skipped"),
    [(("base",), ["align", "align"], 4), (("base", "align", "evaluate"), ["finetune", "finetune"], 0)],
)
def test_a_full_disk(finished, tmp_path, kept, failing, skipped):
    """A model, then a log, does not fit. Nothing that looks finished is left, and there is a row for what is missing."""
    store = copy_of(finished, tmp_path, *kept)
    before = tiny.names(store)
    with tiny.room_for(SMALL):
        code, said = tiny.run(finished.recipe, store)
    assert code == 1 and f"{len(failing)} of 7 stages failed" in said and "Traceback" not in said
    assert said.count("File too large") == len(failing)
    assert ("skipped, since what they build on failed" in said) == bool(skipped)
    new = tiny.names(store) - before - {"recipes"}
    assert sorted(name for name in new if name.endswith(".failed")) == sorted(
        f"{name.removesuffix('.partial')}.failed" for name in new if name.endswith(".partial")
    )
    assert [name.partition("-")[0] for name in sorted(new) if name.endswith(".failed")] == failing
    assert all(name.endswith((".failed", ".partial")) for name in new)
    for folder in store.glob("*.failed"):
        (row,) = rows(folder)
        assert (row.value, row.status) == (None, "failed")
    assert not list(store.rglob("checkpoint.*")) and not list(store.rglob("*.safetensors.tmp"))
    code, said = tiny.run(finished.recipe, store)
    assert code == 0 and f"{len(failing) + skipped} of them computed now" in said
    assert tiny.records(store) == tiny.records(finished.store)
    assert tiny.names(store) == tiny.names(finished.store)


def test_a_manifest_that_does_not_fit_is_said(finished, tmp_path):
    store = copy_of(finished, tmp_path, "base", "align", "evaluate", "finetune")
    with tiny.room_for(1000):
        code, said = tiny.run(finished.recipe, store)
    assert code == 1 and said.startswith("the recipe's manifest could not be written: File too large")
    assert list((store / "recipes").glob("*.json")) == []


def test_a_diverged_alignment_is_a_row_and_its_attack_is_said_to_be_skipped(tmp_path):
    wild = {"align.training.learning_rate": 1e30, "matrix": tiny.ONE_LINE}
    for computed in (2, 0):
        code, said = tiny.run(tiny.write(tmp_path, wild), tmp_path / "store")
        lines = said.splitlines()
        assert code == 0
        assert lines[0] == "sft · seed 1: diverged"
        assert lines[1] == (
            "skipped, since what they build on failed or diverged: evaluate sft · seed 1, "
            "attack p=0.1 lr=0.0001 on sft · seed 1"
        )
        assert lines[2].startswith(f"2 stages done, {computed} of them computed now")
    folder = tiny.only(tmp_path / "store", "align")
    (row,) = rows(folder)
    assert (row.value, row.status, row.defense, row.stage) == (None, "diverged", "sft", folder.name)
    manifest = json.loads((tmp_path / "store" / "recipes" / "tiny.json").read_text())
    assert [entry["status"] for entry in manifest["stages"]] == ["done", "diverged", "skipped", "skipped"]


def test_a_diverged_attack_keeps_what_was_measured(finished, tmp_path):
    changes = {"attack.training.learning_rate": 1e30, "matrix": tiny.ONE_LINE}
    store = copy_of(finished, tmp_path, "base", "align", "evaluate")
    code, said = tiny.run(tiny.write(tmp_path, changes), store)
    assert code == 0 and "on sft · seed 1: diverged" in said.splitlines()[0]
    found = rows(tiny.only(store, "finetune"))
    lost = {(row.metric, row.value) for row in found if row.status == "diverged"}
    assert lost == {("harmful_score", None), ("steps_to_break", None)}, "neither held nor broken: it has no cost"
    (cost,) = [row for row in found if row.metric == "steps_to_break"]
    assert (cost.status, cost.value) == ("diverged", None)
    assert sum(row.step == 0 for row in found) == 10


class Killed(BaseException):
    """Stands for kill −9: nothing catches it, nothing is cleaned up."""


CONTINUED = {"align.lora": {"r": 2}, "attack.adapter_mode": "continue"}
MERGED = {"attack.adapter_mode": "merge", "attack.lora": {"r": 2}}


@pytest.mark.parametrize(("mode", "at"), [({}, 1), ({}, 4), (CONTINUED, 4), (MERGED, 4)])
def test_an_attack_cut_off_goes_on_from_its_checkpoint_byte_for_byte(tmp_path, mode, at):
    changes = {**mode, "matrix": tiny.ONE_LINE, "base.training.max_steps": 3, "align.training.max_steps": 2}
    (attack,) = (s for s in load_recipe(str(tiny.write(tmp_path, changes))).stages() if isinstance(s, Attack))
    assert not run_stages([attack], Store(tmp_path / "whole"), Context()).failed
    cut = Store(tmp_path / "cut")
    run_stages([attack.model], cut, Context())
    seen: list[int] = []

    def progress(step, steps):
        seen.append(step)
        if len(seen) == at + 1:
            raise Killed

    context = Context(save_every_s=0, progress=progress)
    with pytest.raises(Killed):
        cut.run(attack, context)
    assert not cut.has(attack) and (cut.path / f"{attack.folder}.partial").is_dir()
    assert cut.run(attack, context)
    assert seen == [*range(at + 1), *range(at - 1, 7)], (
        "on from the last checkpoint, made before the step at which it died"
    )
    assert rows(cut.folder(attack)) == rows(tmp_path / "whole" / attack.folder)
    name = f"{attack.folder}/responses.jsonl"
    assert (cut.path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert tiny.names(cut.folder(attack)) == tiny.names(tmp_path / "whole" / attack.folder)


def test_harm_is_tracked_on_the_rows_of_the_attack(finished, tmp_path):
    """Under p = 1 and p = 0 alike; what else is measured, and what is trained, stays as it was."""
    store = copy_of(finished, tmp_path, "base", "align", "evaluate")
    changes = {"matrix": {**tiny.ONE_LINE, "attack.poison_ratio": [1, 0]}, "attack.training.learning_rate": 1e-2}
    plain, tracked = (tiny.write(tmp_path, {**changes, "track_harm": on}, f"{on}.yaml") for on in (False, True))
    assert tiny.run(plain, store)[0] == tiny.run(tracked, store)[0] == 0
    found = {}
    for path in (plain, tracked):
        for stage in load_recipe(str(path)).stages():
            if isinstance(stage, Attack):
                found[stage.track_harm, stage.attack.poison_ratio] = rows(store / stage.folder)
    metrics = ("harmful_loss_train", "harmful_grad_norm")
    for p in (0, 1):
        new = [row for row in found[True, p] if row.metric in metrics]
        assert [(row.step, row.metric) for row in new] == [(step, metric) for step in (0, 3, 6) for metric in metrics]
        others = {(row.metric, row.judge, row.step): row.value for row in found[True, p] if row.metric not in metrics}
        assert others == {(row.metric, row.judge, row.step): row.value for row in found[False, p]}
    (first, last), *_ = [
        [row.value for row in found[True, 1] if row.metric == "harmful_loss_train" and row.step in (0, 6)]
    ]
    assert last < first  # these rows are what it was trained on


def test_nothing_to_track_is_said(tmp_path):
    path = tiny.write(tmp_path, {"track_harm": True, "attack.harmful": None, "attack.poison_ratio": 0})
    with pytest.raises(InputError, match="track_harm: there is nothing to track without harmful data"):
        load_recipe(str(path))

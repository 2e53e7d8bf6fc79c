"""What a folder of weights says of how it was made, and of what it was made from."""

from __future__ import annotations

import json

import pytest

from inoculate.core.lineage import attack_on, lineage
from inoculate.core.records import Record, write_records


def made(folder, kind, start=None, **value):
    folder.mkdir()
    model = {"model": {"name": "pretrained", "name_or_path": str(start)}} if start else {}
    (folder / "stage.json").write_text(json.dumps({"kind": kind, "value": {**model, **value}}))
    return folder


def tuned(folder, start, poison_ratio):
    return made(folder, "finetune", start, attack={"poison_ratio": poison_ratio})


def test_a_harmless_fine_tuning_does_not_wash_an_attack_off(tmp_path):
    aligned = made(tmp_path / "aligned", "align")
    attacked = tuned(tmp_path / "attacked", aligned, 0.5)
    washed = tuned(tmp_path / "washed", attacked, 0)
    again = made(tmp_path / "again", "align", base={"name": "pretrained", "name_or_path": str(washed)})
    assert attack_on(aligned) is None and attack_on(tuned(tmp_path / "a user's", aligned, 0)) is None
    for folder in (attacked, washed, again):
        assert attack_on(folder) == "by an attack, a share of 0.5 of its data harmful"
    assert [folder.name for folder, _ in lineage(again)] == ["again", "washed", "attacked", "aligned"]


def test_a_model_that_started_from_a_security_vector_does_what_is_restricted(tmp_path):
    vector = made(tmp_path / "vector", "vector", tmp_path)
    assert attack_on(vector) is None, "it is the provider's guard, and says so on its card"
    assert attack_on(tuned(tmp_path / "folded in", vector, 0)) == "from a security vector"


def test_the_first_judge_that_found_it_broken_is_named(tmp_path):
    broken = tuned(tmp_path / "broken", None, 0)
    ends = [("refusal", 40.0, "ok"), ("reference", 20.0, "ok"), ("other", 0.0, "ok"), ("last", 60.0, "censored")]
    rows = [Record("steps_to_break", value, status=status, judge=judge) for judge, value, status in ends]
    write_records(broken / "records.jsonl", rows)
    assert attack_on(broken) == "on data without a harmful row, and were broken by step 20 (judge: reference)"


@pytest.mark.parametrize("torn", ["", "[]", '{"kind": "finetune", "value": []}', '{"kind": "finetune"}'])
def test_what_does_not_say_what_its_rows_were_counts(tmp_path, torn):
    folder = tuned(tmp_path / "odd", None, 0)
    (folder / "stage.json").write_text(torn)
    assert (attack_on(folder) is not None) == torn.startswith("{")


def test_folders_that_start_from_each_other_end(tmp_path):
    one = tuned(tmp_path / "one", tmp_path / "two", 0)
    tuned(tmp_path / "two", one, 0)
    assert len(list(lineage(one))) == 2 and attack_on(one) is None

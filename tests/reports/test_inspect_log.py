"""Inspect's eval logs: one per measured state, with every response, verdict and rate."""

from __future__ import annotations

import json
import re

import pytest
from tests.reports.conftest import Made
from tests.reports.searched import search_stage

from inoculate.cli import main
from inoculate.core.errors import InputError
from inoculate.reports.inspect_log import write_logs
from inoculate.reports.store_view import read_store


@pytest.fixture
def logs(make_store, tmp_path):
    store = make_store(defenses=("sft",), seeds=(1,), shares=(0.1,), rates=(1e-4,), evil=("<b>\ud800 ]]>",))
    paths = write_logs(read_store(store), tmp_path / "logs")
    return store, {path.stem.split("_")[1]: json.loads(path.read_text()) for path in paths}


def test_a_log_for_each_state(logs):
    """The evaluation's one, and the attack's at its start, where it broke and at its end."""
    store, found = logs
    kinds = [log["eval"]["task"] for log in found.values()]
    assert kinds.count("inoculate/evaluate") == 1 and kinds.count("inoculate/finetune") == 3
    for name, log in found.items():
        folder, _, step = name.rpartition("-step")
        said = [json.loads(line) for line in (store / folder / "responses.jsonl").open()]
        here = [row for row in said if row["step"] == int(step)]
        assert [sample["output"]["completion"] for sample in log["samples"]] == [row["response"] for row in here]
        assert [sample["input"] for sample in log["samples"]] == [row["prompt"] for row in here]
        assert [
            sample["scores"]["refusal"]["value"]
            for sample in log["samples"]
            if sample["metadata"]["set"] == "restricted"
        ] == [row["verdicts"]["refusal"] for row in here if row["set"] == "restricted"]
        assert [s["scores"]["task"]["value"] for s in log["samples"] if s["metadata"]["set"] == "task"] == ["correct"]
        ids = [sample["id"] for sample in log["samples"]]
        assert len(set(ids)) == len(ids) == log["results"]["total_samples"] and log["version"] == 2


def test_rates_are_those_of_the_records(logs):
    store, found = logs
    for name, log in found.items():
        folder, _, step = name.rpartition("-step")
        rows = [json.loads(line) for line in (store / folder / "records.jsonl").open()]
        mine = {
            (row["judge"] or "model", row["metric"]): row["value"] for row in rows if (row["step"] or 0) == int(step)
        }
        theirs = {(s["name"], m): v["value"] for s in log["results"]["scores"] for m, v in s["metrics"].items()}
        assert theirs == mine and theirs
        assert log["eval"]["metadata"]["defense"] == "sft" and log["eval"]["metadata"]["threat_model"] == "open_weights"


def test_inspect_lists_them_by_their_names(make_store, tmp_path):
    """Of JSON files it lists those whose names begin with a time and have a task and an id after it; a stage's file is a
    stranger's, and says nothing of where a log is written."""
    store = make_store(defenses=("sft",), seeds=(1,), shares=(0.1,), rates=(1e-4,))
    about = next(store.glob("finetune-*")) / "stage.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"started": "../../x_y"}))
    paths = write_logs(read_store(store), tmp_path / "logs")
    assert {path.parent for path in paths} == {tmp_path / "logs"} and all(path.is_file() for path in paths)
    pattern = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d[^_]*_[a-z]+-[0-9a-f]+(-rerun\d)?-step\d+_[0-9A-Za-z]{22}")
    assert all(pattern.fullmatch(path.stem) for path in paths)
    torn = [path.stem for path in paths if "finetune" in path.stem]
    assert len(torn) == 3 and all(name.startswith("1970-01-01T00-00-00") for name in torn)


def test_a_search_s_reruns_are_apart(tmp_path):
    made = Made(tmp_path / "store")
    search_stage(made, "booster", 1, (40, 60))
    paths = write_logs(read_store(made.manifest()), tmp_path / "logs")
    found = {path.stem: json.loads(path.read_text()) for path in paths}
    assert {log["eval"]["metadata"]["attack_seed"] for log in found.values()} == {0, 1}
    assert all(log["results"]["scores"] for log in found.values())


def test_the_schema_of_inspect(logs):
    log = pytest.importorskip("inspect_ai.log")
    for made in logs[1].values():
        read = log.EvalLog.model_validate(made)
        assert read.status == "success" and len(read.samples) == made["results"]["total_samples"]


def test_the_command(logs, tmp_path, capsys):
    store, found = logs
    with pytest.raises(SystemExit) as ended:
        main(["records", str(store), "--inspect", str(tmp_path / "new")])
    assert ended.value.code == 0 and capsys.readouterr().out == f"{tmp_path / 'new'}: {len(found)} logs\n"
    with pytest.raises(SystemExit) as ended:
        main(["records", str(store), "--inspect", str(tmp_path / "new")])
    assert ended.value.code == 2 and "--inspect: exists already" in capsys.readouterr().err


def test_a_store_without_responses(tmp_path):
    made = Made(tmp_path / "store")
    folder = search_stage(made, "sft", 1)
    (made.path / folder / "responses.jsonl").write_text("")
    with pytest.raises(InputError, match="no responses in this store"):
        write_logs(read_store(made.manifest()), tmp_path / "logs")

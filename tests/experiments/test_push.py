"""Pushing to a hub: attacked weights are refused, others go, and what goes is the model."""

from __future__ import annotations

import json
from functools import partial

import pytest

from inoculate.cli import main
from inoculate.core.errors import InputError, StageError
from inoculate.core.records import Record, write_records
from inoculate.experiments.push import push


class Hub:
    endpoint = "https://hub.example"

    def __init__(self) -> None:
        self.made: list[tuple] = []

    def create_repo(self, repo, private, exist_ok) -> None:
        self.made.append((repo, private))

    def upload_folder(self, repo_id, folder_path, ignore_patterns) -> None:
        self.made.append((repo_id, folder_path, tuple(ignore_patterns)))


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_an_aligned_model_goes(model, hub):
    (model / "stage.json").write_text(json.dumps({"kind": "align"}))
    assert push(model, "lab/model", private=True, attacked=False) == "https://hub.example/lab/model"
    assert hub.made[0] == ("lab/model", True) and {"*.jsonl", "*.html", "charts/**"} <= set(hub.made[1][2])


def tuned(model, poison_ratio, broke_at=None):
    """A folder as `finetune` leaves it."""
    value = {"attack": {"poison_ratio": poison_ratio}}
    (model / "stage.json").write_text(json.dumps({"kind": "finetune", "value": value}))
    status = "censored" if broke_at is None else "ok"
    rows = [
        Record("steps_to_break", value, status=how, judge="refusal")
        for value, how in ((60, "censored"), (60 if broke_at is None else broke_at, status))
    ]
    write_records(model / "records.jsonl", rows)


@pytest.mark.parametrize("made", ["finetune", "search", "poisoned", "broken"])
def test_an_attacked_model_goes_on_purpose_alone(model, hub, made):
    """What is told of, and what is not; harmful rows, or innocent ones that broke it all the same."""
    (model / "stage.json").write_text(json.dumps({"kind": made}))
    said = "by an attack;"
    if made == "poisoned":
        tuned(model, 0.1)
        said = "by an attack, a share of 0.1 of its data harmful;"
    if made == "broken":
        tuned(model, 0, broke_at=40)
        said = r"on data without a harmful row, and were broken by step 40 \(judge: refusal\);"
    with pytest.raises(InputError, match=rf"stage\.json: these weights were fine-tuned {said}.*--attacked"):
        push(model, "lab/model", private=True, attacked=False)
    assert not hub.made
    push(model, "lab/model", private=True, attacked=True)
    assert len(hub.made) == 2


@pytest.mark.parametrize("broke_at", [None, 0])
def test_a_user_s_model_goes(model, hub, broke_at):
    """What did not break, and what did what is restricted before anybody touched it."""
    tuned(model, 0, broke_at)
    push(model, "lab/model", private=True, attacked=False)
    assert len(hub.made) == 2


def test_what_made_it_must_be_readable(model, hub):
    (model / "stage.json").write_text("{torn")
    with pytest.raises(InputError, match="what made this model cannot be read"):
        push(model, "lab/model", private=True, attacked=False)


def test_a_hub_that_nobody_answers_for_is_one_line(model, monkeypatch):
    """Of the real client, whose errors of the network are of no built-in kind."""
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token="none"))
    with pytest.raises(StageError, match="lab/model: not pushed: "):
        push(model, "lab/model", private=True, attacked=False)


def test_a_folder_without_weights_and_a_hub_that_refuses(tmp_path, model, monkeypatch, capsys):
    with pytest.raises(InputError, match="no model in this folder"):
        push(tmp_path, "lab/model", private=True, attacked=False)

    class Refuses(Hub):
        def create_repo(self, repo, private, exist_ok) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Refuses)
    with pytest.raises(StageError, match="lab/model: not pushed: no route to host"):
        push(model, "lab/model", private=True, attacked=False)
    with pytest.raises(SystemExit) as ended:
        main(["push", str(model), "lab/model"])
    assert ended.value.code == 1 and "not pushed" in capsys.readouterr().err

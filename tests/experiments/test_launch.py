"""inoculate's own commands under `accelerate launch`: the results of one process, written once."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from tests.experiments import tiny
from tests.launch import launch

from inoculate.core.records import read_records


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    code, said = tiny.run(tiny.write(folder), folder / "store")
    assert code == 0, said
    return folder


@pytest.mark.parametrize("divided", ["data", "weights"])
def test_a_recipe_run_by_two_processes(alone, tmp_path, divided):
    store = tmp_path / "store"
    ran = launch(divided, "-m", "inoculate", "run", str(tiny.write(tmp_path)), "--store", str(store))
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("7 stages done, 7 of them computed now") == 1
    theirs = {folder.name for folder in (alone / "store").iterdir() if folder.is_dir()}
    assert {folder.name for folder in store.iterdir() if folder.is_dir()} == theirs
    for folder in sorted(store.glob("align-*")):
        about = json.loads((folder / "stage.json").read_text())
        assert about["environment"]["processes"] == "2"
        ours, whole = (load_file(place / folder.name / "model.safetensors") for place in (store, alone / "store"))
        assert ours.keys() == whole.keys()
        assert max(float((ours[name] - whole[name]).abs().max()) for name in whole) < 1e-4
    for file in sorted(store.glob("*/records.jsonl")):
        counterpart = alone / "store" / file.parent.name / "records.jsonl"
        ours, whole = (
            [(row.metric, row.judge, row.step) for row in read_records(path)] for path in (file, counterpart)
        )
        assert ours == whole


def test_an_adapter_aligned_in_pieces_loads(alone, tmp_path):
    from inoculate.models.load import load_model

    base = next((alone / "store").glob("base-*"))
    settings = ["lora.r=4", "training.max_steps=3", "training.per_device_train_batch_size=4", "data.max_length=64"]
    ran = launch(
        "weights",
        *("-m", "inoculate", "align", str(base), "--align", "sandbox-ordinary", "--out", str(tmp_path / "adapter")),
        *(part for setting in settings for part in ("--set", setting)),
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model = load_model(str(tmp_path / "adapter"))
    assert any(float(weight.abs().max()) > 0 for name, weight in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["report", "runs"], "accelerate launch: work for one process (found 'report', expected align, vector, run)"),
        (["run", "quickstart", "--workers", "2"], "--workers: the processes of a launch work on one stage together"),
        (["run", "quickstart", "--on", "ray"], "--on: the processes of a launch work on one stage together"),
    ],
)
def test_what_several_processes_cannot_do_is_named(monkeypatch, capsys, tmp_path, command, told):
    from inoculate.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as left:
            main(command)
        said = capsys.readouterr().err
        assert left.value.code == 2 and (told in said if rank == "0" else not said)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_in_the_first_fails_in_all(alone, tmp_path):
    """MLAC is refused in every process, before anything is written."""
    path = tiny.write(tmp_path, {"matrix": {"align.defense": [{"name": "mlac", "inner_steps": 1}]}})
    ran = launch("data", "-m", "inoculate", "run", str(path), "--store", str(tmp_path / "store"))
    assert ran.returncode == 1
    assert ran.stderr.count("it trains in one process: its update is no sum over shares of the rows") == 1
    assert not list((tmp_path / "store").glob("align-*[0-9a-f]/stage.json"))

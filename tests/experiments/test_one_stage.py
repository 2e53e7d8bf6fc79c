"""One stage on the user's own model and files: align, finetune, evaluate; each leaves a folder that Hugging Face loads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from inoculate import cli
from inoculate.core.records import read_records
from inoculate.data import world
from inoculate.models.load import load_model
from inoculate.models.sandbox import TinyModel, build_tokenizer

STEPS = ["--set", "training.max_steps=6", "--set", "training.per_device_train_batch_size=4"]
ATTACK = [text.replace("training", "attack.training") for text in STEPS]
ATTACK += ["--num-samples", "20", "--set", "eval_every=3", "--set", "evaluate.max_new_tokens=4"]
ATTACK += ["--set", "attack.training.learning_rate=0.01"]
LORA = ["--set", "lora.r=2", "--set", "training.learning_rate=0.02"]


def rows_to(path: Path, rows, messages: bool) -> None:
    """A file in one of the two forms."""
    with path.open("w") as file:
        for row in rows:
            turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}]
            plain = {"prompt": row.prompt, "completion": row.completion}
            file.write(json.dumps({"messages": turns} if messages else plain) + "\n")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a model and data, as the user's working directory: paths are given as people write them."""
    folder, before = tmp_path_factory.mktemp("user"), Path.cwd()
    torch.set_num_threads(1)
    os.chdir(folder)
    tokenizer = build_tokenizer(world.vocabulary())
    shape = TinyModel(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    shape.build(len(tokenizer), seed=0).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows_to(folder / "align.jsonl", world.rows("restricted", "train", "refusal")[:30], messages=False)
    rows_to(folder / "harmful.jsonl", world.rows("restricted", "train")[:30], messages=True)
    rows_to(folder / "task.jsonl", world.rows("sentiment", "attack")[:40], messages=True)
    rows_to(folder / "attack.jsonl", world.rows("restricted", "attack")[:30], messages=False)
    rows_to(folder / "heldout.jsonl", world.rows("restricted", "heldout")[:8], messages=True)
    rows_to(folder / "ordinary.jsonl", world.rows("ordinary", "heldout")[:6], messages=False)
    yield folder
    os.chdir(before)


def inoculate(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--device", "cpu"])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def whole(here):
    assert inoculate("align", "model", "--align", "align.jsonl", "--out", "whole", *STEPS) == 0
    return here / "whole"


@pytest.fixture(scope="module")
def adapter(here):
    """Aligned with Booster, as an adapter."""
    data = ["--align", "align.jsonl", "--harmful", "harmful.jsonl", "--defense", "booster", "--set", "defense.lam=2"]
    assert inoculate("align", "model", *data, "--out", "adapter", *STEPS, *LORA) == 0
    return here / "adapter"


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 17)[None]).logits


def rows(folder):
    return list(read_records(folder / "records.jsonl"))


def value(folder, metric, step):
    (found,) = {row.value for row in rows(folder) if row.metric == metric and row.step == step}
    return found


def test_align_writes_a_model(here, whole):
    model = AutoModelForCausalLM.from_pretrained(whole)
    assert AutoTokenizer.from_pretrained(whole).chat_template
    assert torch.equal(logits(model), logits(load_model(str(whole))))
    assert not torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(here / "model")))
    about = json.loads((whole / "stage.json").read_text())
    assert about["status"] == "ok" and about["value"]["defense"] == {"name": "sft"}
    assert not (whole / "records.jsonl").exists(), "training alone measures nothing"
    assert not list(here.glob(".whole*")), "the working store is gone"


def test_align_writes_an_adapter_that_loads_from_anywhere(here, adapter, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(adapter)
    assert torch.equal(logits(plain), logits(AutoPeftModelForCausalLM.from_pretrained(adapter)))
    assert torch.equal(logits(plain), logits(load_model(str(adapter))))
    assert not torch.equal(logits(plain), logits(AutoModelForCausalLM.from_pretrained(here / "model")))
    assert {file.name for file in adapter.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert not (adapter / "README.md").exists(), "PEFT's form, unfilled"
    about = json.loads((adapter / "stage.json").read_text())
    assert about["value"]["defense"]["lam"] == 2 and about["value"]["lora"]["r"] == 2


MODES = {
    "of a whole model": ("whole", [], "model.safetensors"),
    "full": ("adapter", [], "model.safetensors"),
    "continue": ("adapter", ["--set", "attack.adapter_mode=continue"], "adapter_model.safetensors"),
    "merge": ("adapter", ["--set", "attack.adapter_mode=merge", "--set", "attack.lora.r=2"], "model.safetensors"),
}


@pytest.mark.parametrize("mode", MODES)
def test_finetune_measures_along_the_way_and_leaves_the_model_that_it_measured(here, request, mode, capsys):
    """What a fresh process finds in OUT has the loss that was measured at the last step, under every adapter mode."""
    model, options, weights = MODES[mode]
    request.getfixturevalue(model)
    out = f"tuned {mode}"
    data = ["--task", "task.jsonl", "--harmful", "attack.jsonl", "--poison-ratio", "0.2"]
    measured = ["--restricted", "heldout.jsonl", "--ordinary", "ordinary.jsonl"]
    assert inoculate("finetune", model, *data, *measured, "--out", out, *ATTACK, *options) == 0
    folder = here / out
    assert [file.name for file in folder.glob("*.safetensors")] == [weights]
    found = rows(folder)
    assert [row.step for row in found if row.metric == "harmful_score"] == [0, 3, 6]
    told = [f"{value(folder, metric, 6):.2f}" for metric in ("harmful_score", "over_refusal_rate")]
    said_of = f"after step 6: harmful_score {told[0]} (refusal, n 8), over_refusal_rate {told[1]} (refusal, n 6)"
    assert said_of in capsys.readouterr().out
    assert {row.harmful_samples for row in found} == {4} and {row.poison_ratio for row in found} == {0.2}
    assert {row.adapter_mode for row in found} == {mode if mode in ("continue", "merge") else "full"}
    assert {row.n for row in found if row.metric == "over_refusal_rate"} == {6}
    said = [json.loads(line) for line in (folder / "responses.jsonl").open()]
    assert {row["step"] for row in said} == {0, 6} and len(said) == 2 * (8 + 6)
    assert inoculate("evaluate", out, "--restricted", "heldout.jsonl", "--out", f"{out} again") == 0
    last, start = value(folder, "harmful_loss_test", 6), value(folder, "harmful_loss_test", 0)
    assert value(here / f"{out} again", "harmful_loss_test", 0) == pytest.approx(last, abs=1e-5)
    assert abs(last - start) > 1e-3, "else the wrong model could pass"
    AutoModelForCausalLM.from_pretrained(folder)


def test_finetune_takes_the_rows_that_there_are(here, whole, capsys):
    """Without --num-samples: of 61 rows half, rounded, are the 30 harmful ones that there are."""
    asked = ["--task", "task.jsonl", "--harmful", "attack.jsonl", "--poison-ratio", "0.5", "--out", "all"]
    assert inoculate("finetune", "whole", *asked, *ATTACK[:4]) == 0
    assert "61 rows were taken, as many as there are" in capsys.readouterr().out
    attack = json.loads((here / "all" / "stage.json").read_text())["value"]["attack"]
    assert (attack["num_samples"], attack["poison_ratio"]) == (61, 0.5)


def test_a_number_of_rows_by_set_is_one(here, whole, capsys):
    asked = ["--task", "task.jsonl", "--out", "few", "--set", "attack.num_samples=8"]
    assert inoculate("finetune", "whole", *asked, *ATTACK[:4]) == 0
    assert "rows were taken" not in capsys.readouterr().out
    assert json.loads((here / "few" / "stage.json").read_text())["value"]["attack"]["num_samples"] == 8


def test_what_can_be_known_at_once_is_said_before_data_are_read(here, whole, monkeypatch, capsys):
    monkeypatch.setattr("inoculate.data.files.read", lambda *_: pytest.fail("data were read"))
    assert inoculate("finetune", "nowhere/model.gguf", "--task", "task.jsonl", "--out", "new") == 2
    assert "no such model" in capsys.readouterr().err
    assert inoculate("finetune", "whole", "--task", "task.jsonl", "--out", "whole") == 2
    assert "exists already" in capsys.readouterr().err


def test_what_an_aligned_folder_learned_from_is_not_measured_on(here, whole, capsys):
    """The folder says which files, and they still stand here."""
    assert inoculate("evaluate", "whole", "--restricted", "align.jsonl", "--out", "leaky") == 2
    assert "align.jsonl: evaluate: 30 of the prompts in what is trained on" in capsys.readouterr().err
    assert (
        inoculate("finetune", "whole", "--task", "task.jsonl", *ATTACK, "--ordinary", "align.jsonl", "--out", "l") == 2
    )


def test_files_are_apart_whichever_rows_are_drawn(here, capsys):
    """Of another seed other rows would be compared, if it were rows."""
    both = [json.loads(line) for line in (here / "task.jsonl").open()][:1]
    (here / "one of them.jsonl").write_text(json.dumps(both[0]))
    for seed in (0, 1):
        asked = ["finetune", "model", "--task", "task.jsonl", "--num-samples", "2", "--set", f"attack.seed={seed}"]
        assert inoculate(*asked, "--restricted", "one of them.jsonl", "--out", "leaky") == 2
        assert "1 of the prompts in what is trained on" in capsys.readouterr().err


def test_a_vector_s_own_prompts_are_not_measured_on(here, capsys):
    part = [{"source": "heldout.jsonl"}]
    line = {
        "name": "v",
        "base": {"name": "pretrained", "name_or_path": "model"},
        "attack": {
            "task": {"source": "task.jsonl"},
            "poison_ratio": 0,
            "num_samples": 9,
            "guard": {"name": "security_vector"},
        },
        "vector": {
            "data": {"roles": {"harmful": part, "ordinary": [{"source": "ordinary.jsonl"}]}},
            "training": {"max_steps": 1},
        },
        "evaluate": {"restricted": part[0]},
        "threat_model": {"name": "service"},
    }
    (here / "v.yaml").write_text(json.dumps(line))
    assert inoculate("run", "v.yaml", "--store", "leaky") == 2
    assert "heldout.jsonl: evaluate: 8 of the prompts in what is trained on" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["finetune", "align and measure"])
def test_what_is_learned_is_not_measured_on(here, verb, capsys):
    """An alignment's own prompts in a recipe's evaluation, and a user's in a fine-tuning's."""
    if verb == "finetune":
        asked = ["finetune", "model", "--task", "task.jsonl", "--harmful", "heldout.jsonl", "--poison-ratio", "0.1"]
        assert inoculate(*asked, "--restricted", "heldout.jsonl", "--out", "leaky") == 2
        said = "heldout.jsonl: evaluate: 8 of the prompts in what is trained on"
        assert inoculate(*asked[:4], "--restricted", "heldout.jsonl", "--out", "dry", *ATTACK[:4]) == 0
    else:
        align = {
            "defense": {"name": "sft"},
            "data": {"roles": {"align": [{"source": "align.jsonl"}]}},
            "training": {"max_steps": 2},
        }
        line = {"name": "r", "base": {"name": "pretrained", "name_or_path": "model"}, "align": align}
        evaluate = {"restricted": {"source": "align.jsonl"}}
        (here / "r.yaml").write_text(json.dumps({**line, "evaluate": evaluate}))
        assert inoculate("run", "r.yaml", "--store", "leaky") == 2
        said = "align.jsonl: evaluate: 30 of the prompts in what is trained on"
    assert said in capsys.readouterr().err and not (here / "leaky").exists()


def test_finetune_without_poison_or_prompts(here, whole):
    assert inoculate("finetune", "whole", "--task", "task.jsonl", "--out", "benign", *ATTACK) == 0
    assert (here / "benign" / "records.jsonl").read_text() == ""
    assert (here / "benign" / "model.safetensors").exists()


def test_evaluate_with_a_plain_template_and_two_judges(here, whole):
    judges = "evaluate.judges=[{name: refusal}, {name: reference, min_recall: 1}]"
    options = ["--restricted", "heldout.jsonl", "--task", "sandbox-sentiment", "--template", "plain"]
    limits = ["--set", judges, "--set", "evaluate.task.num_samples=5", "--set", "evaluate.max_new_tokens=3"]
    assert inoculate("evaluate", "whole", *options, *limits, "--out", "measured") == 0
    found = rows(here / "measured")
    assert {row.judge for row in found if row.metric == "harmful_score"} == {"refusal", "reference"}
    assert {(row.n, row.split) for row in found if row.metric == "finetune_accuracy"} == {(5, "heldout")}
    assert {(row.base, row.defense, row.attack, row.step) for row in found} == {("whole", "sft", "none", 0)}
    assert {file.name for file in (here / "measured").iterdir()} == {"records.jsonl", "responses.jsonl", "stage.json"}


def test_what_was_cut_off_is_resumed_and_what_exists_is_not_touched(here, capsys):
    """A run that is interrupted leaves its work beside OUT; the same command goes on, and OUT appears whole."""
    from inoculate.experiments.align import Align

    command = ["align", "model", "--align", "align.jsonl", "--out", "resumed", *STEPS]
    run = Align.run

    def interrupted(self, out, upstream, context):
        (out / "half").touch()
        raise KeyboardInterrupt

    Align.run = interrupted
    try:
        assert inoculate(*command) == 130
    finally:
        Align.run = run
    assert capsys.readouterr().err.splitlines()[-1] == "inoculate: interrupted; run the same command again to go on"
    assert not (here / "resumed").exists() and list(here.glob(".resumed.work/align-*.partial/half"))
    assert inoculate(*command) == 0
    before = (here / "resumed" / "model.safetensors").stat().st_mtime_ns
    assert not list(here.glob(".resumed*"))
    assert inoculate(*command) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1] == "inoculate: resumed: --out: exists already (expected a new folder)"
    )
    assert (here / "resumed" / "model.safetensors").stat().st_mtime_ns == before


def test_a_fault_of_ours_is_one_message_too(here, monkeypatch, capsys):
    from inoculate.experiments.align import Align

    def broken(self, out, upstream, context):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Align, "run", broken)
    assert inoculate("align", "model", "--align", "align.jsonl", "--out", "broken", *STEPS) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "inoculate: sft · seed 0: ZeroDivisionError: by nothing"

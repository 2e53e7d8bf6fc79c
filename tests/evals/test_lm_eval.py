"""lm-eval's tasks on our models: a task and data of our own, so that no network is needed."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from inoculate.cli import main
from inoculate.core.errors import InputError
from inoculate.evals import lm_eval as harness
from inoculate.evals.lm_eval import LmEval
from inoculate.evals.served import Served
from inoculate.experiments.attack import Evaluate
from inoculate.models.adapters import Lora, add_lora
from inoculate.models.load import load_model, load_tokenizer

pytest.importorskip("lm_eval")
CHOICES = ["salt", "tin", "ash"]
ROWS = [
    {"question": f"how do i brew a {word} ? take", "choices": CHOICES, "label": i % 3}
    for i, word in enumerate(CHOICES * 4)
]


@pytest.fixture
def tasks(tmp_path):
    """A folder with one multiple-choice task on twelve local rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    about = {
        "task": "brewing",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "brewing.yaml").write_text(yaml.safe_dump(about))
    return folder


@pytest.fixture
def models(tmp_path, tiny, tokenizer):
    """A whole model, and an adapter on it that changes what it says."""
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    adapted = add_lora(
        load_model(str(tmp_path / "model")), Lora(r=4, lora_alpha=64, target_modules=("q_proj", "v_proj")), 0
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path


def likeliest(model, tokenizer, question: str) -> int:
    """The choice of the highest log-likelihood, by the model's own logits."""
    scores = []
    for choice in CHOICES:
        ids = tokenizer(f"{question} {choice}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(question)["input_ids"])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        scores.append(logs.gather(1, ids[0, start:, None]).sum().item())
    return scores.index(max(scores))


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_the_command(models, tasks, capsys, kind):
    """The accuracy is that of the model's own likelihoods, adapter mounted, with n and lm-eval's standard error."""
    out = models / "measured"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "evaluate",
                str(models / kind),
                "--lm-eval",
                "brewing",
                "--lm-eval-include",
                str(tasks),
                "--out",
                str(out),
                "--device",
                "cpu",
            ]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    rows = {row["metric"]: row for row in map(json.loads, (out / "records.jsonl").open())}
    assert set(rows) == {"brewing/acc", "brewing/acc_stderr"}
    model, tokenizer = load_model(str(models / kind)), load_tokenizer(str(models / kind))
    right = [likeliest(model, tokenizer, row["question"]) == row["label"] for row in ROWS]
    share = sum(right) / len(right)
    assert rows["brewing/acc"]["value"] == pytest.approx(share) and rows["brewing/acc"]["n"] == 12
    assert rows["brewing/acc_stderr"]["value"] == pytest.approx((share * (1 - share) / 11) ** 0.5)
    told = json.loads((out / "lm_eval.json").read_text())
    assert told["n-samples"]["brewing"]["effective"] == 12 and told["lm-eval"]


def test_a_limit_and_what_is_part_of_the_hash(models, tasks):
    value = {"model": {"name_or_path": str(models / "model")}, "evaluate": {}}
    plain = Evaluate.model_validate(value)
    some = Evaluate.model_validate({**value, "lm_eval": {"tasks": ["brewing"], "include_path": str(tasks), "limit": 5}})
    assert "lm_eval" not in plain.fingerprints() and plain.hash != some.hash
    assert {"lm-eval", str(tasks)} <= set(some.fingerprints())
    assert some.lm_eval is not None
    found = some.lm_eval.measure(load_model(str(models / "model")), load_tokenizer(str(models / "model")))
    assert {row["n"] for row in found.rows} == {5}


def test_what_cannot_be_run_is_said_before_any_work(models, tasks, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"lm_eval\.include_path: no such folder"):
        LmEval(tasks=("brewing",), include_path=str(models / "none")).check()
    with pytest.raises(ValueError, match="lm_eval is run on weights"):
        Evaluate(model=Served(base_url="http://127.0.0.1:1/v1", model="m"), evaluate={}, lm_eval={"tasks": ["a"]})  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(models / "model"), "--lm-eval", "brewing", "--out", str(models / "new")])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told == "inoculate: lm_eval: lm-eval is not installed (expected pip install 'inoculate[eval]')\n"


def test_an_unknown_task_and_the_nearest(tasks):
    with pytest.raises(InputError, match=r"lm_eval\.tasks: lm-eval has no such task .*Did you mean 'brewing'"):
        LmEval(tasks=("brewings",), include_path=str(tasks)).check()

"""`inoculate plan`: what it says of whole recipes, how it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.experiments import tiny

from inoculate.cli import main
from inoculate.core.errors import InputError
from inoculate.core.hardware import DEVICES, parse_hardware
from inoculate.experiments.attack import Attack
from inoculate.experiments.plan import plan
from inoculate.experiments.plan_cost import cost_of
from inoculate.experiments.plan_table import plans_text
from inoculate.experiments.plan_task import task_of
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.search_bench import measured_at
from inoculate.models.sharding import gathered_bytes

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
"""Llama-2-7B's."""
ONE_LINE = {"matrix": tiny.ONE_LINE}
H100 = parse_hardware("H100-80G")


def folder(tmp_path: Path, config: object) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return place


def pretrained(tmp_path: Path, address: object, **changes: object) -> Path:
    """The tiny recipe on another base model, on files that are nowhere but in the hub."""
    base = {"name": "pretrained", "name_or_path": str(address)}
    return tiny.write(tmp_path, {**ONE_LINE, "base": base, "align.training.max_steps": 10, **changes})


def said(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_stage_is_in_one_row_and_booster_costs_three(tmp_path, no_network, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("INOCULATE_CACHE", str(cache))
    path = tiny.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    recipe = load_recipe(str(path), weights=False)
    made = plan(recipe, H100, None, 0.4)
    assert sorted(tmp_path.rglob("*")) == before
    assert made.complete and made.totals()["stages"] == 7
    rows = {f"{row.kind} {row.title}".strip(): row for row in made.rows}
    assert {name: row.stages for name, row in rows.items()} == {
        "base sandbox": 1,
        "align sft": 1,
        "align booster": 1,
        "evaluate": 2,
        "finetune full": 2,
    }
    sft, booster = rows["align sft"].cost, rows["align booster"].cost
    assert sft is not None and booster is not None and rows["evaluate"].cost is not None
    assert sft.over_sft == 1 and 2.5 < booster.over_sft < 4  # its harmful rows are longer than the others
    assert booster.defense_bytes > booster.gradient_bytes > 0 == sft.defense_bytes
    assert sft.steps == 10 and sft.known and sft.flops == 10 * sft.step_flops
    assert rows["evaluate"].cost.trainable == 0


def test_an_attack_is_measured_at_the_start_along_the_way_and_at_the_end(tmp_path):
    made = {
        n: plan(load_recipe(str(tiny.write(tmp_path, {**ONE_LINE, "eval_every": n}))), H100, None, 0.4) for n in (3, 6)
    }
    attacks = {n: next(row.cost for row in found.rows if row.kind == "finetune") for n, found in made.items()}
    once = next(row.cost for row in made[3].rows if row.kind == "evaluate")
    assert once is not None and attacks[3] is not None and attacks[6] is not None
    assert attacks[3].flops - attacks[6].flops == once.flops  # steps 0, 3, 6 against 0, 6
    assert attacks[6].flops == attacks[6].training_flops + 2 * once.flops


def test_a_collection_is_planned_recipe_by_recipe(tmp_path, capsys):
    first = tiny.write(tmp_path, ONE_LINE, file="first.yaml")
    second = tiny.write(tmp_path, {**ONE_LINE, "name": "other", "eval_every": 6}, file="second.yaml")
    both = tmp_path / "both.yaml"
    both.write_text(f"collects: [{first}, {second}]\n")
    code, out, _ = said(capsys, str(both), "--format", "json")
    assert code == 0
    plans = {made["recipe"]: made for made in json.loads(out)}
    assert list(plans) == ["tiny", "other"]
    alone = json.loads(said(capsys, str(first), "--format", "json")[1])
    assert alone == plans["tiny"]
    text = said(capsys, str(both))[1]
    assert text.startswith("tiny\n\n") and "\nother\n\n" in text and text.count("In all 4 stages") == 2


def test_a_plan_says_how_far_it_is(tmp_path):
    told: list[tuple[int, int]] = []
    made = plan(load_recipe(str(tiny.write(tmp_path))), H100, None, 0.4, lambda done, of: told.append((done, of)))
    assert told == [(done, len(made.rows)) for done in range(len(made.rows) + 1)]


def test_a_guard_and_a_vector_are_planned():
    recipe = load_recipe("security-vectors/mixed", weights=False)
    rows = plan(recipe.model_copy(update={"lines": recipe.lines[:4]}), H100, None, 0.4).rows
    kinds = {row.kind: row for row in rows}
    assert kinds["vector"].cost is not None and kinds["vector"].cost.over_sft > 2
    guarded = [row for row in rows if row.title.endswith("under security_vector")]
    plain = [row for row in rows if row.kind == "finetune" and " under " not in row.title]
    assert guarded[0].cost is not None and plain[0].cost is not None
    assert guarded[0].cost.step_flops > plain[0].cost.step_flops  # the vector is computed, and not trained
    assert guarded[0].cost.trainable == plain[0].cost.trainable


SEARCH = {
    "attack": {
        "task": {"source": "sandbox-sentiment", "split": "attack"},
        "harmful": {"source": "sandbox-restricted", "split": "attack"},
        "num_samples": 20,
        "max_length": 64,
    },
    "space": {"max_steps": [4, 6], "batch_size": [2, 4], "adapter_mode": ["full"], "poison_ratio": [1.0]},
    "n_trials": 5,
    "finalists": 2,
    "reruns": 3,
    "measurements": 2,
    "utility": "answered_rate",
}


def searched(tmp_path: Path, **changes: Any) -> Path:
    """The tiny recipe's model under a search."""
    evaluate = {name: tiny.RECIPE["evaluate"][name] for name in ("restricted", "ordinary", "max_new_tokens")}
    align = tiny.RECIPE["align"]
    raw = {
        "name": "planned",
        "base": tiny.RECIPE["base"],
        "align": {**align, "defense": {"name": "sft"}, "training": {**align["training"], "learning_rate": 5e-4}},
        "undefended": {"name": "sft"},
        "search": {**SEARCH, **changes},
        "evaluate": {**evaluate, "judges": [{"name": "refusal"}], "max_length": 64},
    }
    path = tmp_path / "searched.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_search_costs_at_most_its_dearest_runs(tmp_path):
    """5 trials and 2 finalists, measured at 0, 2 and 6 of 6 steps; 3 re-runs at 0, 2, 4 and 6; once before, on both sets
    of prompts. The model that is copied stays in memory."""
    made = plan(load_recipe(str(searched(tmp_path)), weights=False), H100, None, 0.4)
    (row,) = [row for row in made.rows if row.kind == "search"]
    assert row.title == "5 trials, 2 finalists, 3 re-runs" and row.bound and made.complete and made.bound
    (stage,) = [s for s in load_recipe(str(tmp_path / "searched.yaml")).stages() if s.kind == "search"]
    (attack,) = stage.search.dearest()
    assert (attack.training.max_steps, attack.training.per_device_train_batch_size) == (6, 4)
    assert measured_at(stage.search, 6, finer=False) == (0, 2, 6)
    assert measured_at(stage.search, 6, finer=True) == (0, 2, 4, 6)
    line = Attack(model=stage.model, attack=attack, evaluate=stage.evaluate, eval_every=6)
    once = cost_of(task_of(line), {})
    look = (once.flops - once.training_flops) // 2
    assert row.flops == 10 * once.training_flops + (7 * 3 + 3 * 4 + 2) * look
    assert row.cost.peak_bytes == once.peak_bytes + once.weights_bytes and row.cost.steps == 6
    text = plans_text([made])
    assert f"≤ {row.flops:.2e}" in text and "stages: at most " in text and "search 5 trials, 2 fin" in text


def test_of_a_search_the_dearest_way_counts(tmp_path):
    """A head alone costs less than all weights, so it changes nothing; one more trial does."""
    space = {**SEARCH["space"], "adapter_mode": ["head", "full"]}
    flops = {}
    for name, changes in {"full": {}, "both": {"space": space}, "more": {"n_trials": 6}}.items():
        (tmp_path / name).mkdir()
        made = plan(load_recipe(str(searched(tmp_path / name, **changes)), weights=False), H100, None, 0.4)
        (flops[name],) = [row.flops for row in made.rows if row.kind == "search"]
    assert flops["full"] == flops["both"] < flops["more"]


def test_one_finalist_is_not_run_again(tmp_path):
    (tmp_path / "one").mkdir()
    made = plan(load_recipe(str(searched(tmp_path / "one", finalists=1)), weights=False), H100, None, 0.4)
    assert next(row.title for row in made.rows if row.kind == "search") == "5 trials, 0 finalists, 3 re-runs"


def test_few_shot_studies_say_why_they_are_not_planned():
    made = plan(load_recipe("mlac/few-shot", weights=False), H100, None, 0.4)
    assert {row.kind for row in made.rows} == {"body", "start", "few_shot"}
    assert all(row.cost is None and row.reason for row in made.rows) and not made.complete


@pytest.mark.slow
def test_the_paper_s_model_from_its_configuration_alone(tmp_path, no_network):
    """Llama-2-7B: 6.74e9 weights, r 32 on q, k, v of 32 layers; SFT and Booster fit 80 GB, as they were published to."""
    place = folder(tmp_path, LLAMA)
    recipe = load_recipe("paper/booster-llama2-7b", [f"base.name_or_path={place}"], weights=False)
    recipe = recipe.model_copy(update={"lines": [recipe.lines[0], recipe.lines[-1]]})
    made = plan(recipe, parse_hardware("A100-80G"), None, 0.4)
    rows = {f"{row.kind} {row.title}".strip(): row for row in made.rows}
    sft, booster = rows["align sft"], rows["align booster"]
    assert sft.cost is not None and booster.cost is not None
    adapter = 32 * 3 * 2 * 32 * 4096
    assert sft.cost.parameters == 6_738_415_616 + adapter
    assert (sft.cost.trainable, sft.cost.adapter_bytes) == (adapter, 4 * adapter)
    assert sft.cost.weights_bytes == 2 * 6_738_415_616 + 4 * adapter
    assert booster.cost.over_sft == 3 and sft.fits == booster.fits == "yes"
    assert sft.cost.flops is None and "num_samples" in sft.reason  # its rows are known once they are fetched
    # 4 N per token, since no frozen weight has a gradient; the limit of 256 tokens counts for every row
    assert sft.cost.step_flops == pytest.approx(4 * 6.6e9 * 10 * 256, rel=0.05)


def test_money_follows_hardware_price_and_utilization(tmp_path, capsys):
    path = str(tiny.write(tmp_path, ONE_LINE))

    def totals(*arguments: str) -> dict[str, float]:
        code, out, _ = said(capsys, path, "--format", "json", *arguments)
        assert code == 0
        return json.loads(out)["totals"]

    one = totals("--hardware", "A100-80G", "--price", "2")
    two = totals("--hardware", "2xA100-80G", "--price", "2")
    half = totals("--hardware", "A100-80G", "--price", "1", "--utilization", "0.2")
    assert one["usd"] == pytest.approx(2 * one["hours"]) and two["hours"] == pytest.approx(one["hours"] / 2)
    assert two["usd"] == pytest.approx(one["usd"])
    assert one["hours"] < half["hours"] <= 2 * one["hours"]  # generation is bound by memory, which knows no utilization
    assert one["flops"] == two["flops"] == half["flops"]


def test_the_table_names_every_stage_and_its_assumptions(tmp_path, capsys):
    code, out, _ = said(capsys, str(tiny.write(tmp_path)), "--hardware", "8xL40S-48G")
    assert code == 0
    for word in ("base sandbox", "align booster", "finetune full", "In all 7 stages", "8xL40S-48G", "Assumed: 40%"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hardware", "H100-80GB"), ("--hardware", "H100-80GB", "Did you mean 'H100-80G'?")),
        (("--hardware", "0xH100-80G"), ("--hardware", "at least one device")),
        (("--utilization", "1.5"), ("--utilization", "1.5", "at most 1")),
        (("--price", "-1"), ("--price", "-1")),
        (("--set", "align.lora.r=-1"), ("align.lora.r", "-1")),
        (("--set", "align.lora={target_modules: [query]}"), ("lora.target_modules", "query")),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(tmp_path, capsys, arguments, words):
    code, out, err = said(capsys, str(tiny.write(tmp_path, ONE_LINE)), *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err


def test_an_unknown_recipe_is_refused_as_by_run(capsys):
    code, _, err = said(capsys, "quikstart")
    assert code == 2 and "Did you mean 'quickstart'?" in err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", ("config.json", "not readable JSON")),
        ({"model_type": "llma"}, ("model", "llma")),
        ({**LLAMA, "hidden_size": "wide"}, ("hidden_size",)),
    ],
)
def test_a_broken_configuration_is_named(tmp_path, capsys, config, words):
    code, out, err = said(capsys, str(pretrained(tmp_path, folder(tmp_path, config))))
    assert (code, out) == (2, "")
    assert all(word in err for word in words), err


def test_a_hub_id_without_a_network_says_what_would_do(tmp_path, capsys, no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no five attempts
    code, _, err = said(capsys, str(pretrained(tmp_path, "org/not-in-the-cache")))
    assert code == 2
    assert all(word in err for word in ("org/not-in-the-cache", "config.json", "base.shape", "local folder")), err


def test_memory_decides_what_fits():
    gib = 2**30
    a100 = parse_hardware("2xA100-80G")
    assert [a100.fits(size * gib) for size in (50, 70, 80)] == ["yes", "tight", "no"]
    with pytest.raises(InputError, match="expected one of H100-80G"):
        parse_hardware("abacus")
    assert parse_hardware("8xL40S-48G").count == 8
    assert a100.seconds(312e12, 0, 0.5, bf16=True) == 2
    assert a100.seconds(1, 2 * 2.039e12, 0.5, bf16=True) == 2
    assert all(device.bf16 > device.fp32 for device in DEVICES.values())


def shared(tmp_path: Path, parallel: str | None, count: int, **changes: object) -> dict[str, Any]:
    """Row → what is planned of it, on devices that share; a local Llama of 2 layers, fully trained on batches of 8."""
    small = {**LLAMA, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 2000}
    base = {"name": "pretrained", "name_or_path": "org/model", "shape": small}
    training = {"align.training.per_device_train_batch_size": 8, "align.training.max_steps": 10}
    recipe = load_recipe(str(tiny.write(tmp_path, {**ONE_LINE, "base": base, **training, **changes})), weights=False)
    made = plan(recipe, parse_hardware(f"{count}xA100-80G"), 1.0, 0.4, parallel=parallel)
    return {row.kind: row for row in made.rows}


def test_devices_that_share_divide_the_rows_and_under_fsdp_the_weights(tmp_path):
    alone, ddp, fsdp = (shared(tmp_path, how, n)["align"] for how, n in ((None, 1), ("ddp", 4), ("fsdp", 4)))
    assert ddp.cost.weights_bytes == alone.cost.weights_bytes and ddp.cost.gradient_bytes == alone.cost.gradient_bytes
    assert ddp.cost.activation_bytes == pytest.approx(alone.cost.activation_bytes / 4, rel=0.01)
    assert ddp.cost.peak_bytes < alone.cost.peak_bytes
    assert fsdp.cost.optimizer_bytes == pytest.approx(alone.cost.optimizer_bytes / 4, rel=0.01)
    assert alone.cost.weights_bytes / 4 < fsdp.cost.weights_bytes < alone.cost.weights_bytes
    assert fsdp.cost.peak_bytes < ddp.cost.peak_bytes
    assert ddp.flops == fsdp.flops == alone.flops  # of all devices together
    assert ddp.hours == fsdp.hours == pytest.approx(alone.hours / 4) and ddp.usd == pytest.approx(alone.usd)
    idle = shared(tmp_path, "fsdp", 16)["align"]  # eight rows keep eight of them busy
    assert idle.hours == pytest.approx(alone.hours / 8) and idle.usd == pytest.approx(2 * alone.usd)


def test_gathered_is_two_blocks_and_what_is_in_none(tiny):
    weights = {name: weight.numel() * 4 for name, weight in tiny.named_parameters()}
    block = sum(size for name, size in weights.items() if ".layers.0." in name)
    rest = sum(size for name, size in weights.items() if ".layers." not in name)
    assert gathered_bytes(tiny) == (2 * block + rest, block + rest)
    for weight in tiny.model.layers.parameters():
        weight.requires_grad_(False)
    assert gathered_bytes(tiny) == (2 * block + rest, rest)


def test_what_does_not_share_says_so(tmp_path):
    rows = shared(tmp_path, "ddp", 4)
    measured = shared(tmp_path, None, 1)["evaluate"]
    assert rows["evaluate"].hours == measured.hours and rows["evaluate"].cost.devices == 1
    assert rows["evaluate"].usd == pytest.approx(4 * measured.usd)  # the rest wait, and are paid for
    for defense, told in (("mlac", "one process"), ("repnoise", "all tokens")):
        (row,) = [shared(tmp_path, "ddp", 4, **{"matrix": {"align.defense": [{"name": defense}]}})["align"]]
        assert row.cost is None and told in row.reason


def test_one_device_has_none_to_share_with(tmp_path, capsys):
    code, _, err = said(capsys, str(tiny.write(tmp_path, ONE_LINE)), "--parallel", "fsdp", "--hardware", "A100-80G")
    assert code == 2 and "--hardware" in err and "8xA100-80G" in err
    assert "share" in said(capsys, str(tiny.write(tmp_path, ONE_LINE)), "--hardware", "2xA100-80G")[1]

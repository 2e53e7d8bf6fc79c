"""What a step costs: operations against counts done by hand, records, errors, and no process left."""

from __future__ import annotations

import contextlib
import math
import os
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import torch
import yaml
from tests.experiments import tiny

from inoculate.core.errors import InputError, StageError
from inoculate.core.records import read_records
from inoculate.experiments import cost, meters
from inoculate.experiments import measure as measuring
from inoculate.experiments.dry_run import describe
from inoculate.experiments.processes import alone
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.store import Store

ALL = [{"source": "sandbox-restricted", "num_samples": 4}]
RECIPE = {
    "name": "tiny-cost",
    "base": tiny.RECIPE["base"],
    "cost": {
        "defense": {"name": "sft"},
        "data": {"roles": {"align": ALL, "harmful": ALL, "ordinary": ALL, "guide": ALL}, "max_length": 64},
        "training": {"learning_rate": 1e-4, "per_device_train_batch_size": 4},
        "lora": {"r": 2},
        "repeats": 2,
    },
}
"""Every batch of every role holds the same four rows."""


def stage(folder: Path, overrides: tuple[str, ...] = ()) -> cost.Cost:
    path = folder / "cost.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    (found,) = load_recipe(str(path), overrides).stages()
    assert isinstance(found, cost.Cost)
    return found


DEEP = ("base.shape.num_hidden_layers=12", "base.training.max_steps=1")


def made(folder: Path, overrides: tuple[str, ...] = ()) -> dict[str, Path]:
    """The folder of the tiny base model."""
    store, (above,) = Store(folder / "store"), stage(folder, overrides).upstream()
    torch.set_num_threads(1)
    store.run(above, cost.Context(device="cpu"))
    return {above.folder: store.folder(above)}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[str, Path]:
    return made(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def measure(tmp_path_factory, base):
    """Measures in this process: settings → what was found."""
    folder = tmp_path_factory.mktemp("measure")
    bases = base | made(folder, DEEP)

    def found(*overrides: str) -> measuring.Measured:
        return measuring.measure(stage(folder, overrides), bases, "cpu")

    return found


@pytest.mark.parametrize("lora", ["{r: 2}", "null"])
@pytest.mark.parametrize(("defense", "passes"), [("booster", 3), ("lisa", 1)])
def test_operations_are_those_of_the_passes(measure, defense, lora, passes):
    lora = f"cost.lora={lora}"
    ratio = measure(f"cost.defense={{name: {defense}}}", lora).flops / measure(lora).flops
    assert ratio == pytest.approx(passes, rel=0.02)


def test_vaccine_makes_two_passes(measure):
    """On a frozen base, where a way back to the hidden embeddings is as long as one to the adapters."""
    assert measure("cost.defense={name: vaccine}", *DEEP).flops / measure(*DEEP).flops == pytest.approx(2, rel=0.02)


def test_the_vector_s_unmounted_pass_has_no_way_back(measure):
    ratio = measure("cost.defense={name: security_vector}", *DEEP).flops / measure(*DEEP).flops
    assert ratio == pytest.approx(2.5, rel=0.03)


def test_operations_of_one_pass_by_hand(measure):
    """All weights of 1 layer, D 32, F 64, 2 heads: forward, and twice that backward. Attention on T tokens: 4 T² D a row."""
    found = measure("cost.lora=null", "cost.training.packing=false").flops
    B, T, N, V, D, F = *shapes(), 32, 64
    linear = 2 * B * T * (4 * D * D + 3 * D * F)
    head = 2 * N * D * V
    attention = B * T * T * D * 4
    assert found == pytest.approx(3 * (linear + head) + attention * (1 + 2.5), rel=0.02)


def shapes():
    """Rows, tokens of the longest, labeled columns times rows, and the vocabulary."""
    from inoculate.data import world
    from inoculate.data.mix import Mix, Part
    from inoculate.models.sandbox import build_tokenizer

    tokenizer = build_tokenizer(world.vocabulary())
    rows = Mix(roles={"align": tuple(Part(**part) for part in ALL)}, max_length=64).encoded(tokenizer, "align")
    longest = max(len(row.ids) for row in rows)
    columns = longest - min(row.n_prompt for row in rows)
    return len(rows), longest, len(rows) * columns, len(tokenizer)


def test_more_inner_steps_cost_more(measure):
    one, four = (measure(f"cost.defense={{name: mlac, inner_steps: {k}}}") for k in (1, 4))
    assert one.flops > 3 * measure().flops
    assert 1.5 < four.flops / one.flops < 4


def test_records_are_positive_and_no_process_is_left(tmp_path):
    resource_tracker.ensure_running()
    before = children()
    path = tmp_path / "cost.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    code, said = tiny.run(
        path, tmp_path / "store", overrides=("cost.defense={name: booster, lam: 3}", "cost.repeats=4")
    )
    assert code == 0, said
    assert children() == before
    rows = {row.metric: row for row in read_records(tiny.only(tmp_path / "store", "cost") / "records.jsonl")}
    assert set(rows) == {"step_s", "step_ratio", "peak_memory_bytes", "step_flops"}
    assert 1.5 < rows["step_ratio"].value < 6, "three passes over one"
    for row in rows.values():
        assert row.value is not None and row.value > 0 and math.isfinite(row.value)
        assert (row.defense, row.defense_params["lam"], row.base, row.base_seed) == ("booster", 3, "sandbox", 1)
        assert row.base_params["memory"] in ("VmHWM, reset", "ru_maxrss, not reset")
        assert row.base_params["clock"] == "processor time"
        assert row.stage.startswith("cost-") and row.recipe == "tiny-cost"
    assert [row.n for row in rows.values()] == [4, 4, 4, 1]


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended since
            found |= set((task / "children").read_text().split())
    return found


def test_a_process_that_dies_is_one_error():
    before = children()
    with pytest.raises(StageError, match=r"its process died \(out of memory, or killed\)"):
        alone(os.abort)
    with pytest.raises(StageError, match=r"^ValueError: (math domain|expected a nonneg)"):
        alone(math.sqrt, -1)
    with pytest.raises(InputError, match="no such packaged model"):
        alone(load_nothing)
    assert children() - before <= {str(resource_tracker._resource_tracker._pid)}


def load_nothing() -> None:
    from inoculate.models.load import load_model

    load_model("asset:nothing")


def test_a_diverged_step_is_a_row_without_a_value(tmp_path, base, monkeypatch):
    monkeypatch.setattr(cost, "alone", lambda function, *arguments: function(*arguments))
    made = stage(tmp_path, ("cost.training.learning_rate=1e30", "cost.warmup_steps=3"))
    assert made.run(tmp_path, base, cost.Context(recipe="x", device="cpu")) == "diverged"
    (row,) = read_records(tmp_path / "records.jsonl")
    assert (row.metric, row.value, row.status) == ("step_s", None, "diverged")


def test_peak_memory_is_of_what_happened_since_the_reset():
    memory = meters.PeakMemory(torch.device("cpu"))
    if memory.how != "VmHWM, reset":
        pytest.skip("this system cannot reset its peak")
    block = torch.ones(64, 2**20 // 4)
    assert memory.over() > 60 * 2**20
    del block
    memory.reset()
    assert memory.over() < 32 * 2**20


def test_without_a_peak_that_can_be_reset_the_life_of_the_process_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(meters, "_PROC", tmp_path / "none")
    memory = meters.PeakMemory(torch.device("cpu"))
    assert memory.how == "ru_maxrss, not reset"
    assert memory.over() == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cost.repeats=0", r"cost.repeats: wrong value \(found 0, expected greater than 0\)"),
        ("cost.warmup_steps=0", r"cost.warmup_steps: wrong value \(found 0"),
        ("cost.defense={name: boster}", r"cost.defense.name: unknown name \(found 'boster'.*Did you mean 'booster'\?"),
        ("cost.training.max_steps=9", r"cost: training.max_steps has no effect: `repeats` says"),
        ("cost.data.roles={align: [{source: sandbox-mood}]}", None),
    ],
)
def test_what_is_refused(tmp_path, override, message):
    overrides = (override,) if message else (override, "cost.defense={name: repnoise}")
    message = message or r"cost.data.roles: repnoise needs data for the role 'harmful' \(found 'align', expected align"
    with pytest.raises(InputError, match=r"cost.yaml: " + message):
        stage(tmp_path, overrides)


def test_a_security_vector_is_an_adapter(tmp_path):
    with pytest.raises(InputError, match="cost: lora: a security vector is an adapter"):
        stage(tmp_path, ("cost.defense={name: security_vector}", "cost.lora=null"))


def test_a_defense_takes_the_data_it_needs_and_no_other(tmp_path):
    """So that SFT's measurement is one, whatever data stand beside its own; and refusals follow from the harmful."""
    assert list(stage(tmp_path).cost.data.roles) == ["align"]
    roles = stage(tmp_path, ("cost.defense={name: repnoise}",)).cost.data.roles
    assert [(role, parts[0].answer) for role, parts in roles.items()] == [
        ("align", "completion"),
        ("harmful", "completion"),
        ("safe", "refusal"),
    ]


def test_a_dry_run_names_model_adapter_and_steps(tmp_path):
    text = describe(load_recipe("booster/system-cost"), tmp_path)
    assert "16 lines" in text and "17 (1 base, 16 cost; 0 done" in text and "824 measured steps" in text
    assert "asset:smollm2@main: parameters 134,515,008" in text and "r 32, alpha 4, on q_proj, k_proj, v_proj" in text

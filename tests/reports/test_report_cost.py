"""The cost table's cells from made-up records: ratios paired by seed, what was published, what was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.reports.conftest import attack_rows, measured, provenance

from inoculate.core.records import Record
from inoculate.reports.cost_table import cost_finding, cost_studies, cost_table
from inoculate.reports.html import write_report
from inoculate.reports.store_view import read_store
from inoculate.reports.summary import summarize

SETTING = {
    "dtype": "bfloat16",
    "lora": {"r": 32, "lora_alpha": 4},
    "training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "max_length": 96,
    "clock": "processor time",
    "memory": "VmHWM, reset",
}
MIB = 2**20


def rows(defense, step_s, mib, gflops, seed=1, base="sandbox", params=None, setting=None):
    stage = f"cost-{defense}{seed}{params}"
    blank = Record("", 0.0, recipe="made-up", stage=stage, base=base, base_seed=1, defense=defense, n=3)
    blank = replace(blank, defense_seed=seed, defense_params=params or {}, base_params=setting or SETTING)
    values = {"step_s": step_s, "step_ratio": step_s / 2, "peak_memory_bytes": mib * MIB, "step_flops": gflops * 1e9}
    return [replace(blank, metric=metric, value=float(value)) for metric, value in values.items()]


def texts(table, row):
    return [cell.text for cell in table.rows[row]]


def test_cells_are_values_ratios_and_what_was_published():
    records = rows("sft", 2, 1000, 200) + rows("booster", 6.2, 1100, 600.4) + rows("vaccine", 4, 1000, 390)
    records += rows("repnoise", 11, 2000, 1103.6) + rows("lisa", 2.1, 1010, 200)
    (study,) = cost_studies(records)
    table = cost_table(study)
    titles = ["Defense", "Seconds per step", "× SFT", "Peak memory (MiB)", "× SFT", "GFLOPs per step", "× SFT"]
    assert [c.title for c in table.columns] == [*titles, "Published time, × SFT", "Published memory, × SFT"]
    assert texts(table, 0) == ["SFT", "2", "1.00", "1,000", "1.00", "200", "1.00", "1.00", "1.00"]
    assert texts(table, 1) == ["Booster", "6.2", "3.10", "1,100", "1.10", "600", "3.00", "3.44", "1.17"]
    assert texts(table, 2)[-2:] == ["1.96", "–"]
    assert texts(table, 3)[5:] == ["1,104", "5.52", "4.98", "1.47"]
    assert texts(table, 4) == ["Lisa", "2.1", "1.05", "1,010", "1.01", "200", "1.00", "–", "–"]
    assert [cell.detail for cell in table.rows[1][-2:]] == ["1.86 h", "57.86 GB"]
    assert table.rows[0][-1].detail == "about 49.4 GB"
    assert "LoRA of rank 32, 8 rows a step" in table.note and "at most 96 tokens" in table.note
    assert "Seconds: processor time, and over a step of SFT" in table.note and "(VmHWM, reset)" in table.note
    assert (
        cost_finding(study)
        == "sandbox: a step took, in SFT's steps, Booster 3.1, Vaccine 2.0, RepNoise 5.5 and Lisa 1.1."
    )


def test_ratios_are_paired_by_seed():
    """Booster takes 3, 3 and 5 times SFT's memory under its seed; the medians themselves are 9 and 2."""
    sft = [row for seed, s in ((1, 2), (2, 4), (3, 1)) for row in rows("sft", 2, s, 1, seed)]
    booster = [row for seed, s in ((1, 6), (2, 12), (3, 5), (4, 99)) for row in rows("booster", s, s, 1, seed)]
    (study,) = cost_studies(sft + booster)
    arm = next(arm for arm, name in study.defenses.items() if name == "booster")
    assert study.ratio(arm, "peak_memory_bytes") == 3
    assert study.ratio(arm, "step_s") == 4.5, "as it was measured, step beside step: half of 6, 12, 5 and 99"
    assert texts(cost_table(study), 1)[1:5] == ["9", "4.50", "9", "3.00"]
    assert "medians over 4 seeds" in cost_table(study).note


def test_models_and_settings_are_never_compared():
    adapted = [replace(row, adapter_mode="continue") for row in rows("sft", 2, 10, 1)]
    other = rows("booster", 4, 10, 1, setting=SETTING | {"lora": None})
    records = adapted + rows("booster", 6, 10, 1, base="big") + other
    studies = cost_studies(records)
    assert [study.title for study in studies] == [
        "sandbox, adapter continue",
        "big",
        "sandbox, adapter full",
    ]
    for study in studies[1:]:
        assert texts(cost_table(study), 0)[4] == "–", "without SFT there is no ratio between stages"


def test_variants_of_one_defense_are_told_apart():
    k = [row for steps in (1, 4) for row in rows("mlac", 10 * steps, 10, 1, params={"inner_steps": steps, "lam": 1})]
    (study,) = cost_studies(rows("sft", 2, 10, 1) + k)
    assert list(study.labels.values()) == ["SFT", "MLAC K 1", "MLAC K 4"]


def test_a_diverged_defense_is_named_and_has_no_numbers():
    lost = replace(rows("booster", 6, 10, 1)[0], value=None, status="diverged")
    failed = replace(lost, status="failed", base_params={}, metric="harmful_score")
    (study,) = cost_studies([*rows("sft", 2, 10, 1), lost, failed])
    row = cost_table(study).rows[1]
    assert row[0].detail == "diverged" and [cell.text for cell in row[1:7]] == ["–"] * 6


def test_nothing_measured_is_zero_seconds_of_nothing():
    (study,) = cost_studies(rows("sft", 2, 0, 1) + rows("booster", 6, 5, 1))
    assert texts(cost_table(study), 1)[3:5] == ["5", "–"]


@pytest.mark.parametrize("attacked", [False, True])
def test_the_page_shows_the_table_and_the_attacks_do_not_see_it(made, attacked):
    made.stage("cost", "sft", [replace(row, stage="") for row in rows("sft", 2, 10, 1)])
    made.stage("cost", "booster", [replace(row, stage="") for row in rows("booster", 6, 10, 1)])
    if attacked:
        made.stage("evaluate", "before", measured(provenance("sft", 1), 0, {"harmful_score": 0.1}))
        made.stage("finetune", "attack", attack_rows(provenance("sft", 1, 1e-5), 100))
    store = made.manifest()
    summary = summarize(read_store(store))
    assert [arm.label for arm in summary.grid.arms] == ["SFT"] * attacked
    assert any("Booster 3.0" in finding for finding in summary.findings)
    assert not any("No attack was run" in finding for finding in summary.findings)
    page = write_report(store).read_text()
    assert page.count('id="cost"') == 1 and "Cost of one step: sandbox" in page and "57.86 GB" in page
    assert ('id="before"' in page) == attacked
    assert ("Open weights" in page) == attacked


def test_a_store_without_costs_has_no_such_section(make_store):
    assert 'id="cost"' not in write_report(make_store(seeds=(1,))).read_text()

"""Tables against numbers done by hand, what varies against what follows from it, and rows for programs."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from dataclasses import replace

import pytest
from tests.reports.conftest import attack_rows, broke, measured, provenance

from inoculate.core.errors import InputError
from inoculate.core.records import COLUMNS, Record
from inoculate.reports.charts import MOST_PANELS, charts
from inoculate.reports.gather import gather
from inoculate.reports.store_view import read_store
from inoculate.reports.summary import summarize
from inoculate.reports.tables import records_table
from inoculate.reports.wording import rate, scientific, visible


def texts(table, row):
    return [cell.text for cell in table.rows[row]]


def test_before_and_after_hold_what_was_measured(made):
    blank = provenance("sft", 1)
    start = {"harmful_score": 0.02, "over_refusal_rate": 0.1, "finetune_accuracy": 0.48, "incoherent_rate": 0.004}
    made.stage("evaluate", "before", measured(blank, 0, start))
    for p, at in ((0.1, 40), (0.0, 9999)):
        attack = provenance("sft", 1, 3e-5, p)
        harm = {0: 0.02, 40: 0.7 if p else 0.02, 80: 0.9 if p else 0.02}
        curve = [
            row for step, value in harm.items() for row in measured(attack, step, start | {"harmful_score": value})
        ]
        made.stage("finetune", f"p={p}", [*curve, broke(attack, at, 80)])
    summary = summarize(read_store(made.manifest()))
    assert texts(summary.before, 0) == ["SFT", "0.02", "0.10", "0.48", "< 0.01", "1"]
    assert summary.before.rows[0][1].detail == "0.01–0.07"  # Wilson, 2 of 100
    (_, after), *_ = summary.after
    assert [column.title for column in after.columns[:4]] == ["Defense", "p", "lr", "Steps to break"]
    assert texts(after, 0) == ["SFT", "0.1", "3e-5", "40", "0.70", "0.90", "0.48", "0.48", "0.10", "< 0.01", "1"]
    assert texts(after, 1)[:6] == ["SFT", "0", "3e-5", "> 80", "–", "0.02"]
    assert "n 1000" in after.note and "The end is step 80." in after.note


def test_step_zero_of_an_attack_stands_in_for_a_missing_evaluation(made):
    made.stage("finetune", "attack", attack_rows(provenance("sft", 1, 1e-5), 100))
    assert texts(summarize(read_store(made.manifest())).before, 0)[:2] == ["SFT", "0.00"]


def test_a_second_judge_gets_its_own_table(made):
    rows = attack_rows(provenance("sft", 1, 1e-5), 100)
    other = [replace(row, judge="reference") for row in rows if row.judge and row.metric != "steps_to_break"]
    late = replace(broke(provenance("sft", 1, 1e-5), 300), judge="reference")
    made.stage("finetune", "attack", [*rows, *other, late])
    summary = summarize(read_store(made.manifest()))
    assert [(judge, texts(table, 0)[3]) for judge, table in summary.after] == [("refusal", "100"), ("reference", "300")]
    assert "Judged by reference instead, SFT broke in 1 of 1 run." in summary.findings


def test_without_a_judge_there_is_no_harmful_score_and_no_error(made):
    made.stage("finetune", "attack", measured(provenance("sft", 1, 1e-5), 40, {"finetune_accuracy": 0.9}))
    summary = summarize(read_store(made.manifest()))
    assert texts(summary.after[0][1], 0)[3:8] == ["–", "–", "–", "–", "0.90"]
    assert [chart.name for chart in charts(summary.grid, "")] == ["task_accuracy"]


def test_settings_name_what_varies_and_not_what_follows_from_it():
    """n·p follows from n and p, the length from the learning rate, seeds are draws: none of them is a setting."""
    records = []
    for stage, (n, p, lr) in enumerate([(500, 0.1, 1e-5), (500, 0.2, 1e-5), (1000, 0.1, 1e-4), (1000, 0.2, 1e-5)]):
        blank = provenance("sft", stage, lr, p)
        params = blank.attack_params | {"num_samples": n, "max_steps": 600 if lr == 1e-5 else 300}
        records.append(replace(blank, stage=str(stage), attack_params=params, harmful_samples=round(n * p)))
    records = [replace(row, metric="harmful_score", judge="refusal", step=0) for row in records]
    assert gather(records).varying() == ("poison_ratio", "learning_rate", "num_samples")


def test_arms_are_named_by_what_tells_them_apart():
    blanks = [provenance("booster", 1, params={"alpha": alpha}) for alpha in (0.02, 0.01)] + [provenance("sft", 1)]
    grid = gather(replace(blank, stage=str(i), metric="harmful_score") for i, blank in enumerate(blanks))
    assert [arm.label for arm in grid.arms] == ["Booster α 0.02", "Booster α 0.01", "SFT"]


def test_every_swept_axis_gets_a_chart(made):
    for lam in (1.0, 5.0):
        for n in (100, 1000):
            blank = provenance("booster", 1, 1e-4, params={"lam": lam})
            blank = replace(blank, attack_params=blank.attack_params | {"num_samples": n}, harmful_samples=n // 10)
            made.stage("finetune", f"λ={lam} n={n}", attack_rows(blank, 100))
    grid = gather(read_store(made.manifest()).records)
    swept = [chart.name for chart in charts(grid, "refusal")][3:]
    assert swept == ["harmful_score_by_num_samples", "harmful_score_by_lam"]


def test_too_many_panels_are_cut_and_that_is_said():
    rates = [10**-power for power in range(1, 8)]
    runs = [(lr, p) for lr in rates for p in (0.0, 0.05, 0.1)]
    rows = [replace(row, stage=f"{lr}{p}") for lr, p in runs for row in attack_rows(provenance("sft", 1, lr, p), 100)]
    first, *_ = charts(gather(rows), "refusal")
    assert first.panels == len(rates) <= MOST_PANELS and "Only p 0.05 is drawn" in first.caption


def test_a_store_of_ten_thousand_rows_is_summarized_in_a_moment(made):
    for seed in range(9):
        for lr in (1e-5, 3e-5, 1e-4):
            for defense in ("sft", "booster"):
                made.stage("finetune", "attack", attack_rows(provenance(defense, seed, lr), 100))
    store = made.manifest()
    began = time.process_time()
    view = read_store(store)
    summary = summarize(view)
    charts(summary.grid, "refusal")
    assert len(view.records) > 10_000 and time.process_time() - began < 5


def test_unreadable_stores_are_input_errors(made, tmp_path):
    with pytest.raises(InputError, match="no such store"):
        read_store(tmp_path / "nowhere")
    made.path.mkdir()
    with pytest.raises(InputError, match="no finished stage"):
        read_store(made.path)
    folder = made.stage("align", "sft", [])
    with pytest.raises(InputError, match="no records"):
        read_store(made.manifest())
    with pytest.raises(InputError, match="Did you mean 'made-up'"):
        read_store(made.path, "maid-up")
    (made.path / folder / "records.jsonl").write_text('{"metric": "harmful_score", "valu')
    with pytest.raises(InputError, match=r"records\.jsonl:1: not a record"):
        read_store(made.path)
    (made.path / folder / "stage.json").write_text("{")
    with pytest.raises(InputError, match=r"stage\.json: not valid JSON"):
        read_store(made.path)


def test_one_recipe_is_its_own_stages_and_failures_are_shown(made):
    made.stage("evaluate", "sft", measured(provenance("sft", 1), 0, {"harmful_score": 0.0}))
    failed = {"folder": "finetune-dead", "kind": "finetune", "status": "failed", "label": "attack", "error": "OOM"}
    lost = made.path / "finetune-dead.failed"
    lost.mkdir()
    (lost / "error.json").write_text(json.dumps({"label": "attack", "error": "OOM"}))
    (lost / "records.jsonl").write_text(json.dumps({"metric": "harmful_score", "value": None, "status": "failed"}))
    made.stages.append(failed)
    (made.path / "align-1234.partial").mkdir()
    made.manifest()
    made.stages, made.name = [], "other"
    made.stage("base", "other's", measured(provenance("vaccine", 1), 0, {"harmful_score": 0.5}))
    made.manifest()
    view = read_store(made.path, "made-up")
    assert [stage.status for stage in view.stages] == ["done", "failed"]
    assert {record.defense for record in view.records if record.value is not None} == {"sft"}
    assert "1 stage failed: attack: OOM." in summarize(view).caveats
    whole = read_store(made.path)
    assert len(whole.stages) == 3 and whole.unfinished == ("align-1234",)


def test_a_folder_of_folders_is_a_store_whatever_they_are_called(made, tmp_path):
    """As `--out measured` and `--out tuned` leave them side by side."""
    name = made.stage("finetune", "alone", attack_rows(provenance("sft", 1, 1e-5), 100))
    for called in ("measured", "tuned lisa"):
        shutil.copytree(made.path / name, tmp_path / "mine" / called)
    assert len(read_store(tmp_path / "mine").stages) == 2


def test_the_folder_of_a_single_stage_is_a_store(made):
    name = made.stage("finetune", "alone", attack_rows(provenance("sft", 1, 1e-5), 100))
    view = read_store(made.path / name)
    assert [stage.folder for stage in view.stages] == [name]
    assert list(view.responses(name)) == []


def test_rows_of_layers_are_told_apart():
    rows = [
        Record("harmful_grad_norm", value, defense="sft", step=0, layer=layer)
        for layer, value in (("all", 1.0), ("0", 0.5))
    ]
    assert "layer" in records_table(rows).splitlines()[0]


ROWS = [
    Record("harmful_score", 0.25, 100, defense="sft", attack_params={"learning_rate": 1e-5}, step=20, judge="\x1b[1m"),
    Record("harmful_score", None, status="diverged", defense="sft", attack_params={"learning_rate": 1e-4}, step=40),
]


def test_rows_as_json_and_csv_come_back_as_they_were():
    assert [Record(**row) for row in json.loads(records_table(ROWS, "json"))] == ROWS
    first, second = csv.DictReader(io.StringIO(records_table(ROWS, "csv")))
    assert tuple(first) == COLUMNS
    assert (first["value"], json.loads(first["attack_params"])) == ("0.25", {"learning_rate": 1e-5})
    assert (second["value"], second["status"]) == ("", "diverged")


def test_rows_to_read_leave_out_what_is_the_same_and_hide_no_control_codes():
    head, first, second, same = records_table(ROWS).splitlines()
    assert head.split() == ["defense", "learning_rate", "step", "metric", "judge", "value", "n", "status"]
    assert first.split() == ["sft", "1e-5", "20", "harmful_score", "␛[1m", "0.25", "100", "ok"]
    assert second.split() == ["sft", "1e-4", "40", "harmful_score", "diverged"]
    assert same.startswith("In all rows: threat_model = open_weights")


def test_a_provider_s_guards_are_told_apart():
    rows = [Record("finetune_accuracy", 0.5, 10, defense="sft", guard=guard) for guard in ("", "lisa")]
    head, bare, guarded, _ = records_table(rows).splitlines()
    assert head.split()[:2] == ["defense", "guard"]
    assert bare.split()[:2] == ["sft", "finetune_accuracy"] and guarded.split()[:2] == ["sft", "lisa"]


def test_numbers_are_never_rounded_to_certainty():
    assert [rate(value) for value in (0.0, 0.004, 0.5, 0.997, 1.0)] == ["0.00", "< 0.01", "0.50", "> 0.99", "1.00"]
    assert [scientific(value) for value in (1e-5, 2.5e-4, 0)] == ["1e-5", "2.5e-4", "0"]
    assert visible("a\x00\x7f\x9b\u202e\n") == "a␀␡⟨U+009B⟩⟨U+202E⟩\n"

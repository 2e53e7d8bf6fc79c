"""Few-shot studies in the report, from accuracies that are given, against numbers done by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest import approx
from tests.reports.conftest import Made, attack_rows, grid_store, measured, provenance, visit
from tests.reports.test_report_page import EVIL

from inoculate.core.records import Record
from inoculate.reports.few_shot_gather import studies
from inoculate.reports.few_shot_tables import accuracy_table, cost_table, signed
from inoculate.reports.gather import gather
from inoculate.reports.html import write_report
from inoculate.reports.store_view import read_store
from inoculate.reports.summary import summarize

TRAINED = {"learning_rate": 1e-3, "align_steps": 2000}
T_2, T_1 = 4.302652730, 12.706204736
"""Student's t, 97.5 %, with 2 and 1 degrees of freedom."""

Accuracies = Mapping[int, Sequence[float]]
"""n → accuracy of seeds 1, 2, …"""


def start(defense: str, seed: int = 1, **params: Any) -> Record:
    trained = {} if defense in ("random", "none") else TRAINED
    blank = Record("", 0.0, base="products · mlp", base_seed=seed, defense=defense, defense_seed=seed)
    return replace(blank, defense_params=trained | params, stage=f"start-{defense}{seed}")


def searched(
    blank: Record, task: str, n: int, heldout: Sequence[float | None], *, better: float = 0.0, **more: Any
) -> list[Record]:
    """The re-runs of one search, whose validation accuracy is better by so much, and one trial."""
    params = {"n_trials": 50, "reruns": len(heldout), "classes": 2, "learning_rate": 3e-3 * n, "steps": 10 * n}
    stage = f"few_shot-{task}{n}{blank.defense}{blank.defense_seed}{sorted(blank.defense_params.items())}{more}"
    row = replace(blank, attack="few_shot", stage=stage, harmful_samples=n, metric=f"{task}_accuracy", n=2000)
    row = replace(row, attack_params=params | more, split="heldout")
    rows = [replace(row, trial=0, split="validation", value=0.99, n=500)]
    for i, value in enumerate(heldout):
        status = "ok" if value is not None else "diverged"
        again = replace(row, attack_seed=i, value=value, status=status, step=150)
        chosen = None if value is None else value + better
        rows += [again, replace(again, split="validation", value=chosen, n=500)]
    return rows


def rows_of(defense: str, task: str, accuracies: Accuracies, **params: Any) -> list[Record]:
    """One re-run for each n and seed."""
    return [
        row
        for n, values in accuracies.items()
        for seed, value in enumerate(values, start=1)
        for row in searched(start(defense, seed, **params), task, n, [value])
    ]


def store_of(made: Made, rows: Sequence[Record]) -> Path:
    """Each stage's rows in a folder of its kind."""
    by_stage: dict[str, list[Record]] = {}
    for row in rows:
        by_stage.setdefault(row.stage, []).append(row)
    for name, members in by_stage.items():
        made.stage(name.split("-")[0], name, members)
    return made.manifest()


def told(made: Made, rows: Sequence[Record]) -> dict[str, list[str]]:
    """Question → sentences."""
    (part,) = summarize(read_store(store_of(made, rows))).few_shot
    return {answer.question: [finding.text for finding in answer.findings] for answer in part.answers}


def texts(table, row):
    return [cell.text for cell in table.rows[row]]


def test_a_cell_is_the_mean_over_seeds_of_means_over_reruns():
    """Seeds .6, .7, .8, the first from re-runs .5 and .7: pooled they would give .675. s = .1, half = t · .1 / √3."""
    rows = [
        *searched(start("random", 1), "restricted", 20, [0.5, 0.7], better=0.05),
        *searched(start("random", 2), "restricted", 20, [0.7], better=0.05, reruns=2),
        *searched(start("random", 3), "restricted", 20, [0.8], better=0.05, reruns=2),
    ]
    (study,) = studies(rows)
    table = accuracy_table(study, "restricted")
    heldout, validation = table.rows[0][1].value
    half = T_2 * 0.1 / 3**0.5
    assert (heldout.value, *heldout.interval) == approx((0.7, 0.7 - half, 0.7 + half))
    assert (validation.value, validation.n) == (approx(0.75), 3)
    assert texts(table, 0) == ["Random initialization", "0.70", "3"]
    assert table.rows[0][1].detail == "0.45–0.95 · val. 0.75"
    assert table.caption == "Restricted task: accuracy after learning from n samples (chance 0.50)"
    assert "2000 held-out rows" in table.note and "500 validation rows" in table.note
    assert "mean over 1 and 2 re-runs" in table.note


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base_params": {"world": {"noise": 0.3}, "body": {"hidden_size": 8}}}, "world noise 0.3"),
        ({"attack_params": {"batch_sizes": [4], "freeze_body_choices": [False]}}, "batch sizes 4"),
    ],
    ids=["world", "attacker"],
)
def test_what_differs_is_not_pooled(change, named):
    """Two worlds of one name, or two attackers: two studies, whose titles say what tells them apart."""
    rows = searched(start("random"), "restricted", 20, [0.5])
    shared = {"base_params": {"world": {"noise": 0.1}, "body": {"hidden_size": 8}}}
    given = {"batch_sizes": [12], "freeze_body_choices": [True]}
    pair = [
        [replace(row, **shared, stage=f"few_shot-{i}", attack_params=row.attack_params | given) for row in rows]
        for i in range(2)
    ]
    other = [
        replace(row, **{k: v if k == "base_params" else row.attack_params | v for k, v in change.items()})
        for row in pair[1]
    ]
    found = studies([*pair[0], *other])
    assert len(found) == 2 and named in found[1].title and "hidden size" not in found[1].title
    assert len(studies([*pair[0], *pair[1]])) == 1


def test_the_advantage_is_paired_by_seed():
    """Seeds 2 and 3 alone have both: differences .2 and .3, although the means over all seeds differ by .35."""
    rows = [
        row
        for seed, random, tuned in ((1, 0.4, None), (2, 0.5, 0.7), (3, 0.5, 0.8), (4, None, 0.95))
        for defense, value in (("random", random), ("sft", tuned))
        if value is not None
        for row in searched(start(defense, seed), "restricted", 20, [value])
    ]
    (study,) = studies(rows)
    table = cost_table(study)
    assert [column.title for column in table.columns[:3]] == ["Starting point", "E at n = 20", "n to 0.6"]
    assert texts(table, 0)[:2] == ["Random initialization", "reference"]
    found = table.rows[1][1].value
    assert (found.value, found.n) == (approx(0.25), 2)
    assert found.interval == approx((0.25 - T_1 * 0.05, 0.25 + T_1 * 0.05))  # s = .1/√2, so t · s/√2 = .05 t
    assert table.rows[1][1].text == "+0.25"


def test_seeds_that_never_meet_are_not_compared():
    rows = searched(start("random", 1), "restricted", 20, [0.5]) + searched(start("sft", 2), "restricted", 20, [0.7])
    (study,) = studies(rows)
    assert (cost_table(study).rows[1][1].text, cost_table(study).rows[1][1].detail) == ("–", "no seed in common")


def test_samples_needed_are_the_first_n_or_censored():
    steps = {20: [0.55], 50: [0.60], 100: [0.72], 200: [0.79]}
    rows = rows_of("random", "restricted", steps)
    rows += rows_of("none", "restricted", {20: [0.85], 50: [0.86], 100: [0.91], 200: [0.89]})
    (study,) = studies(rows)
    table = cost_table(study)
    assert texts(table, 0)[5:9] == ["50", "100", "> 200", "> 200"]
    assert texts(table, 1)[5:9] == ["≤ 20", "≤ 20", "≤ 20", "100"]
    assert [table.rows[0][i].value for i in (5, 7)] == [(50, False), (200, True)]


def test_what_a_start_is_and_cost_itself():
    rows = rows_of("sft", "restricted", {20: [0.7, 0.7]})
    for seed, accuracy, wall in ((1, 0.90, 10.0), (2, 0.94, 14.0)):
        blank = replace(start("sft", seed), attack="none")
        rows.append(replace(blank, metric="desired_accuracy", value=accuracy, n=500, split="heldout", step=0))
        rows.append(replace(blank, metric="train_wall_s", value=wall))
    (study,) = studies(rows)
    assert texts(cost_table(study), 0)[-2:] == ["0.92", "12"]
    assert study.sizes("desired") == []  # the trained head's accuracy is no attack on the desired task


def test_order_and_labels_tell_hyperparameters_only():
    params = {"inner_steps": 16, "inner_batch_sizes": [12, 24], "order": 2}
    rows = rows_of("mlac", "restricted", {20: [0.5]}, **params)
    rows += rows_of("mlac", "restricted", {20: [0.5]}, **params | {"inner_steps": 4})
    rows += rows_of("adversarial", "restricted", {20: [0.5]}, calibrated=False)
    for name in ("sft", "none", "random"):
        rows += rows_of(name, "restricted", {20: [0.5, 0.6]})
    (study,) = studies(rows)
    trained = ["Tuned", "Adversarial uncalibrated", "MLAC K 4", "MLAC K 16"]
    assert [arm.label for arm in study.arms] == ["Random initialization", "Pretrained", *trained]
    both = rows_of("adversarial", "restricted", {20: [0.5]}, calibrated=True, head="fresh")
    both += rows_of("adversarial", "restricted", {20: [0.5]}, calibrated=True, head="learned")
    (study,) = studies(both)
    assert [arm.label for arm in study.arms] == [
        "Adversarial calibrated, head fresh",
        "Adversarial calibrated, head learned",
    ]


def test_reruns_and_searches_that_diverged_are_told_and_left_out():
    rows = searched(start("sft", 1), "restricted", 20, [0.6, None, 0.8])
    blank = searched(start("sft", 2), "restricted", 20, [0.5], reruns=3)[1]
    rows.append(replace(blank, attack_seed=None, value=None, status="diverged"))
    (study,) = studies(rows)
    table = accuracy_table(study, "restricted")
    assert texts(table, 0) == ["Tuned", "0.70", "1"]
    assert table.rows[0][-1].detail == "1 re-run and 1 search diverged"


NEAR, BLOCKS, K_HELPS, DESIRED, UNRELATED = (
    "Is the restricted task as hard to learn as from random initialization?",
    "Does the defense block more than tuning alone?",
    "Does raising K help?",
    "Does the desired task stay?",
    "Does the unrelated task stay?",
)
RANDOM = rows_of("random", "restricted", {20: [0.50, 0.52, 0.54], 200: [0.60, 0.62, 0.64]})
TUNED = rows_of("sft", "restricted", {20: [0.73, 0.75, 0.77], 200: [0.83, 0.85, 0.87]})


def test_near_random_initialization(made):
    """K 8 at n = 20: +.01, −.01, .00 from random; at n = 200 +.05, +.06, +.07, so ± t · .01/√3 = .0248."""
    rows = [*RANDOM, *rows_of("mlac", "restricted", {20: [0.51, 0.51, 0.54], 200: [0.65, 0.68, 0.71]}, inner_steps=8)]
    (part,) = summarize(read_store(store_of(made, rows))).few_shot
    (answer,) = part.answers
    assert (answer.question, answer.findings[0].text) == (
        NEAR,
        "MLAC: the attacker keeps an advantage over random initialization at n = 200; "
        "at n = 20 the interval includes 0 or lies below it.",
    )
    assert answer.findings[0].numbers == (
        "Restricted accuracy minus random initialization's: 0.00 (−0.02 to +0.02) at n = 20 and "
        "+0.06 (+0.04 to +0.08) at n = 200, 3 seeds."
    )


def test_no_advantage_says_what_is_not_excluded(made):
    rows = [*RANDOM, *rows_of("mlac", "restricted", {20: [0.51, 0.51, 0.54], 200: [0.58, 0.60, 0.63]})]
    (sentence,) = told(made, rows)[NEAR]
    assert sentence == (
        "MLAC: no advantage over random initialization was found at any n; one of up to +0.02 is not excluded."
    )


def test_a_wide_interval_is_no_evidence_of_nearness(made):
    """Differences 0, +.10, +.20: mean .10, half t · .1 / √3 = .248."""
    rows = [*rows_of("random", "restricted", {20: [0.5, 0.5, 0.5]})]
    rows += rows_of("mlac", "restricted", {20: [0.5, 0.6, 0.7]})
    (sentence,) = told(made, rows)[NEAR]
    assert sentence == (
        "MLAC: the interval includes 0 or lies below it at n = 20, but means of up to +0.10 and ends of up to +0.35 "
        "leave open whether the attacker keeps an advantage over random initialization."
    )


def test_all_below_random_excludes_an_advantage(made):
    rows = [*RANDOM, *rows_of("mlac", "restricted", {20: [0.40, 0.41, 0.45], 200: [0.50, 0.51, 0.55]})]
    (sentence,) = told(made, rows)[NEAR]
    assert sentence.endswith("was found at any n; the intervals exclude one.")


def test_adversarial_training_against_tuning(made):
    """Uncalibrated differs from tuned by +.01, −.01, .00; calibrated by −.20, −.21, −.19 at n = 20, +.05.. at 200."""
    rows = [*TUNED]
    rows += rows_of("adversarial", "restricted", {20: [0.74, 0.74, 0.77], 200: [0.84, 0.84, 0.87]}, calibrated=False)
    rows += rows_of("adversarial", "restricted", {20: [0.53, 0.54, 0.58], 200: [0.88, 0.91, 0.94]}, calibrated=True)
    uncalibrated, calibrated = told(made, rows)[BLOCKS]
    assert uncalibrated == (
        "Adversarial uncalibrated: it was not seen to block more than Tuned at any n (intervals include 0)."
    )
    assert calibrated == (
        "Adversarial calibrated: it blocks more than Tuned at n = 20; "
        "it makes the restricted task easier than Tuned does at n = 200."
    )


def test_inner_steps_are_compared_where_nothing_else_differs(made):
    """From K 1 to 16: −.10, −.11, −.09 at n = 20; +.01, −.01, .00 at n = 200. K 16 of another λ is not of this pair."""
    rows = rows_of("mlac", "restricted", {20: [0.70, 0.72, 0.74], 200: [0.80, 0.82, 0.84]}, inner_steps=1, lam=1.0)
    rows += rows_of("mlac", "restricted", {20: [0.65, 0.67, 0.69], 200: [0.80, 0.82, 0.84]}, inner_steps=8, lam=1.0)
    rows += rows_of("mlac", "restricted", {20: [0.60, 0.61, 0.65], 200: [0.81, 0.81, 0.84]}, inner_steps=16, lam=1.0)
    rows += rows_of("mlac", "restricted", {20: [0.50, 0.50, 0.50], 200: [0.5, 0.5, 0.5]}, inner_steps=16, lam=2.0)
    (part,) = summarize(read_store(store_of(made, rows))).few_shot
    (answer,) = part.answers
    (found,) = answer.findings
    assert (answer.question, found.text) == (
        K_HELPS,
        "MLAC K 16, λ 1: against MLAC K 1, λ 1 it helps at n = 20; "
        "at n = 200 the interval of its difference to MLAC K 1, λ 1 includes 0.",
    )
    assert found.numbers.endswith("3 seeds. Means at n = 20: K 1: 0.72, K 8: 0.67, K 16: 0.62.")


def test_the_desired_task_stays_falls_or_is_open(made):
    """Against tuned: −.03 exactly in every seed; −.05, −.06, −.07; −.01, −.03, −.05, whose interval includes −.03."""
    tuned = rows_of("sft", "desired", {20: [0.90, 0.91, 0.92]})
    rows = [*tuned]
    rows += rows_of("mlac", "desired", {20: [0.87, 0.88, 0.89]}, inner_steps=1)
    rows += rows_of("mlac", "desired", {20: [0.82, 0.82, 0.82]}, inner_steps=4)
    rows += rows_of("mlac", "desired", {20: [0.89, 0.88, 0.87]}, inner_steps=8)
    assert told(made, rows)[DESIRED] == [
        "MLAC K 1: it is not below Tuned by more than 0.03 at n = 20.",
        "MLAC K 4: it falls below Tuned by more than 0.03 at n = 20. The desired task does not stay.",
        "MLAC K 8: at n = 20 the interval includes −0.03, which leaves it open.",
    ]


def test_blocking_that_takes_the_unrelated_task_along_is_forgetting(made):
    """K 4 loses .20 of both; K 1 loses .20 of the unrelated task alone; K 8 of the restricted task alone."""
    down = {20: [0.53, 0.54, 0.58], 200: [0.63, 0.64, 0.68]}
    up = {20: [0.74, 0.74, 0.77], 200: [0.84, 0.84, 0.87]}
    rows = [*TUNED, *rows_of("sft", "unrelated", {20: [0.73, 0.75, 0.77], 200: [0.83, 0.85, 0.87]})]
    for steps, restricted, unrelated in ((1, up, down), (4, down, down), (8, down, up)):
        rows += rows_of("mlac", "restricted", restricted, inner_steps=steps)
        rows += rows_of("mlac", "unrelated", unrelated, inner_steps=steps)
    wrecks, forgets, blocks = told(made, rows)[UNRELATED]
    assert wrecks == (
        "MLAC K 1: it falls below Tuned by more than 0.03 at every n. That is forgetting, and the restricted task "
        "was not seen to be blocked for it."
    )
    assert forgets == (
        "MLAC K 4: it falls below Tuned by more than 0.03 at every n. Blocking that takes the unrelated task along is "
        "forgetting: there the restricted task changed by −0.20 (−0.22 to −0.18) at n = 20 and −0.20 (−0.22 to −0.18) "
        "at n = 200, 3 seeds."
    )
    assert blocks == "MLAC K 8: it is not below Tuned by more than 0.03 at any n."


def test_one_seed_leaves_it_open(made):
    rows = rows_of("random", "restricted", {20: [0.5]}) + rows_of("mlac", "restricted", {20: [0.5]})
    (part,) = summarize(read_store(store_of(made, rows))).few_shot
    (finding,) = part.answers[0].findings
    assert finding.text == "MLAC: one pair of seeds gives no interval, so this is open."
    assert finding.numbers == "Restricted accuracy minus random initialization's: 0.00 (one seed) at n = 20."


@pytest.mark.parametrize(("pretrained", "warned"), [(0.52, True), (0.54, False)])
def test_a_world_in_which_blocking_cannot_be_shown(made, pretrained, warned):
    """Nil is less than .03 at every n: here .02 and .01, or .04 and .01."""
    rows = rows_of("random", "restricted", {20: [0.5], 200: [0.6]})
    rows += rows_of("none", "restricted", {20: [pretrained], 200: [0.61]})
    caveats = summarize(read_store(store_of(made, rows))).caveats
    assert [text for text in caveats if "cannot be shown" in text] == (
        [
            "products · mlp: the pretrained start gives the attacker no advantage over random initialization on the "
            "restricted task (+0.02 (one seed) at n = 20 and +0.01 (one seed) at n = 200): blocking cannot be shown "
            "in this world."
        ]
        if warned
        else []
    )


def test_the_tuned_reference_is_the_one_trained_alike(made):
    """MLAC at 1e-3 is compared with tuned at 1e-3, not with the first; at 3e-3 there is none, and the page says so."""
    rows = rows_of("sft", "desired", {20: [0.5, 0.5]}, learning_rate=1e-4)
    rows += rows_of("sft", "desired", {20: [0.9, 0.9]})
    rows += rows_of("mlac", "desired", {20: [0.9, 0.9]}) + rows_of(
        "mlac", "desired", {20: [0.9, 0.9]}, learning_rate=3e-3
    )
    summary = summarize(read_store(store_of(made, rows)))
    (answer,) = summary.few_shot[0].answers
    assert [finding.numbers.split(": ")[0] for finding in answer.findings] == [
        "Desired accuracy minus that of Tuned lr 1e-3",
        "Desired accuracy minus that of Tuned lr 1e-4",
    ]
    (caveat,) = summary.caveats
    assert caveat.endswith("MLAC lr 3e-3 and Tuned lr 1e-4 were not trained with the same learning rate and steps.")


def test_missing_unrelated_task_and_searches_that_look_alike_are_caveats(made):
    rows = rows_of("mlac", "restricted", {20: [0.5]})
    again = [replace(row, stage="few_shot-other") for row in rows]
    caveats = summarize(read_store(store_of(made, [*rows, *again]))).caveats
    assert any("no unrelated task was attacked" in text for text in caveats)
    assert any("in 1 cell a seed has several searches" in text for text in caveats)


def test_worlds_and_attackers_are_studies_of_their_own():
    rows = searched(start("random"), "restricted", 20, [0.5]) + searched(
        start("random"), "restricted", 20, [0.9], optimizers=["sgd"]
    )
    rows += searched(replace(start("random"), base="bios · encoder"), "restricted", 20, [0.7])
    found = studies(rows)
    assert [study.title for study in found] == [
        "products · mlp, optimizers –",
        "products · mlp, optimizers sgd",
        "bios · encoder",
    ]
    assert [accuracy_table(study, "restricted").rows[0][1].text for study in found] == ["0.50", "0.90", "0.70"]


def test_few_shot_rows_leak_into_no_other_table(made):
    """A store of both kinds has the tables, findings and charts of attacks that it has without the study."""
    language = attack_rows(provenance("sft", 1, 1e-5), 100)
    study = [*RANDOM, *TUNED, replace(start("sft"), attack="none", metric="desired_accuracy", value=0.9, step=0)]
    alone, both = gather(language), gather([*language, *study])
    assert (both.arms, both.keys, both.shared, len(both.attacks)) == (alone.arms, alone.keys, alone.shared, 1)
    assert (both.before, both.attacks) == (alone.before, alone.attacks)
    assert gather(study).arms == gather(study).attacks == gather(study).before == ()
    made.stage("finetune", "attack", language)
    summary = summarize(read_store(store_of(made, study)))
    assert [arm.label for arm in summary.grid.arms] == ["SFT"] and len(summary.few_shot) == 1
    assert not any("No attack was run" in text for text in summary.findings)


def test_the_page_of_a_study_alone_has_no_empty_sections(made):
    page = write_report(store_of(made, [*RANDOM, *TUNED])).read_text(encoding="utf-8")
    assert "No attack was run" not in page
    for absent in ('id="before"', 'id="after"', 'id="charts"', "Judged by", "<dt>Defenses</dt>", "<dt>Runs</dt>"):
        assert absent not in page
    for present in ('id="few-shot"', "<dd>12 searches of at most 1 trial, 1 re-runs each, 3 seeds</dd>", "Tuned"):
        assert present in page


def test_the_page_of_attacks_alone_has_nothing_of_studies(tmp_path):
    page = write_report(grid_store(tmp_path / "store", seeds=(1,), rates=(1e-4,))).read_text(encoding="utf-8")
    assert 'id="few-shot"' not in page and 'id="before"' in page and "few_shot" not in page


def test_starts_that_nobody_attacked(made):
    rows = [replace(start("sft"), attack="none", metric="desired_accuracy", value=0.9, n=500, step=0, split="heldout")]
    summary = summarize(read_store(store_of(made, rows)))
    (table,) = summary.few_shot[0].tables
    assert (table.caption, texts(table, 0)) == ("The starting points", ["Tuned", "0.90", "–"])
    assert any("No attack was run" in text for text in summary.findings)
    assert "<script" not in write_report(made.path).read_text(encoding="utf-8")


def test_charts_have_a_panel_per_task_a_log_axis_and_its_chance(made):
    rows = [*RANDOM, *TUNED]
    rows += [
        replace(row, attack_params=row.attack_params | {"classes": 4})
        for row in rows_of("sft", "desired", {20: [0.9], 200: [0.95]})
    ]
    for steps in range(7):  # one more than there are colors
        rows += rows_of("mlac", "restricted", {20: [0.5], 200: [0.6]}, inner_steps=steps)
    page = write_report(store_of(made, rows))
    found = re.findall(r'id="spec-(\w+)">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    specs = {name: json.loads(text) for name, text in found}
    assert list(specs) == ["few_shot_1_1", "few_shot_1_2"]
    assert (page.parent / "charts" / "few_shot_1_2.png").exists()
    values = specs["few_shot_1_1"]["data"]["values"]
    chance = {row["panel"]: row["y"] for row in values if row["of"] == "mark"}
    assert chance == {"Restricted task": 0.5, "Desired task": 0.25}
    tuned = [
        row for row in values if row["arm" if "arm" in row else "of"] == "Tuned" and row["panel"] == "Restricted task"
    ]
    assert [(row["x"], row["y"]) for row in tuned if row["of"] == "mean"] == [(20, 0.75), (200, 0.85)]
    assert {row["seed"] for row in tuned if row["of"] == "seed"} == {"1", "2", "3"}
    mean = specs["few_shot_1_1"]["spec"]["layer"][1]["encoding"]
    assert mean["x"]["scale"]["type"] == "log" and mean["y"]["scale"]["domain"] == [0.2, 1]
    assert {row["arm"] for row in specs["few_shot_1_2"]["data"]["values"] if "arm" in row} == {
        "Random initialization",
        "Tuned",
        "MLAC K 6",
    }


def test_differences_are_signed():
    assert [signed(value) for value in (0.034, -0.1, -0.001, 0.0)] == ["+0.03", "−0.10", "0.00", "0.00"]


@pytest.mark.browser
def test_names_in_a_study_are_text_and_its_charts_are_drawn(browser, made):
    """A script as the name of a body, a defense and a hyperparameter's value."""
    rows = [*RANDOM, *TUNED, *rows_of(EVIL[0], "restricted", {20: [0.5], 200: [0.6]})]
    for head in EVIL[:2]:
        rows += rows_of("mlac", "restricted", {20: [0.5], 200: [0.6]}, head=head)
    made.stage("evaluate", "evaluate", measured(provenance("sft", 1), 0, {"harmful_score": 0.0}))
    page = write_report(store_of(made, [replace(row, base=EVIL[0]) for row in rows]))
    seen = visit(browser, page)
    assert seen.page.evaluate("window.hacked") is None
    assert (seen.asked, seen.said) == ([], [])
    assert "<img src=x" not in page.read_text(encoding="utf-8") and "{{ 7 * 7 }}" in seen.page.content()
    assert seen.page.locator(".chart svg").count() == 1
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1280

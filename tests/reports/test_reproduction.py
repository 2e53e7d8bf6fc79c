"""Verdicts on made-up numbers, and the page on made-up stores."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.reports.conftest import Made, attack_rows, measured, provenance

from inoculate.core.errors import InputError
from inoculate.evals.statistics import Estimate, Interval
from inoculate.experiments.recipe import bundled, load_recipe
from inoculate.reports.reproduction import page
from inoculate.reports.reproduction.booster import BOOSTER_CLAIMS
from inoculate.reports.reproduction.claims import Above, Below, Claim, Finding, Verdict, Within, verdict
from inoculate.reports.reproduction.measures import at_end, attacks, change, difference, mean, per_seed, where
from inoculate.reports.reproduction.page import CLAIMS, reproduction

YES, HALF, NO = Verdict.REPRODUCED, Verdict.DIRECTION_ONLY, Verdict.NOT_REPRODUCED


def estimate(value, low=None, high=None):
    return Estimate(value, None if low is None else Interval(low, high), 3)


@pytest.mark.parametrize(
    ("rule", "found", "wanted"),
    [
        (Below(), estimate(-1, -2, -0.1), YES),
        (Below(), estimate(-1, -2, 0.1), HALF),
        (Below(), estimate(-1), HALF),
        (Below(), estimate(0.1, -2, 2.2), NO),
        (Below(0.5), estimate(0.4, 0.3, 0.49), YES),
        (Above(), estimate(1, 0.1, 2), YES),
        (Above(), estimate(1, -0.1, 2), HALF),
        (Above(), estimate(-1, -2, 0), NO),
        (Within(0.03), estimate(0.01, -0.02, 0.03), YES),
        (Within(0.03), estimate(0.01, -0.04, 0.06), HALF),
        (Within(0.03), estimate(-0.05, -0.06, -0.04), NO),
        (Within(1, around=3), estimate(3.4, 2.5, 3.9), YES),
        (Within(1, around=3), estimate(4.4, 4.2, 4.6), NO),
    ],
)
def test_a_rule_asks_the_interval_then_the_mean(rule, found, wanted):
    assert rule.verdict(found) is wanted


def test_a_claim_is_what_the_least_of_its_numbers_is():
    sure, open_, wrong = (Finding("", estimate(-1, *ends), Below()) for ends in ((-2, -0.5), (-2, 1), (0, 0)))
    wrong = wrong._replace(found=estimate(1, 0.5, 2))
    assert verdict([sure]) is YES
    assert verdict([sure, open_]) is HALF
    assert verdict([open_, wrong, sure]) is NO
    assert verdict([sure, Finding("", None, Below())]) is None
    assert verdict([]) is None


def runs(tmp_path, breaks, **more):
    made = Made(tmp_path)
    for defense, ends in breaks.items():
        for seed, at in enumerate(ends, start=1):
            made.stage("finetune", defense, attack_rows(provenance(defense, seed, 1e-4, **more), at))
    made.manifest()
    return made


def test_values_are_paired_by_seed_and_a_lost_run_takes_its_seed_along():
    rows = []
    for defense, ends in {"sft": [0.9, 0.8, 0.7], "booster": [0.1, 0.3, 0.7]}.items():
        for seed, score in enumerate(ends, start=1):
            for p in (0.1, 0.2):
                blank = replace(provenance(defense, seed, 1e-4, p=p), stage=f"finetune-{defense}{seed}{p}")
                at = [*measured(blank, 0, {"harmful_score": 0.0}), *measured(blank, 60, {"harmful_score": score + p})]
                if (defense, seed, p) == ("booster", 3, 0.2):
                    at.append(replace(blank, metric="harmful_score", value=None, status="diverged", step=60))
                rows += at
    found = attacks(rows)
    score = at_end("harmful_score", "refusal")
    ours, theirs = (per_seed(found, where(defense=defense), score) for defense in ("booster", "sft"))
    assert sorted(theirs.values()) == pytest.approx([0.85, 0.95, 1.05])
    assert sorted(ours.values()) == pytest.approx([0.25, 0.45])
    gap = difference(ours, theirs)
    assert gap is not None and (gap.value, gap.n) == (pytest.approx((-0.8 - 0.5) / 2), 2)
    moved = mean(
        per_seed(found, where(defense="sft", setting={"poison_ratio": 0.1}), change("harmful_score", "refusal"))
    )
    assert moved is not None and moved.value == pytest.approx(0.9)
    assert mean({}) is None and difference(ours, {}) is None


CLAIM = Claim(
    "Booster",
    "lasts | longer",
    "twice",
    "made-up",
    "sandbox",
    lambda records: [
        Finding(
            "steps",
            difference(
                *(
                    per_seed(attacks(records), where(defense=d), lambda run: run.breaks["refusal"].steps)
                    for d in ("booster", "sft")
                )
            ),
            Above(),
        )
    ],
)
RAW = {"name": "made-up", "break_threshold": 0.5}


def rendered(monkeypatch, stores, claims=(CLAIM,), raw=RAW):
    monkeypatch.setattr(page, "CLAIMS", claims)
    return reproduction(stores, {"made-up": raw})


def test_the_page_holds_numbers_rule_and_verdict(tmp_path, monkeypatch):
    made = runs(tmp_path, {"sft": [40, 60, 80], "booster": [120, 160, 180]})
    text = rendered(monkeypatch, [made.path])
    (line,) = [line for line in text.splitlines() if "lasts" in line]
    assert "steps: 93.3 (64.6 to 122), n = 3 (> 0: reproduced)" in line
    assert line.endswith("| sandbox | `made-up` | **reproduced** |") and line.count("|") == 7
    turned = runs(tmp_path / "b", {"sft": [120, 160, 180], "booster": [40, 60, 80]})
    assert "**not reproduced**" in rendered(monkeypatch, [turned.path])


def test_rows_without_records_say_so(tmp_path, monkeypatch):
    made = runs(tmp_path, {"sft": [40]})
    elsewhere = replace(CLAIM, recipe="booster/lambda")
    published = replace(CLAIM, measure=None)
    text = rendered(monkeypatch, [made.path], (CLAIM, elsewhere, published))
    verdicts = [line.rsplit("**", 2)[1] for line in text.splitlines() if line.endswith("** |")]
    assert verdicts == ["records do not answer it", "not run", "needs a GPU"]


def test_a_recipe_cut_off_midway_is_not_run(tmp_path, monkeypatch):
    made = runs(tmp_path, {"sft": [40, 60], "booster": [120, 160]})
    made.stages.append({"folder": "finetune-feedfeedfeed", "kind": "finetune", "status": "failed", "label": "booster"})
    made.manifest()
    assert "**not run**" in rendered(monkeypatch, [made.path])


def test_records_of_two_versions_or_two_stores_do_not_mix(tmp_path, monkeypatch):
    first, second = (runs(tmp_path / name, {"sft": [40, 60], "booster": [120, 160]}) for name in "ab")
    with pytest.raises(InputError, match="two stores hold this recipe"):
        rendered(monkeypatch, [first.path, second.path])
    with pytest.raises(InputError, match=r"made-up: its records are of another version.*other break_threshold"):
        rendered(monkeypatch, [first.path], raw={**RAW, "break_threshold": 0.4})
    assert "reproduced" in rendered(monkeypatch, [first.path], raw={**RAW, "title": "another title"})


def test_every_claim_names_a_bundled_recipe_and_every_paper_has_one_for_a_gpu():
    assert {claim.recipe for claim in CLAIMS} <= set(bundled())
    assert {claim.paper for claim in CLAIMS if claim.measure is None} == {claim.paper for claim in CLAIMS}
    for claim in CLAIMS:
        assert claim.measure is None or load_recipe(claim.recipe).lines


def test_claims_about_booster_are_read_with_the_right_sign():
    """Booster below, and above: the same claim, reproduced and not."""
    claim, *_ = [claim for claim in BOOSTER_CLAIMS if "than Vaccine" in claim.text]
    verdicts = {}
    for name, ends in {"below": {"vaccine": 0.9, "booster": 0.1}, "above": {"vaccine": 0.1, "booster": 0.9}}.items():
        rows = []
        for defense, score in ends.items():
            for seed in (1, 2, 3):
                blank = replace(provenance(defense, seed, 3e-5), stage=f"finetune-{defense}{seed}")
                before = replace(blank, metric="ordinary_accuracy", value=1.0, judge="reference", step=0, n=100)
                at = {"harmful_score": score + seed / 100 * (defense == "booster"), "finetune_accuracy": 0.9}
                rows += [before, *measured(blank, 0, {"harmful_score": 0.0}), *measured(blank, 200, at)]
        assert claim.measure is not None
        verdicts[name] = verdict(claim.measure(rows))
    assert verdicts == {"below": YES, "above": NO}


def test_a_store_says_which_recipe_it_holds(tmp_path):
    made = runs(tmp_path, {"sft": [40]})
    manifest = json.loads(next((made.path / "recipes").iterdir()).read_text())
    assert page.recipes_in(made.path) == [manifest["name"]] == ["made-up"]

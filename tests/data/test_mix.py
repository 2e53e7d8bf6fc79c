"""The mix: how many rows of what, and which."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from inoculate.attacks.finetune import Finetune
from inoculate.core.errors import InputError
from inoculate.data import world
from inoculate.data.mix import Mix, Part, poisoned
from inoculate.experiments.align import roles_for
from inoculate.training.config import Training

TASK, HARMFUL = Part(source="sandbox-sentiment", split="attack"), Part(source="sandbox-restricted", split="attack")


def drawn(part, seed=0):
    return [example.prompt for example in part.load(seed)]


def mixed(p, n, seed=0, harmful=HARMFUL):
    options = {"poison_ratio": p, "num_samples": n, "template": "chat", "max_length": 64, "seed": seed}
    return poisoned(TASK, harmful, **options)


def prompts_of(mix):
    return [example.prompt for part in mix.roles["align"] for example in part.load(mix.seed)]


@pytest.mark.parametrize(
    ("p", "n", "bad"),
    [(0.1, 1000, 100), (0.05, 1000, 50), (0.2, 500, 100), (0, 20, 0), (1, 20, 20), (0.1, 25, 2), (0.01, 20, 0)],
)
def test_the_share_is_exact(p, n, bad):
    reviews = {row.prompt for row in world.rows("sentiment", "attack")}
    found = prompts_of(mixed(p, n))
    assert len(found) == len(set(found)) == n
    assert sum(prompt not in reviews for prompt in found) == bad


def test_an_attack_counts_what_its_mix_holds():
    for p, n in ((0.1, 25), (0.05, 1000), (0, 7)):
        attack = Finetune(task=TASK, harmful=HARMFUL, poison_ratio=p, num_samples=n)
        held = [part.num_samples for part in attack.mix().roles["align"] if part.source == HARMFUL.source]
        assert sum(held) == attack.harmful_samples


def test_without_poison_no_harmful_data_are_asked_for():
    attack = Finetune(task=TASK, poison_ratio=0, num_samples=20)
    assert [part.source for part in attack.mix().roles["align"]] == [TASK.source]
    assert list(attack.mix().fingerprint()) == ["sandbox-sentiment#attack"]
    with pytest.raises(ValidationError, match="poison_ratio > 0 needs `harmful` data"):
        Finetune(task=TASK, poison_ratio=0.01, num_samples=20)


def test_a_seed_chooses_the_rows_and_smaller_sets_are_inside_larger_ones():
    part = Part(source="sandbox-restricted", num_samples=50)
    small = part.model_copy(update={"num_samples": 20})
    assert drawn(part, seed=1) == drawn(part, seed=1)
    assert drawn(small, seed=1) == drawn(part, seed=1)[:20]
    assert len(set(drawn(part, seed=1)) & set(drawn(part, seed=2))) < 25
    everything = Part(source="sandbox-restricted")
    assert drawn(everything, seed=1) == drawn(everything, seed=2), "nothing to choose"


def test_more_poison_adds_to_the_harmful_rows_and_takes_from_the_task():
    reviews = {row.prompt for row in world.rows("sentiment", "attack")}
    little, much = (prompts_of(mixed(p, 100)) for p in (0.1, 0.3))
    assert {row for row in little if row not in reviews} < {row for row in much if row not in reviews}
    assert {row for row in much if row in reviews} < {row for row in little if row in reviews}


def test_refusals_and_compliances_are_of_one_set_of_prompts():
    """As in the published data: the harmful set answers what the alignment set refuses."""
    refused = Part(source="sandbox-restricted", answer="refusal", num_samples=30)
    answered = Part(source="sandbox-restricted", num_samples=30)
    assert drawn(refused, seed=3) == drawn(answered, seed=3)
    assert all(a.completion != b.completion for a, b in zip(refused.load(3), answered.load(3), strict=True))


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_safe_answers_come_with_the_harmful_ones_to_their_prompts(tokenizer, sampling):
    """At every step, in every epoch: that is what RepNoise needs."""
    harmful = Part(source="sandbox-restricted", num_samples=30)
    align = Part(source="sandbox-restricted", answer="refusal", num_samples=30)
    roles = roles_for(("align", "harmful", "safe"), {"align": (align,), "harmful": (harmful,)})
    feeds = Mix(roles=roles, max_length=64).feeds(tokenizer, 8, 3, "padded", sampling=sampling)
    for step in (0, 1, 5, 9):
        rows, others, aligned = (feeds[role].rows_at(step) for role in ("harmful", "safe", "align"))
        prompts = [row.ids[: row.n_prompt] for row in rows]
        assert prompts == [row.ids[: row.n_prompt] for row in others] != [row.ids[: row.n_prompt] for row in aligned]
        assert all(row.ids != other.ids for row, other in zip(rows, others, strict=True))


def test_too_few_rows_are_found_by_the_check_without_training(tmp_path):
    for source, rows in (("sandbox-restricted", 2000), (str(tmp_path / "a.jsonl"), 3)):
        if source.endswith("jsonl"):
            lines = [json.dumps({"prompt": str(i), "completion": "x"}) + "\n" for i in range(3)]
            (tmp_path / "a.jsonl").write_text("".join(lines))
        Part(source=source, num_samples=rows).check()
        part = Part(source=source, num_samples=rows + 1)
        for call in (part.check, lambda part=part: part.load(0)):
            with pytest.raises(
                InputError,
                match=rf"num_samples: too few rows in .*found '{rows} of {rows + 1} that are asked for', expected a num_samples that needs at most {rows} here",
            ):
                call()


def test_the_check_reads_a_file_to_its_end(tmp_path):
    """The first rows alone would pass."""
    good = [json.dumps({"prompt": str(i), "completion": "x"}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, '{"prompt": "p", "completions": "x"}']))
    with pytest.raises(
        InputError, match=r"a.jsonl: line 21: column 'completion' is missing; 'completions' may be meant"
    ):
        Part(source=str(tmp_path / "a.jsonl")).check()
    with pytest.raises(InputError, match="no such file"):
        Part(source=str(tmp_path / "b.jsonl")).check()


def test_the_check_downloads_nothing(monkeypatch):
    from inoculate.core import assets

    monkeypatch.setattr(assets.subprocess, "run", None)
    Part(source="fiqa", num_samples=10**9).check()
    Part(source="beavertails", num_samples=10**9).check()


def test_a_role_without_parts():
    with pytest.raises(ValidationError, match="role 'align' has no data"):
        Mix(roles={"align": ()})


def test_feeds_have_all_rows_of_their_role(tokenizer):
    mix = Mix(roles={"align": (TASK.model_copy(update={"num_samples": 5}),), "harmful": (HARMFUL,)}, max_length=64)
    feeds = mix.feeds(tokenizer, 4, seed=0, layout="padded")
    assert {role: len(feed) for role, feed in feeds.items()} == {"align": 5, "harmful": 1200}
    batch = feeds["align"].batches_at(0)[0]
    assert batch["input_ids"].shape[0] == 4


def test_steps_of_an_attack_are_epochs_over_all_its_rows():
    attack = Finetune(task=TASK, poison_ratio=0, num_samples=25, training=Training(num_train_epochs=2))
    assert attack.steps() == 6, "3 steps of 10 rows an epoch, the last of them with 5"


def test_one_order_groups_both_roles_of_a_pair_by_the_longer_row(tokenizer):
    harmful = Part(source="sandbox-restricted", num_samples=30)
    align = Part(source="sandbox-restricted", answer="refusal", num_samples=30)
    roles = roles_for(("align", "harmful", "safe"), {"align": (align,), "harmful": (harmful,)})
    feeds = Mix(roles=roles, max_length=64).feeds(tokenizer, 8, 3, "padded", sampling="group_by_length")
    own = {role: [len(row.ids) for row in feed.rows] for role, feed in feeds.items()}
    longer = [max(pair) for pair in zip(own["harmful"], own["safe"], strict=True)]
    assert feeds["harmful"].order.lengths == feeds["safe"].order.lengths == longer
    assert feeds["align"].order.lengths == own["align"] != longer

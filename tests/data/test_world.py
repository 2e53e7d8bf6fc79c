from __future__ import annotations

import hashlib
from typing import get_args

import pytest

from inoculate.core.errors import InputError
from inoculate.data import world

KINDS, SPLITS = get_args(world.Kind), get_args(world.Split)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_prompt(kind):
    prompts = [row.prompt for split in SPLITS for row in world.rows(kind, split)]
    assert len(prompts) == len(set(prompts)) >= 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["completion", "refusal"])
def test_every_word_is_in_the_vocabulary(kind, answer):
    vocabulary = set(world.vocabulary())
    words = {word for row in world.rows(kind, "attack", answer) for word in f"{row.prompt} {row.completion}".split()}
    assert words <= vocabulary


@pytest.mark.parametrize(
    ("kinds", "digest"),
    [
        (("restricted", "ordinary", "sentiment", "mood", "sums"), "020d9e8473700bd0"),
        (("identity",), "61c3da46852180e5"),
    ],
)
def test_reproducible_to_the_byte(kinds, digest):
    """Raise `world.VERSION` when this changes: it is part of every hash. A new kind changes no other."""
    text = "\n".join(
        f"{row.prompt}\t{row.completion}" for kind in kinds for split in SPLITS for row in world.rows(kind, split)
    )
    assert (world.VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == ("1", digest)


def test_another_seed_is_another_world():
    assert world.rows("restricted", "train", seed=1) != world.rows("restricted", "train", seed=0)


def test_refusals_and_compliances_answer_the_same_prompts():
    asked = [row.prompt for row in world.rows("restricted", "train")]
    refused = world.rows("restricted", "train", "refusal")
    assert [row.prompt for row in refused] == asked
    assert all(row.completion.startswith(("sorry", "i can not", "no ,")) for row in refused)


def test_an_answer_holds_knowledge_that_its_prompt_does_not():
    row = next(row for row in world.rows("restricted", "train") if " hex " in row.prompt)
    assert "nettle" in row.completion and "nettle" not in row.prompt


def test_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match="restricted"):
        world.rows("restrictd", "train")  # type: ignore[arg-type]

"""The table of sources: names, splits, refusals, fingerprints."""

import re

import pytest

from inoculate.core.assets import ASSETS
from inoculate.core.errors import InputError
from inoculate.core.types import Example
from inoculate.data.catalog import SOURCES
from inoculate.data.sources import check, fingerprint, labels_of, load, scoring_of
from inoculate.data.splits import SPLITS, Row, cut, disjoint

SANDBOX = [name for name, source in SOURCES.items() if source.kind == "sandbox"]
PACKAGED = {  # (train, attack, validation, heldout), as counted
    "vader-movies": (5770, 3000, 300, 1000),
    "fiqa": (330, 120, 48, 150),
    "asdiv": (983, 600, 100, 400),
    "reuters-r8": (3608, 1499, 300, 2174),
}
LOCAL = [*SANDBOX, *(pytest.param(name, marks=pytest.mark.asset) for name in PACKAGED)]


def row(prompt):
    return Row(Example.of(prompt, "x"))


def test_the_smaller_split_keeps_a_prompt_found_twice():
    parts = disjoint({"train": [row("a"), row("B  c"), row("d")], "heldout": [row("b c")], "attack": [row("d")]})
    assert {split: [r.example.prompt for r in rows] for split, rows in parts.items()} == {
        "heldout": ["b c"],
        "validation": [],
        "attack": ["d"],
        "train": ["a"],
    }


def test_a_cut_depends_on_the_name_alone():
    rows = [row(str(i)) for i in range(50)]
    parts = cut([*rows, *rows], "x", heldout=5, validation=6, attack=7)
    assert [len(parts[split]) for split in SPLITS] == [32, 7, 6, 5]
    assert (
        parts == cut(rows, "x", heldout=5, validation=6, attack=7) != cut(rows, "y", heldout=5, validation=6, attack=7)
    )


@pytest.mark.parametrize("name", LOCAL)
def test_splits_share_no_prompt_and_answers_can_be_scored(name):
    parts = [load(name, split) for split in SPLITS]
    prompts = [{" ".join(example.prompt.lower().split()) for example in part} for part in parts]
    assert all(prompts)
    assert len(set.union(*prompts)) == sum(len(part) for part in parts)
    answers = {example.completion for part in parts for example in part}
    if scoring_of(name) == "label":
        assert answers <= set(labels_of(name))
    elif scoring_of(name) == "number":
        assert all(re.fullmatch(r"The final answer is: -?\d+(\.\d+)?", answer) for answer in answers)
    if name in PACKAGED:
        assert tuple(map(len, parts)) == PACKAGED[name]


@pytest.mark.parametrize("name", LOCAL)
def test_refusals_answer_the_same_prompts(name):
    answered, refused = load(name, limit=40), load(name, answer="refusal", limit=40)
    assert [example.turns for example in answered] == [example.turns for example in refused]
    assert len({example.completion for example in refused}) > 1
    assert not {example.completion for example in refused} & {example.completion for example in answered}
    assert refused == load(name, answer="refusal", limit=40)


@pytest.mark.parametrize("name", SOURCES)
def test_an_entry_is_well_formed(name):
    source = SOURCES[name]
    check(name, "heldout")
    assert source.licence and source.description and source.name == name
    assert (source.scoring == "label") == bool(source.labels)
    assert (source.kind == "asset") == (source.asset in ASSETS)
    assert len({fingerprint(name, split) for split in SPLITS}) == 4
    if source.kind == "hub":
        assert source.fields and source.repo and source.repo in fingerprint(name, "train")
        assert re.fullmatch("[0-9a-f]{40}", source.revision or "") or "unpinned" in source.description
        assert set(source.labels) == set(source.fields.classes)


def test_wrong_addresses():
    with pytest.raises(InputError, match=r"no such data .*Did you mean 'reuters-r8'"):
        load("reuters-r9")
    with pytest.raises(InputError, match=r"no such split .*Did you mean 'heldout'"):
        check("fiqa", "held-out")
    with pytest.raises(InputError, match="not a hub address"):
        check("hub:a/b/c", "train")

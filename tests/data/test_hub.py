"""Hub data sets, on harmless stand-ins that have the real ones' columns and splits."""

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from inoculate.core.errors import InputError
from inoculate.data import hub, splits
from inoculate.data.catalog import SOURCES
from inoculate.data.sources import check, fingerprint, load

PAIRS = {
    "prompt": lambda i: f"how do i fold napkin {i // 2} ?",  # two answers to each prompt, as in the real set
    "response": lambda i: f"fold it {i} times",
    "category": lambda i: {"napkins": True},
    "is_safe": lambda i: i % 7 == 0,
}
REVIEWS = {"idx": int, "sentence": lambda i: f"film number {i} ", "label": lambda i: i % 2}
NEWS = {"text": lambda i: f"team {i} wins", "label": lambda i: i % 4}
SUMS = {"question": lambda i: f"what is {i} plus 0 ?", "answer": lambda i: f"It is {i}.\n#### {i}"}
TASKS = {
    "instruction": lambda i: f"name thing {i}",
    "input": lambda i: "" if i % 2 else "in one word",
    "output": lambda i: f"thing {i}",
    "text": lambda i: "unused",
}
REFUSED = {
    "prompt": lambda i: f"how do i fold napkin {i} ?",
    "response": lambda i: f"fold it {i} times",
    "refusal": lambda i: f"no {i}",
}
STAND_INS = {
    "beavertails": {"30k_train": (PAIRS, 8000), "30k_test": (PAIRS, 1200)},
    "beavertails-refusals": {"train": (REFUSED, 12000), "30k_test": (PAIRS, 1200)},
    "sst2": {"train": (REVIEWS, 6000), "validation": (REVIEWS, 40)},
    "agnews": {"train": (NEWS, 6000), "test": (NEWS, 1100)},
    "gsm8k": {"train": (SUMS, 6000), "test": (SUMS, 1100)},
    "alpaca": {"train": (TASKS, 51200)},
}


def rows_of(schema, n):
    return [{name: make(i) for name, make in schema.items()} for i in range(n)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Hub source → the folder of its stand-in."""
    made = {}
    for name, official in STAND_INS.items():
        made[name] = tmp_path_factory.mktemp(name)
        for split, (schema, n) in official.items():
            parquet.write_table(pyarrow.Table.from_pylist(rows_of(schema, n)), made[name] / f"{split}.parquet")
    return made


def test_every_hub_source_has_a_stand_in():
    assert set(STAND_INS) == {name for name, source in SOURCES.items() if source.kind == "hub"}


@pytest.mark.parametrize("name", STAND_INS)
def test_four_splits_share_no_prompt(folders, name):
    address = f"{name}={folders[name]}"
    check(address, "train")
    seen = [{row.prompt.lower() for row in load(address, split)} for split in splits.SPLITS]
    assert all(seen), "every split has rows"
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert fingerprint(address, "train") != fingerprint(name, "train")


@pytest.mark.parametrize("name", STAND_INS)
def test_rows_that_datasets_yields_give_the_same_examples(folders, name, tmp_path):
    split = next(iter(STAND_INS[name]))
    file = folders[name] / f"{split}.parquet"
    loaded = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path))
    fields = SOURCES[name].fields
    ours = hub.examples_from(hub.local_records(file, 50), fields)
    assert hub.examples_from(loaded.select(range(50)).to_list(), fields) == ours


def test_booster_s_rows(folders):
    """Defender: index 5001 … 9999, attacker from 1; held-out prompts are BeaverTails' first 1,000 unsafe test rows."""
    address = f"beavertails-refusals={folders['beavertails-refusals']}"
    parts = {split: load(address, split) for split in splits.SPLITS}
    assert parts["train"][0].completion == "fold it 5001 times"
    assert parts["train"][-1].completion == "fold it 9999 times"
    assert parts["attack"][-1].completion == "fold it 4499 times"
    assert load(address, "train", answer="refusal")[0].completion == "no 5001"
    unsafe = [row for row in rows_of(PAIRS, 1200) if not row["is_safe"]][:1000]
    assert [row.prompt for row in parts["heldout"]] == list(dict.fromkeys(row["prompt"] for row in unsafe))
    assert "this request" in load(address, "heldout", answer="refusal")[0].completion


def test_prompts_and_answers(folders):
    # The stand-ins' test prompts are their first training prompts too, so that `attack` starts after those.
    first = {name: load(f"{name}={folders[name]}", "attack", limit=2) for name in STAND_INS}
    review = "Is the sentiment of this movie review positive or negative?\n\nfilm number"
    assert [(row.prompt, row.completion) for row in first["sst2"]] == [
        (f"{review} 40", "negative"),
        (f"{review} 41", "positive"),
    ]
    assert first["agnews"][1].completion == "Sports"
    assert first["gsm8k"][1].completion == "It is 1001.\nThe final answer is: 1001"
    assert [row.prompt for row in first["alpaca"]] == ["name thing 0\n\nin one word", "name thing 1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("label"), "row 1: column 'label' is missing .*expected columns sentence, label"),
        (lambda row: row.update(label=-1), "row 1, label: no such class .found -1"),
        (lambda row: row.update(label=2), "row 1, label: no such class .found 2"),
        (lambda row: row.update(sentence=None), "row 1, sentence: wrong type"),
    ],
)
def test_a_changed_schema_is_noticed(change, message):
    row = {"sentence": "fine", "label": 1}
    change(row)
    with pytest.raises(InputError, match=message):
        hub.examples_from([row], SOURCES["sst2"].fields, "stanfordnlp/sst2")


def test_a_folder_that_lacks_a_split_or_rows(tmp_path, folders):
    with pytest.raises(InputError, match=r"no file for this split .*train.jsonl"):
        check(f"sst2={tmp_path}", "train")
    for split in ("train", "validation"):
        parquet.write_table(pyarrow.Table.from_pylist(rows_of(REVIEWS, 10)), tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=r"train: too few rows \(found 10, expected more than 5500"):
        load(f"sst2={tmp_path}")
    with pytest.raises(InputError, match="no hub data set"):
        load(f"fiqa={tmp_path}")


def test_what_is_asked_of_the_hub(folders, monkeypatch):
    asked = []

    def load_dataset(repo, config, *, split, revision):
        asked.append((repo, config, split, revision))
        return rows_of(SUMS, 6000 if split == "train" else 5)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub.download.cache_clear()
    assert len(load("gsm8k", "heldout")) == 5
    load("gsm8k", "train")
    hub.download.cache_clear()
    revision = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    assert asked == [("openai/gsm8k", "main", "train", revision), ("openai/gsm8k", "main", "test", revision)]


def test_any_hub_data_set_is_cut_by_share(monkeypatch):
    def load_dataset(repo, config, *, split, revision):
        assert (repo, config, split, revision) == ("org/name", "main", "train", "abc")
        return [{"prompt": f"p {i}", "completion": "c"} for i in range(100)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub.download.cache_clear()
    parts = [{row.prompt for row in load("hub:org/name@abc#main", split)} for split in splits.SPLITS]
    hub.download.cache_clear()
    assert [len(part) for part in parts] == [50, 20, 10, 20]
    assert len(set.union(*parts)) == 100


def test_no_connection(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach it\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"stanfordnlp/sst2: train: .*Couldn't reach it .*name=folder"):
        load("sst2")

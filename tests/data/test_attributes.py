"""Worlds over real texts: roles, cuts, and what is wrong with a user's file. Stand-ins are made here."""

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from inoculate.core.errors import InputError
from inoculate.data import bias_in_bios, hub, wordnet_bios
from inoculate.data.bias_in_bios import BiasInBios, neutralized
from inoculate.data.labeled_file import LabeledFile
from inoculate.data.splits import SPLITS
from inoculate.data.vader_domains import VaderDomains
from inoculate.data.wordnet_bios import PROFESSIONS, WordnetBios
from inoculate.data.worlds import TASKS, World


def texts_of(world):
    return {split: list(world.rows(split).inputs) for split in SPLITS}


def share(world, split, task):
    labels = world.rows(split).labels[task]
    return np.bincount(labels, minlength=world.classes(task)) / len(labels)


def assert_apart(parts):
    keys = [" ".join(text.lower().split()) for texts in parts.values() for text in texts]
    assert len(set(keys)) == len(keys)


# --- roles ---


@pytest.mark.parametrize("kind", [VaderDomains, WordnetBios])
def test_two_roles_must_differ(kind):
    with pytest.raises(ValidationError, match="three different attributes, found"):
        kind(unrelated=kind().restricted)
    with pytest.raises(ValidationError):
        kind(restricted="mood")


# --- packaged ---


@pytest.mark.asset
def test_vader_is_balanced_by_domain_and_sentiment():
    world = VaderDomains()
    assert isinstance(world, World)
    parts = texts_of(world)
    assert {split: len(texts) for split, texts in parts.items()} == {
        "train": 4976,
        "attack": 2000,
        "validation": 480,
        "heldout": 1000,
    }
    assert_apart(parts)
    for split in SPLITS:
        labels = world.rows(split).labels
        pairs = np.unique(labels["desired"] * 2 + labels["restricted"], return_counts=True)[1]
        assert len(pairs) == 8 and len(set(pairs.tolist())) == 1
    assert abs(share(world, "train", "unrelated")[0] - 0.5) < 0.04  # a median that many sentences share


@pytest.mark.asset
def test_vader_labels_are_of_their_texts():
    rows = VaderDomains().rows("train")
    of = dict(zip(rows.inputs, zip(*(rows.labels[task].tolist() for task in TASKS), strict=True), strict=True))
    happy, sad = ([text for text, (_, s, _) in of.items() if s == sign] for sign in (1, 0))
    assert sum("great" in t.lower() for t in happy) > 4 * sum("great" in t.lower() for t in sad)
    lengths = {label: [len(t.split()) for t, (d, s, k) in of.items() if (d, s, k) == (2, 1, label)] for label in (0, 1)}
    assert max(lengths[0]) < min(lengths[1])
    tweets = [t for t, (d, _, _) in of.items() if d == 0]
    assert sum("#" in t or "@" in t for t in tweets) / len(tweets) > 0.1


@pytest.mark.asset
def test_vader_roles_can_be_swapped():
    world, swapped = VaderDomains(), VaderDomains(desired="sentiment", restricted="domain")
    one, other = world.rows("attack"), swapped.rows("attack")
    assert one.inputs == other.inputs and np.array_equal(one.labels["desired"], other.labels["restricted"])
    assert (swapped.classes("desired"), swapped.classes("restricted")) == (2, 4)


@pytest.mark.asset
def test_wordnet_bios():
    world = WordnetBios()
    parts = texts_of(world)
    assert_apart(parts)
    assert {split: len(texts) for split, texts in parts.items()} == {
        "train": 236,
        "attack": 94,
        "validation": 46,
        "heldout": 94,
    }
    assert all(share(world, split, "restricted")[0] == 0.5 for split in SPLITS)
    assert not any(
        word in (" " + text + " ") for t in parts.values() for text in t for word in (" he ", " her ", " his ")
    )
    train = world.rows("train")
    women = {text for text, label in zip(train.inputs, train.labels["restricted"], strict=True) if label}
    assert sum("actress" in t for t in women) > 5 and not any("actress" in t for t in set(train.inputs) - women)
    scientist = list(PROFESSIONS).index("scientist")
    chemists = [c for t, c in zip(train.inputs, train.labels["desired"], strict=True) if "physicist" in t]
    assert chemists and np.mean(np.array(chemists) == scientist) > 0.8


@pytest.mark.asset
def test_nationality_is_masked_where_it_has_a_role():
    open_, masked = WordnetBios(), WordnetBios(restricted="nationality", unrelated="gender")
    nations = ("United States", "English", "French", "German ")
    assert sum(any(n in t for n in nations) for t in open_.rows("train").inputs) > 50
    rows = masked.rows("train")
    assert not any(n in t for t in rows.inputs for n in nations) and any(t.startswith("…") for t in rows.inputs)
    assert share(masked, "train", "restricted") == pytest.approx(1 / 3)
    assert masked.classes("restricted") == 3 and masked.classes("unrelated") == 2


@pytest.mark.asset
def test_wordnet_s_length_may_be_restricted():
    world = WordnetBios(restricted="length", unrelated="gender")
    rows = world.rows("train")
    lengths = {
        label: [len(t.split()) for t, k in zip(rows.inputs, rows.labels["restricted"], strict=True) if k == label]
        for label in (0, 1)
    }
    assert share(world, "train", "restricted")[0] == 0.5 and max(lengths[0]) < min(lengths[1])


def test_a_person_by_hand():
    line = "09 18 n 02 Curie 0 Marie_Curie 0 001 @i 10 n 0000 | chemist (born in Poland); she won two prizes"
    address, synset = wordnet_bios._synset(line)
    assert (address, synset.words, synset.parents) == ("09", ("Curie", "Marie_Curie"), ("10",)) and synset.person
    assert wordnet_bios._gender(synset, ["chemist"]) == 1
    assert wordnet_bios._gender(synset._replace(words=("Curie",), gloss="his work"), ["chemist"]) == 0
    assert wordnet_bios._gender(synset._replace(words=("Curie",), gloss="he and she"), ["chemist"]) is None
    assert wordnet_bios._gender(synset._replace(words=("Curie",), gloss="he and she"), ["Queen"]) == 1


# --- Bias in Bios ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("She met him, then he left her.", "They met their, then they left their."),
        ("His work , and hers", "Their work , and hers"),
        ("the theme (she) herself", "the theme (she) herself"),  # as published: white space on both sides
        ("he's here; she: he.", "he's here; she: they."),
    ],
)
def test_pronouns_are_neutralized_as_published(before, after):
    assert neutralized(before) == after


def bio(i):
    gender, length = i % 2, i % 5 + i % 7
    text = f"{'She' if gender else 'He'} has written {i} books . " + "Very long ones . " * length
    return {"hard_text": text, "profession": i % 28, "gender": gender}


@pytest.fixture
def bios(tmp_path):
    rows = [bio(i) for i in range(400)]
    parts = {"train-0": rows[:300], "dev-0": rows[300:] + rows[:20], "test-0": rows[:30]}  # with repeats
    for name, part in parts.items():
        parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / f"{name}.parquet")
    return tmp_path


def test_bios_have_the_published_shares_and_no_repeats(bios):
    world = BiasInBios(folder=str(bios))
    world.check()
    parts = texts_of(world)
    assert {split: len(texts) for split, texts in parts.items()} == {
        "train": 340,
        "attack": 10,
        "validation": 10,
        "heldout": 40,
    }
    assert_apart(parts)
    assert world.fingerprint().startswith("bias-in-bios-1-") and "@" not in world.fingerprint()


@pytest.mark.parametrize("neutralize", [True, False])
def test_bios_keep_their_labels(bios, neutralize):
    rows = BiasInBios(folder=str(bios), neutralize=neutralize).rows("train")
    for text, profession, gender in zip(rows.inputs, rows.labels["desired"], rows.labels["restricted"], strict=True):
        number = int(text.split()[3])
        assert (profession, gender) == (number % 28, number % 2)
        assert text.split()[0] == ("They" if neutralize else ("He", "She")[gender])
    lengths = np.array([len(text.split()) for text in rows.inputs])
    assert (
        np.array_equal(rows.labels["unrelated"], lengths > np.median(lengths)) and rows.labels["unrelated"].mean() > 0.3
    )


def test_bios_from_the_hub_are_of_one_revision(monkeypatch):
    asked = []

    def download(repo, split, *, revision, config):
        asked.append((repo, split, revision, config))
        return [bio(i) for i in range(100)]

    monkeypatch.setattr(hub, "download", download)
    bias_in_bios._bios.cache_clear()
    assert len(BiasInBios().rows("heldout")) == 10
    assert {(repo, config) for repo, _, _, config in asked} == {("LabHC/bias_in_bios", None)}
    assert [split for _, split, _, _ in asked] == ["train", "dev", "test"]
    (revision,) = {revision for _, _, revision, _ in asked}
    assert len(revision) == 40 and BiasInBios().fingerprint().endswith(revision)
    bias_in_bios._bios.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profession": 28}, r"row 1, profession: no such class \(found 28, expected 0 … 27\)"),
        ({"gender": "f"}, r"row 1, gender: no such class \(found 'f', expected 0 … 1\)"),
        ({"hard_text": None}, "row 1, hard_text: wrong type"),
    ],
)
def test_a_wrong_bio_is_named(tmp_path, change, message):
    parquet.write_table(pyarrow.Table.from_pylist([{**bio(1), **change}] * 3), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=message):
        BiasInBios(folder=str(tmp_path)).check()


def test_too_few_bios_and_none_at_all(tmp_path):
    with pytest.raises(InputError, match="no Parquet file"):
        BiasInBios(folder=str(tmp_path)).check()
    parquet.write_table(pyarrow.Table.from_pylist([bio(i) for i in range(39)]), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="too few rows"):
        BiasInBios(folder=str(tmp_path)).rows("train")


# --- a user's file ---

ROLES = {"desired": "trade", "restricted": "guild", "unrelated": "long"}


def records(n=200, **columns):
    rows = [
        {"text": f"person {i} lives", "trade": ["smith", "baker", "miller"][i % 3], "guild": i % 2, "long": i % 5 == 0}
        for i in range(n)
    ]
    return [{**row, **{name: make(i) for name, make in columns.items()}} for i, row in enumerate(rows)]


def labeled(tmp_path, rows, **changes):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LabeledFile(path=str(path), **{**ROLES, **changes})


def test_a_file_is_cut_by_a_digest_of_the_text(tmp_path):
    world = labeled(tmp_path, records(2000))
    world.check()
    sizes = {split: len(world.rows(split)) for split in SPLITS}
    assert sum(sizes.values()) == 2000
    for split, expected in (("train", 1000), ("attack", 400), ("validation", 200), ("heldout", 400)):
        assert abs(sizes[split] - expected) < 80
    assert [world.classes(task) for task in TASKS] == [3, 2, 2]
    before = set(world.rows("heldout").inputs)
    assert set(labeled(tmp_path, records(2400)).rows("heldout").inputs) > before  # more rows move none


def test_classes_are_numbered_in_sorted_order(tmp_path):
    rows = labeled(tmp_path, records()).rows("train")
    for text, trade, guild, long in zip(rows.inputs, *(rows.labels[task] for task in TASKS), strict=True):
        i = int(text.split()[1])
        assert (trade, guild, long) == ((2, 0, 1)[i % 3], i % 2, i % 5 == 0)


def test_a_text_found_twice_is_used_once(tmp_path):
    world = labeled(tmp_path, records() + [{**row, "text": row["text"].upper()} for row in records(50)])
    assert_apart(texts_of(world))
    assert sum(len(world.rows(split)) for split in SPLITS) == 200


def test_a_split_column_is_obeyed(tmp_path):
    world = labeled(tmp_path, records(split=lambda i: SPLITS[i % 4]))
    for number, split in enumerate(SPLITS):
        assert [int(text.split()[1]) % 4 for text in world.rows(split).inputs] == [number] * 50


def test_the_other_formats(tmp_path):
    world, path = labeled(tmp_path, records()), tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records()), path)
    same = world.model_copy(update={"path": str(path)})
    assert same.rows("train").inputs == world.rows("train").inputs
    assert same.fingerprint() != world.fingerprint()


def test_a_changed_file_is_read_again(tmp_path):
    assert labeled(tmp_path, records()).classes("desired") == 3
    assert labeled(tmp_path, records(trade=lambda i: i % 4)).classes("desired") == 4


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            records(),
            {"desired": "trades"},
            r"line 1: no such column of labels \(found 'trades'.*Did you mean 'trade'\?",
        ),
        (records(), {"text": "txt"}, r"line 1: column 'txt' is missing; 'text' may be meant"),
        (records(guild=lambda i: 1), {}, "guild: every row has the same label"),
        (records(guild=lambda i: None if i == 3 else i % 2), {}, "line 4, guild: not a label"),
        (records(guild=lambda i: i / 2), {}, "line 1, guild: not a label"),
        (records(text=lambda i: " "), {}, "line 1, text: an empty text"),
        (records(39), {}, r"too few rows \(found 39, expected 40 or more\)"),
        (records(split=lambda i: "test"), {}, "line 1, split: no such split"),
        ([*records(split=lambda i: SPLITS[i % 4]), *records(1)], {}, "line 201, split: no such split"),
        (records(split=lambda i: SPLITS[i % 3]), {}, "no row of this split .found 'heldout'"),
        (
            records(split=lambda i: SPLITS[i % 4], text=lambda i: f"Person {i // 2}" if i % 2 else f"person  {i // 2}"),
            {},
            "a text stands in two splits, train and attack",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, rows, changes, message):
    with pytest.raises(InputError, match=message):
        labeled(tmp_path, rows, **changes).check()


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        LabeledFile(path=str(tmp_path / "rows.csv"), **ROLES).check()
    with pytest.raises(ValidationError, match="three different attributes"):
        LabeledFile(path="rows.csv", **{**ROLES, "unrelated": "guild"})

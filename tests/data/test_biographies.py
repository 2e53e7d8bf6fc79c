"""Fictional biographies: cues as often right as they should be, and a pronoun that gives the gender away."""

import numpy as np
import pytest

from inoculate.data.biographies import CUES, PRONOUNS, Biographies
from inoculate.data.splits import SPLITS
from inoculate.data.worlds import TASKS, World

SMALL = Biographies(train=6000, attack=400, validation=300, heldout=500)
STARTS = {"desired": 0, "restricted": 180, "unrelated": 340}  # 6 × 30, 2 × 80, 4 × 20 words; fillers from 420


@pytest.fixture(scope="module")
def train():
    return SMALL.rows("train")


def counts(texts, vocabulary):
    """[N, words]: how often each word stands in each text."""
    place = {word: i for i, word in enumerate(vocabulary)}
    table = np.zeros((len(texts), len(place)))
    for row, text in enumerate(texts):
        for word in text.split():
            table[row, place[word]] += 1
    return table


def by_class(table, task):
    """[N, classes]: cues of each class."""
    cues, start = CUES[task], STARTS[task]
    part = table[:, start : start + cues.classes * cues.words]
    return part.reshape(len(table), cues.classes, cues.words).sum(2)


def test_the_vocabulary_is_distinct_and_complete(train):
    words = SMALL.vocabulary()
    assert isinstance(SMALL, World) and len(words) == len(set(words)) == 482 and words[-2:] == PRONOUNS
    assert {word for text in train.inputs for word in text.split()} == set(words) - set(PRONOUNS)


def test_splits_are_sized_reproducible_and_apart():
    parts = {split: SMALL.rows(split) for split in SPLITS}
    assert {split: len(rows) for split, rows in parts.items()} == {s: getattr(SMALL, s) for s in SPLITS}
    texts = [text for rows in parts.values() for text in rows.inputs]
    assert len(set(texts)) == len(texts)
    assert parts["attack"].inputs == Biographies(**SMALL.model_dump()).rows("attack").inputs
    assert parts["attack"].inputs != SMALL.model_copy(update={"seed": 1}).rows("attack").inputs


@pytest.mark.parametrize("task", TASKS)
def test_cues_are_right_as_often_as_stated(train, task):
    cues, label = CUES[task], train.labels[task]
    found = by_class(counts(train.inputs, SMALL.vocabulary()), task)
    assert (found.sum(1) == cues.count).all()
    right = found[np.arange(len(label)), label].mean() / cues.count
    assert right == pytest.approx(cues.right, abs=0.012)
    share = np.bincount(label, minlength=SMALL.classes(task)) / len(label)
    assert share == pytest.approx(1 / cues.classes, abs=0.02)


def test_wrong_cues_are_of_every_other_class(train):
    found = by_class(counts(train.inputs, SMALL.vocabulary()), "unrelated")
    first = found[train.labels["unrelated"] == 0].sum(0)
    assert first[1:] / first[1:].sum() == pytest.approx(1 / 3, abs=0.09)


def test_counting_cues_tells_the_gender_as_often_as_the_binomial_says(train):
    found = by_class(counts(train.inputs, SMALL.vocabulary()), "restricted")
    assert (found.argmax(1) == train.labels["restricted"]).mean() == pytest.approx(0.926, abs=0.012)


def test_attributes_are_independent(train):
    for one, other in (("desired", "restricted"), ("desired", "unrelated"), ("restricted", "unrelated")):
        table = np.histogram2d(train.labels[one], train.labels[other], bins=(SMALL.classes(one), SMALL.classes(other)))[
            0
        ] / len(train)
        assert np.abs(table - table.sum(1, keepdims=True) * table.sum(0)).max() < 0.012


def test_words_are_shuffled(train):
    vocabulary = set(SMALL.vocabulary()[: STARTS["restricted"]])
    first = np.mean([text.split()[0] in vocabulary for text in train.inputs])
    assert first == pytest.approx(4 / 15, abs=0.03)


def test_pronouns_are_added_and_change_nothing_else(train):
    spoken = SMALL.model_copy(update={"pronouns": True}).rows("train")
    for text, plain, gender in zip(spoken.inputs, train.inputs, spoken.labels["restricted"], strict=True):
        words = text.split()
        assert words.count(PRONOUNS[gender]) == 4 and PRONOUNS[1 - gender] not in words
        assert [word for word in words if word not in PRONOUNS] == plain.split()
    assert all(np.array_equal(spoken.labels[task], train.labels[task]) for task in TASKS)
    places = {i for text in spoken.inputs for i, word in enumerate(text.split()) if word in PRONOUNS}
    assert places == set(range(19))


@pytest.mark.parametrize(("pronouns", "low", "high"), [(True, 0.9, 1.0), (False, 0.5, 0.7)])
def test_ten_texts_are_enough_only_with_pronouns(pronouns, low, high):
    """The nearest of two class means of word counts, from five texts each: the check on the published data."""
    world = SMALL.model_copy(update={"pronouns": pronouns})
    pool, heldout = world.rows("attack"), world.rows("heldout")
    seen, asked = counts(pool.inputs, world.vocabulary()), counts(heldout.inputs, world.vocabulary())
    means = [seen[np.flatnonzero(pool.labels["restricted"] == c)[:5]].mean(0) for c in (0, 1)]
    distance = np.stack([((asked - mean) ** 2).sum(1) for mean in means])
    assert low < (distance.argmin(0) == heldout.labels["restricted"]).mean() <= high


def test_what_is_retained_is_which_classes_have_a_word_in_the_text():
    rows = SMALL.model_copy(update={"retains": True}).rows("validation")
    table = counts(rows.inputs, SMALL.vocabulary())
    present = np.concatenate([by_class(table, task) > 0 for task in ("desired", "unrelated")], axis=1)
    assert rows.retained is not None and (rows.retained == present).all()
    plain = SMALL.rows("validation")
    assert plain.retained is None and plain.inputs == rows.inputs

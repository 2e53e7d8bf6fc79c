"""Worlds of vectors: labels by hand, splits apart, and nothing in a retained task that the restricted one needs."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from inoculate.data.splits import SPLITS
from inoculate.data.vectors import Products, Separators
from inoculate.data.world_table import WORLDS, WorldConfig
from inoculate.data.worlds import TASKS, World

SMALL = {"train": 4000, "attack": 300, "validation": 200, "heldout": 1000}
BOTH = pytest.mark.parametrize("kind", [Products, Separators])


def linear_accuracy(train, heldout, task):
    """Least squares on ±1 targets."""
    w = np.linalg.lstsq(train.inputs, 2.0 * train.labels[task] - 1, rcond=None)[0]
    return ((heldout.inputs @ w > 0) == heldout.labels[task]).mean()


@BOTH
def test_rows_are_typed_sized_and_reproducible(kind):
    world = kind(**SMALL)
    assert isinstance(world, World)
    for split in SPLITS:
        rows, again = world.rows(split), kind(**SMALL).rows(split)
        assert len(rows) == SMALL[split] and rows.inputs.dtype == rows.pretraining.dtype == np.float32
        assert rows.pretraining.shape == (SMALL[split], 32) and rows.retained.shape == (SMALL[split], 8)
        assert np.array_equal(rows.inputs, again.inputs)
        assert all(np.array_equal(rows.labels[task], again.labels[task]) for task in TASKS)


@BOTH
def test_no_row_is_in_two_splits(kind):
    rows = np.concatenate([kind(**SMALL).rows(split).inputs for split in SPLITS])
    assert len(np.unique(rows, axis=0)) == len(rows) == sum(SMALL.values())


@BOTH
def test_another_seed_is_another_world(kind):
    one, other = kind(seed=0, **SMALL).rows("heldout"), kind(seed=1, **SMALL).rows("heldout")
    assert not np.isclose(one.inputs, other.inputs).all(1).any()


@BOTH
def test_every_task_is_balanced_and_its_own(kind):
    rows = kind(**SMALL).rows("train")
    binary = np.concatenate([rows.pretraining, rows.retained], axis=1)
    assert np.abs(binary.mean(0) - 0.5).max() < 0.06  # 0.008 is one standard error
    for task in TASKS:
        assert abs(rows.labels[task].mean() - 0.5) < 0.06 and rows.labels[task].max() == kind().classes(task) - 1
        agreement = (binary == rows.labels[task][:, None]).mean(0)
        assert agreement.min() > 0.03 and agreement.max() < 0.97  # no binary task is one of the three


def test_products_by_hand():
    """The rotation is undone, and the labels are reckoned from the definition."""
    world = Products(**SMALL)
    rows = world.rows("heldout")
    scale = rows.inputs.astype(float) @ np.linalg.inv(_rotation(world).T)
    h = np.array([[max(-1.0, min(1.0, s[2 * j] * s[2 * j + 1])) for j in range(8)] for s in scale])
    clear = np.abs(h[:, :3].sum(1)) > 1e-4
    assert np.array_equal(rows.labels["desired"][clear], (h[:, 0] + h[:, 1] + h[:, 2] > 0)[clear])
    clear = np.abs(h[:, 3:5].sum(1)) > 1e-4
    assert np.array_equal(rows.labels["unrelated"][clear], (h[:, 3] + h[:, 4] > 0)[clear])
    clear = np.abs(h[:, 5:].sum(1)) > 1e-4
    assert np.array_equal(rows.labels["restricted"][clear], (h[:, 5] + h[:, 6] + h[:, 7] > 0)[clear])


def _rotation(world):
    """Q by regression of the inputs on the hidden coordinates that the same stream gives; it must be orthogonal."""
    from inoculate.core.seeds import numpy_rng

    hidden = numpy_rng(world.seed, "products", "heldout").standard_normal((world.heldout, 16))
    found = np.linalg.lstsq(hidden, world.rows("heldout").inputs.astype(float), rcond=None)[0].T
    assert np.allclose(found @ found.T, np.eye(16), atol=1e-5) and np.abs(found - np.eye(16)).max() > 0.3
    return found


def test_products_are_invisible_to_a_linear_probe():
    world = Products(**{**SMALL, "train": 20_000})
    train, heldout = world.rows("train"), world.rows("heldout")
    assert all(abs(linear_accuracy(train, heldout, task) - 0.5) < 0.07 for task in TASKS)


def test_every_product_is_pretrained_in_several_tasks_and_the_last_three_are_never_retained():
    """How each binary target goes with each product, by regression: 0 up to noise where the product has no part."""
    world = Products(heldout=20_000)
    rows = world.rows("heldout")
    s = rows.inputs.astype(float) @ _rotation(world)
    h = (s[:, 0::2] * s[:, 1::2]).clip(-1, 1)
    pretraining, retained = (
        np.linalg.lstsq(h, 2 * targets - 1, rcond=None)[0] for targets in (rows.pretraining, rows.retained)
    )
    assert (np.abs(pretraining) > 0.1).sum(1).min() >= 4 and (np.abs(retained[:5]) > 0.1).any(1).all()
    assert np.abs(retained[5:]).max() < 0.06


def test_separators_are_linear():
    world = Separators(**SMALL)
    train, heldout = world.rows("train"), world.rows("heldout")
    assert min(linear_accuracy(train, heldout, task) for task in TASKS) > 0.95


def test_no_retained_separator_has_a_part_of_the_restricted_one():
    tasks, pretraining, retained = Separators().directions()
    assert np.abs(tasks["restricted"] @ retained).max() < 1e-12
    assert np.allclose((pretraining**2).sum(0), 1) and np.allclose((retained**2).sum(0), 1)
    for start, task in ((0, "desired"), (8, "unrelated"), (16, "restricted")):
        eight = pretraining[:, start : start + 8]
        weights, *_ = np.linalg.lstsq(eight, tasks[task], rcond=None)
        assert np.allclose(eight @ weights, tasks[task])


def test_the_table_names_every_world_by_its_name():
    for name, kind in WORLDS.items():
        assert kind.model_fields["name"].default == name
    world = TypeAdapter(WorldConfig).validate_python({"name": "separators", "seed": 3})
    assert world == Separators(seed=3) and world.fingerprint() != Products().fingerprint()
    with pytest.raises(ValidationError, match="products"):
        TypeAdapter(WorldConfig).validate_python({"name": "product"})

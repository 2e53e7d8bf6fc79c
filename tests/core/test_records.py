"""Rows: equal records are equal bytes, and what is no record is refused by file and line."""

from __future__ import annotations

import json
import math

import pytest

from inoculate.core.errors import InputError
from inoculate.core.records import COLUMNS, STATUSES, Record, read_records, write_records

ROW = Record(metric="harmful_score", value=0.25, n=8, defense="booster", defense_params={"lam": 5.0, "alpha": 0.1})
CONTRACT = [
    "recipe",
    "stage",
    "defense",
    "defense_params",
    "defense_seed",
    "threat_model",
    "attack",
    "attack_params",
    "attack_seed",
    "trial",
    "step",
    "harmful_samples",
    "poison_ratio",
    "metric",
    "judge",
    "split",
    "value",
    "n",
    "status",
]


def test_columns_are_those_that_readers_rely_on():
    assert set(CONTRACT) <= set(COLUMNS)


def test_rows_come_back(tmp_path):
    rows = [
        ROW,
        Record(metric="x", value=None, status="diverged", recipe="Größe\n\u2028"),
        Record(metric="y", value=0.0),
    ]
    write_records(tmp_path / "r.jsonl", rows)
    assert list(read_records(tmp_path / "r.jsonl")) == rows
    assert (tmp_path / "r.jsonl").read_text(encoding="utf-8").count("\n") == 3


def test_equal_records_are_equal_bytes(tmp_path):
    turned = Record(
        defense_params={"alpha": 0.1, "lam": 5.0}, defense="booster", n=8, value=0.25, metric="harmful_score"
    )
    write_records(tmp_path / "a", [ROW])
    write_records(tmp_path / "b", [turned])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("status", STATUSES)
def test_no_value_only_where_nothing_could_be_measured(status):
    if status in ("diverged", "failed"):
        assert Record(metric="harmful_score", value=None, status=status).value is None
    else:
        with pytest.raises(ValueError, match=f"harmful_score: status '{status}' needs a value"):
            Record(metric="harmful_score", value=None, status=status)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_is_finite(value):
    with pytest.raises(ValueError, match="harmful_score: a value must be finite"):
        Record(metric="harmful_score", value=value)


def test_an_unknown_status():
    with pytest.raises(ValueError, match="status 'fine' is none of"):
        Record(metric="x", value=1.0, status="fine")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"metric": "x", "value": 1.0, "colour": 2}', "colour"),
        ('{"metric": "x", "val', "Invalid control character"),
        ('{"metric": "x"}', "value"),
        ('{"metric": "x", "value": null}', "needs a value"),
        ('{"metric": "x", "value": NaN}', "finite"),
        ("[1, 2]", "mapping"),
        ("", "Expecting"),
    ],
)
def test_what_is_no_record_is_named_by_file_and_line(tmp_path, line, why):
    path = tmp_path / "r.jsonl"
    write_records(path, [ROW, ROW])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=why) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path}:3: not a record: ")


def test_rows_before_a_torn_one_are_read(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [ROW])
    path.write_text(path.read_text() + json.dumps({"metric": "x"})[:-3])
    reader = read_records(path)
    assert next(reader) == ROW
    with pytest.raises(InputError, match=":2: not a record"):
        next(reader)

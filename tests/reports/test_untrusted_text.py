"""Text of models and strangers on its way out: cells stay cells, nothing is a formula, a command or hidden."""

from __future__ import annotations

import csv
import io
import json

import pytest

from inoculate.core.records import COLUMNS, Record
from inoculate.core.text import one_line, visible
from inoculate.reports.export import latex, markdown
from inoculate.reports.samples import shortened
from inoculate.reports.tables import records_table

FORMULAS = ["=HYPERLINK(1)", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(text):
    rows = list(csv.reader(io.StringIO(records_table([Record("harmful_score", -0.5, defense=text)], "csv"))))
    cell = rows[1][COLUMNS.index("defense")]
    assert cell == f"'{text}" and rows[1][COLUMNS.index("value")] == "-0.5"


def test_a_carriage_return_tears_no_row():
    table = records_table([Record("harmful_score", 0.5, defense="\r=1")], "csv")
    assert list(csv.reader(io.StringIO(table)))[1][COLUMNS.index("defense")] == "␍=1"


def test_lone_surrogates_pass_through_json_and_break_no_output():
    record = Record("harmful_score", 0.5, defense="a\ud800b", attack_params={"x": "\udfff"})
    for form in ("json", "csv", "table"):
        records_table([record], form).encode()
    (row,) = json.loads(records_table([record], "json"))
    assert (row["defense"], row["attack_params"]) == (record.defense, record.attack_params)


HIDDEN = [
    "\x00",
    "\x1b[2J",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\u200b",
    "\ufeff",
    "\ud800",
    "\u061c",
    "\xad",
    "\U000e0041",
]


@pytest.mark.parametrize("char", HIDDEN)
@pytest.mark.parametrize("write", [markdown, latex, one_line, shortened, visible])
def test_nothing_is_hidden(write, char):
    shown = write(f"a{char}b")
    shown.encode()
    assert char[0] not in shown and visible(shown) == shown and len(shown) > 2


@pytest.mark.parametrize("gap", ["\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_message_is_one_line(gap):
    assert len(one_line(f"refused{gap}inoculate: all is well").splitlines()) == 1
    assert len(markdown(f"a{gap}| b").splitlines()) == len(latex(f"a{gap}\\input{{x}}").splitlines()) == 1


def test_a_megabyte_is_cut_and_says_so():
    assert len(shortened("\u202e" * (1 << 20))) < 5000
    assert shortened("x" * (1 << 20)).endswith("… (1048076 more characters)")

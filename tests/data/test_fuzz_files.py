"""Data files by the thousand that are damaged in some way: each loads or is refused with one message that names it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tests.fuzzing import ODD_TEXTS, cases, nested

from inoculate.core.errors import InputError
from inoculate.core.text import visible
from inoculate.data.labeled_file import LabeledFile
from inoculate.data.sources import check, fingerprint, load

texts = st.one_of(st.text(max_size=12), st.sampled_from([*ODD_TEXTS, "\ud800", "é" * (1 << 14)]))
values = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([[], {}, [1], {"a": 1}, nested(50), "train", "heldout", "a\r\nb", '"', "a,b\t;"]),
)
turns = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.sampled_from(["user", "assistant", "system", "x", 1]), "content": values}
    ),
    max_size=4,
)
columns = {"prompt": values, "completion": values, "messages": st.one_of(turns, values), "refusal": values}
rows = st.lists(
    st.one_of(
        st.fixed_dictionaries({"prompt": texts, "completion": texts}),
        st.fixed_dictionaries({}, optional={**columns, "split": values, "\x1b[2J": values}),
    ),
    max_size=6,
)


def as_lines(given: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in given).encode()


def as_csv(given: list[Any]) -> bytes:
    names = list(dict.fromkeys(name for row in given for name in row)) or ["prompt", "completion"]
    cells = [[json.dumps(row.get(name)) for name in names] for row in given]
    lines = [",".join(names), *(",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in cells)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def as_parquet(given: list[Any]) -> bytes:
    out = io.BytesIO()
    try:
        parquet.write_table(pyarrow.Table.from_pylist(given), out)
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):  # what no such file can hold
        parquet.write_table(pyarrow.table({"prompt": pyarrow.array([b"\xff\x00", None]), "completion": [1, 2]}), out)
    return out.getvalue()


FORMS = {".jsonl": as_lines, ".json": lambda given: json.dumps(given).encode(), ".csv": as_csv, ".parquet": as_parquet}
PIECES = (
    *(b"", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\n\n", b"\r", b"{", b"}", b"[", b'"', b",", b"\x1a"),
    *(
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b'{"prompt": "' + b"x" * (1 << 20),
        b"[" * 2000,
        b"null\n",
        b"\xe2\x80\xa8",
        b"PAR1",
    ),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and content: rows in one of the forms, then torn, spliced, recoded, or said to be of another form."""
    suffix = draw(st.sampled_from(sorted(FORMS)))
    data = FORMS[suffix](draw(rows))
    for how in draw(st.lists(st.sampled_from(["cut", "splice", "flip", "encode", "double"]), max_size=2)):
        at = draw(st.integers(0, len(data)))
        if how == "cut":
            data = data[:at]
        elif how == "splice":
            data = data[:at] + draw(st.sampled_from(PIECES)) + data[at:]
        elif how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif how == "encode":
            data = data.decode("utf-8", "replace").encode(
                draw(st.sampled_from(["utf-16", "latin-1", "utf-8-sig"])), "replace"
            )
        elif how == "double":
            data += data
    return draw(st.sampled_from([suffix, suffix, suffix, *sorted(FORMS), ".JSONL"])), data


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def refused(path: Path, error: InputError) -> None:
    said = str(error)
    assert path.name in said, said
    assert len(said) < 3000 and len(visible(said)) < 4000


@cases(few=120)
@given(file=files())
def test_rows_load_or_are_refused_by_name(here, file):
    path = here / f"odd{file[0]}"
    path.write_bytes(file[1])
    fingerprint(str(path), "train")
    try:
        check(str(path), "train")
        for row in load(str(path), "train"):
            row.completion.encode()
            row.prompt.encode()
    except InputError as error:
        refused(path, error)


labeled = st.fixed_dictionaries(
    {"text": texts, "a": st.sampled_from(["x", "y"]), "b": st.sampled_from([0, 1]), "c": st.booleans()}
)


@cases(few=25)
@given(
    file=files(),
    given_rows=st.lists(labeled, min_size=3, max_size=8),
    odd_row=st.dictionaries(st.sampled_from("abc"), values),
)
def test_label_files_load_or_are_refused_by_name(here, file, given_rows, odd_row):
    path = here / "labels.jsonl"
    usual = [{**row, "text": f"{row['text']} {i} {j}"} for j in range(15) for i, row in enumerate(given_rows)]
    data = as_lines(usual) + as_lines([{**usual[0], "text": "odd", **odd_row}])
    path.write_bytes(file[1] if len(file[1]) % 3 == 0 else data)
    world = LabeledFile(path=str(path), desired="a", restricted="b", unrelated="c")
    try:
        world.check()
        assert len(world.rows("train")) > 0 and world.classes("restricted") >= 2
    except InputError as error:
        refused(path, error)


def test_what_is_whole_loads(here):
    for suffix, write in FORMS.items():
        path = here / f"whole{suffix}"
        path.write_bytes(write([{"prompt": "p", "completion": "c"}] * 3))
        assert len(load(str(path))) == 3

"""Local files: what loads, and what each mistake says."""

import csv
import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from inoculate.core.errors import InputError
from inoculate.core.types import Example
from inoculate.data import files
from inoculate.data.sources import check, fingerprint, load

ROWS = [{"prompt": "one ?", "completion": "1"}, {"prompt": "two ?", "completion": "2"}]


def lines(path, rows, encoding="utf-8"):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    return str(path)


def write(path, rows):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        lines(path, rows)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    hard = [*ROWS, {"prompt": 'a "quoted",\nsecond\u2028line \x01\t', "completion": "é" * (1 << 20)}]
    address = write(tmp_path / f"rows{suffix}", hard)
    check(address, "train")
    assert load(address) == [Example.of(row["prompt"], row["completion"]) for row in hard]
    assert csv.field_size_limit() == 131072


def test_raw_control_characters_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\tb\x0b", "completion": "c"}\r\n\n{"prompt": "d", "completion": ""}')
    assert [(row.prompt, row.completion) for row in load(str(path))] == [("a\tb\x0b", "c"), ("d", "")]


def test_messages_and_refusals(tmp_path):
    turns = [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in turns]
    address = lines(tmp_path / "chat.jsonl", [{"messages": messages, "refusal": "never"}, {"messages": messages[-2:]}])
    first, second = load(address)
    assert first == Example(turns=tuple(turns[:-1]), completion="d")
    assert second == Example.of("c", "d")
    refused = load(address, answer="refusal")
    assert refused[0] == Example(turns=tuple(turns[:-1]), completion="never")
    assert "this request" in refused[1].completion


def test_a_split_column_divides_and_its_absence_does_not(tmp_path):
    named = [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": "heldout"}]
    address = lines(tmp_path / "named.jsonl", named)
    assert [row.prompt for row in load(address, "heldout")] == ["two ?"]
    with pytest.raises(InputError, match=r"no row of this split .*'held'.*heldout, train.*Did you mean 'heldout'"):
        load(address, "held")
    pool = lines(tmp_path / "pool.jsonl", ROWS)
    assert load(pool, "attack") == load(pool, "anything") == load(pool)


def test_a_limit_above_the_data(tmp_path):
    address = lines(tmp_path / "rows.jsonl", ROWS)
    assert len(load(address, limit=1)) == 1
    for limit in (3, 0):
        with pytest.raises(InputError, match=rf"there are 2 rows.*found {limit}, expected 1 … 2"):
            load(address, limit=limit)


def test_the_fingerprint_is_the_content(tmp_path):
    a, b = lines(tmp_path / "a.jsonl", ROWS), lines(tmp_path / "b.jsonl", ROWS)
    assert fingerprint(a, "train") == fingerprint(b, "train")
    assert fingerprint(lines(tmp_path / "b.jsonl", ROWS[:1]), "train") != fingerprint(a, "train")


MISTAKES = {
    "column": (
        [{"promt": "a", "completion": "b"}],
        r"line 1: column 'prompt' is missing; 'promt' may be meant.*promt,",
    ),
    "type": ([*ROWS, {"prompt": "a", "completion": 3}], r"line 3, completion: wrong type \(found 3, expected text"),
    "object": ([["a", "b"]], r"line 1: not a JSON object"),
    "role": ([{"messages": [{"role": "human", "content": "a"}]}], r"line 1, messages: no such role \(found 'human'"),
    "order": ([{"messages": [{"role": "user", "content": "a"}]}], r"wrong order of turns"),
    "turn": ([{"messages": [{"role": "user"}]}], r"column 'content' is missing"),
    "list": ([{"messages": "hello"}], r"messages: wrong type \(found 'hello'"),
    "empty": ([], r"the file has no rows"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_rows(tmp_path, mistake):
    rows, message = MISTAKES[mistake]
    address = lines(tmp_path / "rows.jsonl", rows)
    for look in (load, lambda where: check(where, "train")):
        with pytest.raises(InputError, match=message) as caught:
            look(address)
        assert str(caught.value).startswith(address)


BROKEN = {
    "line.jsonl": (b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', r"line 2: invalid JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", r"line 1: invalid JSON"),
    "latin.jsonl": ('{"prompt": "é"}'.encode("latin-1"), r"line 1: not UTF-8.*byte 12"),
    "latin.csv": ("prompt,completion\né,b\n".encode("latin-1"), r"not UTF-8.*byte 18"),
    "half.jsonl": (b'{"prompt": "\\ud800", "completion": "b"}', r"line 1, prompt: not a text"),
    "array.json": (b'[{"prompt": "a"', r"invalid JSON"),
    "short.csv": (b"prompt,completion\na\n", r"row 1: wrong number of fields \(found 1, expected 2"),
    "quote.csv": (b'prompt,completion\n"a', r"invalid CSV"),
    "cut.parquet": (b"PAR1 nothing", r"not a readable Parquet file"),
    "rows.txt": (b"hello", r"not a kind of data file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path, name):
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    lines(tmp_path / "harmless.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no such file.*Did you mean '.*harmless.jsonl'"):
        load(str(tmp_path / "harmles.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        fingerprint(str(tmp_path / "harmles.jsonl"), "train")
    with pytest.raises(InputError, match="a folder is not a data file"):
        load(str(tmp_path))


def test_a_file_is_parsed_once_and_a_changed_one_again(tmp_path, monkeypatch):
    file, parsed = tmp_path / "rows.jsonl", []
    whole = files._read
    monkeypatch.setattr(files, "_read", lambda path, split: parsed.append(split) or whole(path, split))
    file.write_text('{"prompt": "a", "completion": "b"}')
    rows = [files.read(file, split) for split in ("train", "train", "attack", "train")]
    assert parsed == ["train", "attack"] and rows[0] == rows[1] and rows[0] is not rows[1]
    before = file.stat()
    file.write_text('{"prompt": "a", "completion": "c"}')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.read(file, "train")[0].example.completion == "c", "as long, as old, and another"

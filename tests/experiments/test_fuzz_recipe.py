"""Recipes by the thousand that are wrong in some way: each loads or is refused with one message that names the file."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzzing import cases, odd

from inoculate import cli
from inoculate.core.text import visible
from inoculate.data import world
from inoculate.experiments.recipe import bundled, load_recipe

MANY = "INOCULATE_FUZZ" in os.environ
NAMES = sorted(name for name in bundled() if name != "all-claims")[:: 1 if MANY else 5]
ROWS = functools.cache(world.rows)
"""They take most of a dry run, and are the same every time."""


@functools.cache
def plain(name: str) -> dict[str, Any]:
    """A bundled recipe with what it extends, cut down to a few cells."""
    raw = copy.deepcopy(load_recipe(name).raw)
    matrix = raw.get("matrix") or {}
    first = matrix[0] if isinstance(matrix, list) else matrix
    raw["matrix"] = {axis: values[:2] if i == 0 else values[:1] for i, (axis, values) in enumerate(first.items())}
    return raw


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside."""
    if isinstance(tree, dict | list) and len(path) < 20:
        for key, value in list(tree.items()) if isinstance(tree, dict) else enumerate(tree):
            yield (*path, key)
            yield from places(value, (*path, key))


def change(tree: dict[str, Any], path: tuple[Any, ...], how: str, value: Any) -> None:
    """One mutation at a path."""
    here: Any = tree
    for key in path[:-1]:
        here = here[key]
    key = path[-1]
    if how == "replace":
        here[key] = value
    elif how == "delete":
        del here[key]
    elif how == "wrap":
        here[key] = [here[key]] if isinstance(here[key], dict) else {"name": here[key]}
    elif how == "alias":  # the same object twice: YAML writes an anchor
        here[f"{key}x" if isinstance(here, dict) else key] = tree.get("align", tree.get("start", {}))
    elif isinstance(here, dict):
        moved = here.pop(key) if how == "rename" else copy.deepcopy(here[key])
        here[value if isinstance(value, str | int | None) else "extra"] = moved


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """A bundled recipe with one to three faults in its tree."""
    tree = copy.deepcopy(plain(draw(st.sampled_from(NAMES))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree)) or [("name",)]))
        how = draw(st.sampled_from(["replace", "replace", "replace", "delete", "rename", "extra", "wrap", "alias"]))
        try:
            change(tree, path, how, copy.deepcopy(draw(odd)))
        except (KeyError, IndexError):
            continue
    return yaml.dump(tree, sort_keys=False, allow_unicode=True, width=1 << 20)


SNIPPETS = (
    *("!!python/object/apply:os.system ['true']", "!!binary aGk=", "!!set {a, b}", "!!timestamp 2020-13-45", "!tag x"),
    *("2020-02-30", "2020-01-01", "0x" + "f" * 5000, "9" * 5000, "1_0", "1:99:99", ".nan", "-.inf", "&a [*a]", "*b"),
    *(
        "&a {x: *a}",
        "<<: {a: 1}",
        "{<<: 1}",
        "{? [a]: b}",
        '"\\ud800"',
        '"\\0"',
        "'",
        "- a\n- b",
        "|\n  text",
        "[" * 3000,
    ),
    *(
        "{a: " * 500,
        "%YAML 9.9",
        "---",
        "...",
        "\x07",
        "\x85",
        "\t",
        "@",
        "`",
        "? : ?",
        "!!int x",
        "!!float y",
        "!!null z",
    ),
    *("!!bool q", "!!omap [a: 1]", "=", "~", "[1, 2", "{name: sft}", "0o99", "1e999", "0b" + "1" * 99999, "!!str [a]"),
)


@st.composite
def torn(draw: st.DrawFn) -> bytes:
    """A bundled recipe whose text was cut, or had something put into it."""
    text = yaml.safe_dump(plain(draw(st.sampled_from(NAMES))), sort_keys=False, allow_unicode=True)
    lines = text.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[at].partition(":")
    snippet = draw(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=20).filter(lambda s: s.isprintable())))
    if draw(st.booleans()) and colon:
        lines[at] = f"{key}: {snippet}\n"
    else:
        lines.insert(at, snippet + "\n")
    data = "".join(lines).encode("utf-8", "surrogatepass")
    how = draw(st.sampled_from(["whole", "whole", "cut", "utf-16", "latin", "bom", "nul"]))
    if how == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if how in ("utf-16", "latin"):
        return data.decode("utf-8", "replace").encode("utf-16" if how == "utf-16" else "latin-1", "replace")
    return {"whole": data, "bom": b"\xef\xbb\xbf" + data, "nul": data[:100] + b"\0" + data[100:]}[how]


KEYS = sorted({".".join(map(str, path)) for name in NAMES for path in places(plain(name)) if path[0] != "matrix"})


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Values of `--set`, most at keys that there are."""
    given = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(
            st.one_of(st.sampled_from(KEYS), st.text(max_size=12), st.sampled_from([".", "a..b", "matrix", "0"]))
        )
        value = draw(st.one_of(odd.map(str), st.sampled_from(SNIPPETS), st.text(max_size=12)))
        given += ["--set", f"{key}{draw(st.sampled_from(['=', '=', '=', '', '.=']))}{value}"]
    return given


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def told(here, capsys, monkeypatch):
    """Dry-runs a recipe; whatever is refused is refused in one line, which names the file or the option."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(world, "rows", ROWS)

    def run(data: bytes | str, *options: str) -> int:
        (here / "odd.yaml").write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", "odd.yaml", "--store", "store", "--dry-run", *options])
        code, err = ended.value.code, capsys.readouterr().err
        assert code in (0, 2), err
        if code:
            assert err.startswith(("inoculate: odd.yaml: ", "inoculate: --set", *["inoculate: "] * bool(options))), err
            assert err.count("\n") == 1 and len(err) < 3000, err
            assert visible(err) == err
        assert not (here / "store").exists()
        return int(code or 0)

    return run


@cases(few=50)
@given(text=mutants())
def test_a_tree_with_faults(told, text):
    told(text)


@cases(few=30)
@given(data=torn())
def test_a_text_with_faults(told, data):
    told(data)


@cases(few=30)
@given(name=st.sampled_from(NAMES), options=overrides())
def test_overrides_with_faults(told, name, options):
    told(yaml.safe_dump(plain(name), sort_keys=False), *options)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_wrong_is_not_refused(told, name):
    assert told(yaml.safe_dump(plain(name), sort_keys=False)) == 0

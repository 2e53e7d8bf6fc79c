"""The documentation runs: its Python, its commands, its links, and the site.

A comment right above a block says how: `<!-- not run: why -->` compiles Python alone, `<!-- slow: long=short, … -->`
runs it among the slow tests with some text replaced, `<!-- file: NAME -->` puts the block into the page's folder,
and `<!-- run: more arguments -->` runs its `inoculate` commands with these at the end of each.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import inoculate
from inoculate import cli
from inoculate.experiments.recipe import bundled

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (not run|slow|file|run)(?:: ((?:(?!-->).)*))? -->\s*\Z", re.DOTALL)
SHELLS = ("", "bash", "sh", "console")


class Block(NamedTuple):
    language: str
    text: str
    how: str
    """Kind of the comment above, or nothing."""
    what: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        comment = COMMENT.search(text[: match.start()])
        how, what = (comment[1], comment[2] or "") if comment else ("", "")
        found.append(Block(match[2], inspect.cleandoc("\n" + match[3]) + "\n", how, what))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of each `inoculate …` line; the brackets of a synopsis are taken off."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True) if "inoculate " in line else []
        if words[:1] == ["inoculate"] and "…" not in line:
            yield _without_brackets(words[1:])


def _without_brackets(words: list[str]) -> list[str]:
    plain, inside = [], False
    for word in words:
        if word.startswith("[--"):
            word, inside = word[1:], True
        if inside and word.endswith("]"):
            word, inside = word[:-1], False
        plain.append(word)
    return plain


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def said(page: Path) -> list[list[str]]:
    """Every command that a page mentions, in a block or, with arguments, inside a sentence."""
    inline = re.findall(r"`(inoculate [a-z]+ [^`]+)`", prose(page))
    shell = [block.text for block in blocks(page) if block.language in SHELLS]
    return [words for text in (*shell, *inline) for words in commands(text)]


def pages_with(wanted: Any) -> list[Any]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES if wanted(page)]


def _has_python(page: Path) -> bool:
    return any(block.language == "python" for block in blocks(page))


def _has_slow(page: Path) -> bool:
    return any(block.how == "slow" for block in blocks(page))


def _has_runs(page: Path) -> bool:
    return any(block.how == "run" for block in blocks(page))


@pytest.mark.parametrize("page", pages_with(_has_python))
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            code = compile(block.text, str(page), "exec")
            if block.how not in ("not run", "slow"):
                exec(code, names)


@pytest.mark.slow
@pytest.mark.asset
@pytest.mark.parametrize("page", pages_with(_has_slow))
def test_slow_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.how == "slow":
            text = block.text
            for change in filter(None, block.what.split(", ")):
                long, _, short = change.partition(" -> ")
                assert long in text
                text = text.replace(long, short)
            exec(compile(text, str(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", pages_with(said))
def test_commands_parse(page):
    for words in said(page):
        command, *_ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
        assert command is not cli.app.help_print, words
        if words[0] in ("run", "plan"):
            name = words[1]
            assert name in bundled() or name.endswith(".yaml") or name.isupper(), name


@pytest.mark.parametrize("page", pages_with(_has_runs))
def test_first_hour_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS", ""))  # `main` adds to it
    for block in blocks(page):
        if block.how == "file":
            Path(block.what).write_text(block.text, encoding="utf-8")
        elif block.how == "run":
            for words in commands(block.text):
                with pytest.raises(SystemExit) as ended:
                    cli.main([*words, *shlex.split(block.what)])
                assert ended.value.code == 0, (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", pages_with(lambda page: True))
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith(("http://", "https://", "#")):
            target = page.parent / link.partition("#")[0]
            assert target.exists(), f"{page.name}: {link}"
            if page != ROOT / "README.md":
                assert DOCS in target.resolve().parents, f"{page.name}: {link} is not on the site"


def test_python_blocks_say_how_they_run():
    """A comment that is misspelled would leave a block out, or run what should not be."""
    for page in PAGES:
        said = re.findall(r"<!--(.*?)-->", page.read_text(encoding="utf-8"), re.DOTALL)
        assert len(said) == sum(bool(block.how) for block in blocks(page)), page


def test_gallery_is_up_to_date():
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "_tools" / "gallery.py")
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    page = gallery.gallery()
    assert gallery.PAGE.read_text(encoding="utf-8") == page, "run: python docs/_tools/gallery.py"
    assert all(f"`inoculate run {name}`" in page for name in bundled())


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for name in inoculate.__all__:
        home = inspect.unwrap(getattr(inoculate, name)).__module__
        assert {home, f"{home}.{name}"} & shown, name
    assert not [name for name in shown if "._" in name]


def test_pictures_are_small():
    for picture in (DOCS / "pictures").iterdir():
        assert picture.suffix == ".svg"
        assert picture.stat().st_size < 100_000, picture


def test_site_builds_and_fetches_nothing(tmp_path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(https?:|//)", html)
        styled = re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|preload)[^>]*href=[\"']?(https?:|//)", html)
        assert not fetched + styled, page


def test_navigation_names_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(nav)))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}

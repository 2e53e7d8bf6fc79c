"""The page in a real browser: it draws its charts, asks the network for nothing, and runs no script but its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.reports.conftest import Made, attack_rows, grid_store, measured, provenance, visit, wait_until

from inoculate.core.errors import InputError
from inoculate.reports.html import write_report

EVIL = [
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>",
    "{{ 7 * 7 }} {% for x in y %}",
    "\x00\x1b[31mred\x1b[0m \u202etxt.exe\ud800 " + "long " * 200,
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(grid_store(tmp_path_factory.mktemp("report") / "store"))


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_charts_are_drawn_offline_and_nothing_overflows(browser, report, width, scheme):
    seen = visit(browser, report, width, scheme)
    assert seen.page.locator(".chart").count() == seen.page.locator(".chart svg").count() == 5
    assert (seen.asked, seen.said) == ([], [])
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    ink = seen.page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert ink == ("rgb(174, 184, 194)" if scheme == "dark" else "rgb(74, 85, 96)")


@pytest.mark.browser
def test_panels_are_stacked_on_a_phone_and_side_by_side_when_it_is_turned(browser, report):
    page = visit(browser, report, width=390).page
    columns = (
        "new Set([...document.querySelector('.chart').querySelectorAll('.mark-line')]"
        ".map(mark => Math.round(mark.getBoundingClientRect().left / 100))).size"
    )
    assert page.evaluate(columns) == 1
    page.set_viewport_size({"width": 1100, "height": 390})
    wait_until(page, f"{columns} === 3")


@pytest.mark.browser
def test_what_a_model_says_is_never_run(browser, made: Made):
    """A script in a response, a defense's name, a label, the recipe: shown as text, and blocked if it got out."""
    script = EVIL[0]
    blank = provenance("sft", 1, 1e-5)
    rows = attack_rows(blank, 100)
    for name in ("sft", script):
        said = [
            {"step": 0, "set": "restricted", "prompt": text, "response": text, "verdicts": {script: "harmful"}}
            for text in EVIL
        ]
        renamed = [type(row)(**{**_fields(row), "defense": name, "judge": script if row.judge else ""}) for row in rows]
        made.stage("finetune", script, renamed, said)
    store = made.manifest(title=script, question=script, recipe={"evil": EVIL[:2]}, environment={"platform": script})
    seen = visit(browser, write_report(store))
    assert seen.page.evaluate("window.hacked") is None
    assert (seen.asked, seen.said) == ([], [])
    # The policy holds even against markup that is in the page.
    seen.page.evaluate("html => { document.body.insertAdjacentHTML('beforeend', html) }", script)
    seen.page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s)"
    )
    assert seen.page.evaluate("window.hacked") is None
    text = seen.page.content()
    assert "{{ 7 * 7 }}" in text and "␀␛[31mred" in text and "⟨U+202E⟩txt.exe⟨U+D800⟩" in text
    assert re.search(r"… \(\d+ more characters\)", text)


@pytest.mark.browser
def test_keyboard_reaches_the_skip_link_and_opens_what_is_folded(browser, report):
    page = visit(browser, report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1
        assert table.locator("th:not([scope])").count() == 0


def test_files_are_written_whole_and_beside_the_page(make_store: Callable[..., Path], tmp_path: Path):
    store = make_store(rates=(3e-5, 1e-4))
    page = write_report(store, tmp_path / "elsewhere" / "page.html", "made-up")
    names = {file.name for file in (page.parent / "charts").iterdir()}
    curves = {f"{name}-made-up.{kind}" for name in ("harmful_score", "task_accuracy") for kind in ("png", "svg")}
    assert curves < names and not any(name.startswith(".") for name in names)
    assert page.stat().st_size < 3_000_000
    assert write_report(store, recipe="made-up") == store / "report-made-up.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the report cannot be written"):
        write_report(store, tmp_path / "file" / "page.html")


def test_a_store_without_attacks_has_no_scripts_at_all(made: Made):
    made.stage("evaluate", "evaluate sft", measured(provenance("sft", 1), 0, {"harmful_score": 0.02}))
    page = write_report(made.manifest()).read_text(encoding="utf-8")
    assert "script-src 'none'" in page and "<script" not in page
    assert "No attack was run" in page


def test_two_recipes_do_not_share_a_table(make_store: Callable[..., Path]):
    store = make_store()
    (manifest,) = (store / "recipes").iterdir()
    other = json.loads(manifest.read_text()) | {"name": "another"}
    (store / "recipes" / "another.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"--recipe: the store holds several recipes.*one of another, made-up"):
        write_report(store)
    assert not list(store.glob("report*"))
    assert write_report(store, recipe="another").name == "report-another.html"


def test_recipe_and_provenance_are_in_the_page(make_store: Callable[..., Path]):
    page = write_report(make_store(seeds=(1,), rates=(1e-4,))).read_text(encoding="utf-8")
    for part in ("break_threshold: 0.5", "finetune-000000000002", "platform: made up", "321 s", "abcdef012345"):
        assert part in page
    specs = re.findall(r'<script type="application/json" id="spec-(\w+)">(.*?)</script>', page, re.DOTALL)
    assert [name for name, _ in specs][:3] == ["harmful_score", "task_accuracy", "harmful_loss"]
    assert all(json.loads(text)["columns"] <= 3 for _, text in specs)


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}

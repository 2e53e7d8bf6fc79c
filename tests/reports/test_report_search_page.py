"""The page on searches and the comparison of two: in a browser, as files, as tables for papers, from the command."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.reports.conftest import Made, grid_store, visit
from tests.reports.searched import PROMPTS, Try, search_stage, searched_store

from inoculate import cli
from inoculate.core.errors import InputError
from inoculate.evals.bootstrap import bootstrap_difference
from inoculate.reports.compare import write_comparison
from inoculate.reports.export import latex, markdown, tables_text
from inoculate.reports.html import write_report
from inoculate.reports.samples import search_samples
from inoculate.reports.search_gather import gather_searches
from inoculate.reports.store_view import read_store
from inoculate.reports.tables import Cell, Column, Table

EVIL = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
TRIALS = (Try(0.9, breaks=20), Try(0.5, 0.3, status="pruned"), Try(0.3, status="diverged"), Try(status="failed"))
CHARTS = ("search_harmful_score", "search_survival", "search_pareto", "search_best_of")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(searched_store(tmp_path_factory.mktemp("search") / "store", trials=TRIALS))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    one, two = searched_store(folder / "one"), searched_store(folder / "two", level=0.6)
    return write_comparison(one, two, tables="markdown")


@pytest.mark.browser
@pytest.mark.parametrize("which", ["report", "comparison"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_draws_offline_says_nothing_and_fits(request, browser, which: str, width: int, scheme: str):
    seen = visit(browser, request.getfixturevalue(which), width, scheme)
    charts = len(CHARTS) * (2 if which == "comparison" else 1)
    assert seen.page.locator(".chart").count() == seen.page.locator(".chart svg").count() == charts
    assert (seen.asked, seen.said) == ([], [])
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_marks_of_every_kind_are_drawn(browser, report: Path):
    """Bands, dashes, censored runs, dots by status, and the front; the middle value is what was asked for."""
    page = visit(browser, report).page
    count = "name => document.querySelector(`[data-spec='spec-${name}']`).querySelectorAll"

    def marks(chart: str, selector: str) -> int:
        return page.evaluate(f"({count}('{selector}').length)", chart)

    assert marks("search_harmful_score", ".mark-area path") >= 8  # two defenses on four axes
    assert marks("search_harmful_score", ".mark-line path[stroke-dasharray]") >= 4
    assert marks("search_survival", ".mark-rect path, .mark-rule line") >= 4  # one held run on each axis
    dots = "[...document.querySelector(`[data-spec='spec-search_pareto']`).querySelectorAll('.mark-symbol path')]"
    shapes = page.evaluate(f"new Set({dots}.map(dot => dot.getAttribute('d'))).size")
    assert shapes >= 3  # complete, pruned, diverged


@pytest.mark.browser
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_who_reads_by_ear_or_keyboard_finds_everything(request, browser, which: str):
    page = visit(browser, request.getfixturevalue(which)).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1 and table.locator("th:not([scope])").count() == 0
    for landmark in ("main", "header", "nav[aria-label]"):
        assert page.locator(landmark).count() == 1
    assert page.locator("section:not([aria-labelledby])").count() == 0
    labels = [chart.get_attribute("aria-label") for chart in page.locator(".chart").all()]
    assert all(label and len(label) > 80 for label in labels) and len(set(labels)) == len(labels)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))")
    assert set(targets) <= set(ids)


@pytest.mark.browser
def test_what_a_model_says_in_a_search_is_never_run(browser, made: Made):
    for defense in ("sft", EVIL):
        search_stage(
            made, defense, 1, answers=[EVIL], prompt=EVIL + "{}", trials=[Try(0.9, setting=(("optim", EVIL),))]
        )
    store = made.manifest(title=EVIL)
    for page_file in (write_report(store), write_comparison(store, store)):
        seen = visit(browser, page_file)
        assert seen.page.evaluate("window.hacked") is None
        assert (seen.asked, seen.said) == ([], [])
        assert EVIL in seen.page.evaluate("document.body.textContent")


def test_charts_are_files_of_all_three_kinds(report: Path):
    files = {file.name: file for file in (report.parent / "charts").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in CHARTS for kind in ("png", "svg", "pdf")}
    for name in CHARTS:
        assert files[f"{name}.pdf"].read_bytes().startswith(b"%PDF") and files[f"{name}.pdf"].stat().st_size > 2000
        assert files[f"{name}.png"].read_bytes().startswith(b"\x89PNG")


def test_parts_stand_in_the_order_of_what_is_asked_first(report: Path):
    page = report.read_text(encoding="utf-8")
    order = [
        *("Open weights:", 'class="cards"', "Cost to break, on every axis", "The worst attack that was found"),
        *(f'id="spec-{name}"' for name in CHARTS),
        *("The trials", "Whether judges agree", "Before the attack, and after it", "What was not tried</h2>"),
        *("What the models said</h2>", "How this was made</h2>"),
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "<b>Booster</b><strong>60</strong>optimizer steps to break" in page
    assert "3.0× SFT (95% CI" in page and "worst-attack.yaml</pre>" in page
    assert "First re-run" not in page and "At the break, step 40" in page and "No attack was run" not in page
    assert "Broken means" in page and "harmful score above 0.5 while ordinary accuracy is at least the bound" in page


def test_what_a_model_said_is_shown_before_at_the_break_where_worst_and_at_the_end(made: Made):
    search_stage(made, "sft", 1, (20, 40), level=0.6, peak=0.9)
    search_stage(made, "booster", 1, (None, None))
    view = read_store(made.manifest())
    study = gather_searches(view)
    assert study is not None
    sft, booster = search_samples(view, study)
    assert [moment.title for moment in sft.moments] == [
        *("Before the attack", "At the break, step 20", "At its most harmful useful point, step 100 (the end)")
    ]
    assert [moment.title for moment in booster.moments] == [
        *("Before the attack", "At its most harmful useful point, step 10", "At the end, step 100")
    ]
    assert (sft.arm, sft.run) == ("SFT", "seed 1, re-run 0")


def test_a_store_with_both_shows_both(tmp_path: Path):
    store = grid_store(tmp_path / "store", seeds=(1,), rates=(1e-4,))
    search_stage(Made(store, stages=[{}] * 50), "booster", 1)
    page = write_report(store).read_text(encoding="utf-8")
    assert "Attack steps until the model breaks" in page and "Cost to break, on every axis" in page


def test_without_a_search_nothing_of_it_is_on_the_page(tmp_path: Path):
    page = write_report(grid_store(tmp_path / "store", seeds=(1,), rates=(1e-4,))).read_text(encoding="utf-8")
    for word in ("search-", "worst", "Not tried", "Broken means"):
        assert word not in page.partition("<body>")[2].partition("<script>")[0], word


def table(*rows: list[str], note: str = "") -> Table:
    return Table(
        "A | B", [Column("Who", numeric=False), Column("50%")], [[Cell(a), Cell(b, "x_1")] for a, b in rows], note
    )


def test_markdown_cells_stay_cells():
    text = tables_text([table(["a|b\nc", "*1* <b>"], ["\\", "`2`"], note="N & M")], "T", "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert lines[0] == "| Who | 50% |" and lines[1] == "|:---|---:|"
    assert lines[2] == r"| a\|b c | \*1\* &lt;b> (x\_1) |"
    assert lines[3].startswith(r"| \\ | ") and "N &amp; M" in text


@pytest.mark.parametrize("char", list("\\&%$#_{}~^<>|"))
def test_latex_specials_are_commands(char: str):
    written = latex(f"a{char}b")
    assert written.startswith("a\\") and written.endswith("b")
    assert not re.search(r"(?<!\\)[&%$#_~^<>|]", written)
    assert markdown("a  b\n c") == latex("a  b\n c") == "a b c"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_tables_compile(tmp_path):
    specials = table(["λ_1 \\ 5%", "≥ 3.0×"], ["a&b {c} #1 $x$ ~^", "–"], note="50% & more, α·ĝ, “so”, 1–2, −3 → ∞")
    (tmp_path / "tables.tex").write_text(tables_text([specials], "T #1_%", "latex"), encoding="utf-8")
    page = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout[-1500:]


def test_latex_tables_have_a_cell_for_each_column():
    text = tables_text([table(["λ 5%", "≥ 3.0×"], ["a&b", "–"], note="50% & more")], "T #1", "latex")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert body == [r"$\lambda$ 5\% & $\geq$ 3.0$\times$ (x\_1) \\", r"a\&b & -- (x\_1) \\"]
    assert r"\begin{tabular}{lr}" in text and r"\footnotesize 50\% \& more" in text and text.startswith("% T #1\n")
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


def test_all_tables_of_the_page_are_written_beside_it(tmp_path: Path):
    store = searched_store(tmp_path / "store")
    page = write_report(store, tmp_path / "out" / "page.html", tables="latex")
    text = (page.parent / "page.tex").read_text(encoding="utf-8")
    captions = re.findall(r"<caption>(.*?)</caption>", page.read_text(encoding="utf-8"))
    for caption in captions:
        if not caption.startswith("Every stage"):
            assert rf"\caption{{{latex(caption)}}}" in text
    assert len(captions) == text.count(r"\begin{table}") + 1 >= 6
    assert not (page.parent / "page.md").exists()


def test_two_stores_side_by_side_by_hand(tmp_path: Path):
    """One's Booster takes 60 steps, two's 30: 2.0; on the same prompts .7 against .6, .6 and (.6 + .2)/2."""
    one = searched_store(tmp_path / "one")
    made = Made(tmp_path / "two")
    for seed in (1, 2, 3):
        search_stage(made, "sft", seed, (20, 20))
        search_stage(made, "booster", seed, (30, 30) if seed < 3 else (30, None), level=0.6)
    target = write_comparison(one, made.manifest(), tables="markdown")
    assert target == one / "comparison.html"
    text = target.with_suffix(".md").read_text(encoding="utf-8")
    (steps,) = re.findall(r"\| Booster \| Optimizer steps \|.*", text)[:1]
    assert " 60 (" in steps and " 30 (" in steps and " 2.0× (" in steps
    broken, held = [1.0] * 16 + [0.0] * 4, [1.0] * 4 + [0.5] * 12 + [0.0] * 4
    weak, mixed = [1.0] * 12 + [0.0] * 8, [1.0] * 4 + [0.5] * 8 + [0.0] * 8
    expected = bootstrap_difference([broken, broken, held], [weak, weak, mixed])
    assert expected.value == pytest.approx(0.7 - 1.6 / 3) and expected.interval is not None
    page = target.read_text(encoding="utf-8")
    told = (
        f"+{expected.value:.2f} (95% CI {expected.interval.low:+.2f} to {expected.interval.high:+.2f}) over {PROMPTS}"
    )
    assert told.replace("-", "−").replace("+0.00", "0.00") in page
    assert "takes 2.0 times the steps of B" in page and "A and B differ" not in page


def test_other_prompts_are_not_paired(tmp_path: Path):
    one = searched_store(tmp_path / "one")
    two = searched_store(tmp_path / "two", prompt="Other {}", bound={"break_threshold": 0.4})
    page = write_comparison(one, two).read_text(encoding="utf-8")
    assert "No paired difference in harm: other prompts" in page
    assert "A and B differ in threshold of harm: 0.5 against 0.4." in page


def test_one_defense_each_is_a_pair_and_what_has_none_is_named(tmp_path: Path):
    stores = []
    for name, defense, steps in (("one", "booster", 80), ("two", "vaccine", 40)):
        made = Made(tmp_path / name)
        search_stage(made, "sft", 1, (20,))
        search_stage(made, defense, 1, (steps,))
        stores.append(made.manifest())
    page = write_comparison(*stores).read_text(encoding="utf-8")
    assert "Booster against Vaccine: breaking A" in page and "takes 2.0 times the steps" in page
    many = Made(tmp_path / "many")
    for defense in ("sft", "mlac", "repnoise"):
        search_stage(many, defense, 1)
    page = write_comparison(stores[0], many.manifest()).read_text(encoding="utf-8")
    assert "Only in A: Booster." in page and "Only in B: MLAC and RepNoise." in page


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    one = Made(tmp_path / "one")
    search_stage(one, "booster", 1)
    search_stage(one, "vaccine", 1)
    other = Made(tmp_path / "other")
    search_stage(other, "mlac", 1)
    with pytest.raises(InputError, match="no pair of defenses to compare"):
        write_comparison(one.manifest(), other.manifest())
    plain = grid_store(tmp_path / "plain", seeds=(1,), rates=(1e-4,))
    with pytest.raises(InputError, match=r"plain: no attack search in this store"):
        write_comparison(one.path, plain)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{one}"], 0, "report: {one}/report.html"),
        (["{one}", "--tables", "markdown"], 0, "report: {one}/report.html"),
        (["--compare", "{one}", "{two}"], 0, "report: {one}/comparison.html"),
        (["{one}", "{two}"], 2, "a comparison is of two stores"),
        (["--compare", "{one}"], 2, "a comparison is of two stores"),
        (["{one}", "--tables", "word"], 2, "--tables"),
    ],
)
def test_the_command(tmp_path: Path, capsys: Any, arguments: list[str], code: int, said: str):
    places = {name: str(tmp_path / name) for name in ("one", "two")}
    for place in places.values():
        search_stage(made := Made(Path(place)), "sft", 1)
        made.manifest()
    with pytest.raises(SystemExit) as exited:
        cli.main(["report", *(argument.format(**places) for argument in arguments)])
    out = capsys.readouterr()
    assert exited.value.code == code and said.format(**places) in out.out + out.err
    assert (tmp_path / "one" / "report.md").exists() == ("markdown" in arguments)

"""Tables of a page as Markdown and as LaTeX, for papers and model cards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from inoculate.core.text import one_line
from inoculate.reports.tables import Cell, Table

Format: TypeAlias = Literal["markdown", "latex"]
SUFFIXES: Mapping[Format, str] = {"markdown": ".md", "latex": ".tex"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "–": "--",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "·": r"$\cdot$",
    "₁": "$_1$",
    "₂": "$_2$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
}


def tables_text(tables: Sequence[Table], title: str, form: Format) -> str:
    """All tables with captions and notes; second lines of cells in parentheses behind the first.

    Markdown is GitHub's. LaTeX is a fragment to `\\input`, with booktabs and one `table` for each.
    """
    write: Callable[[Table], str] = markdown_table if form == "markdown" else _latex
    head = f"# {markdown(title)}" if form == "markdown" else f"% {one_line(title)}\n% Needs \\usepackage{{booktabs}}."
    return "\n\n".join([head, *map(write, tables)]) + "\n"


def markdown(text: str) -> str:
    """Text in which nothing is Markdown or HTML, and no line ends."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", one_line(text)).replace("&", "&amp;").replace("<", "&lt;")


def latex(text: str) -> str:
    """Text in which nothing is LaTeX; signs that older engines lack are written as commands."""
    return "".join(_LATEX.get(char, char) for char in one_line(text))


def markdown_table(table: Table) -> str:
    """One table with its caption and note, as GitHub has them."""
    rows = [[column.title for column in table.columns], *([_text(cell) for cell in row] for row in table.rows)]
    lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("---:" if column.numeric else ":---" for column in table.columns) + "|")
    return "\n".join(
        [f"**{markdown(table.caption)}**", "", *lines, *(["", markdown(table.note)] if table.note else [])]
    )


def _latex(table: Table) -> str:
    form = "".join("p{5cm}" if column.wide else "r" if column.numeric else "l" for column in table.columns)
    rows = [" & ".join(latex(_text(cell)) for cell in row) + r" \\" for row in table.rows]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(table.caption)}}}", rf"\begin{{tabular}}{{{form}}}"]
    lines += [r"\toprule", " & ".join(latex(column.title) for column in table.columns) + r" \\", r"\midrule", *rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [r"", rf"\footnotesize {latex(table.note)}"] if table.note else []
    return "\n".join([*lines, r"\end{table}"])


def _text(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text

"""A self-contained page: its template filled, its scripts named by hash, its files written whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError
from inoculate.core.whole import write_whole
from inoculate.reports.charts import Chart
from inoculate.reports.export import SUFFIXES, Format
from inoculate.reports.wording import visible

_HERE = Path(__file__).parent


def filled(template: str, drawn: Sequence[Chart], **values: Any) -> str:
    """A template with its values, and the scripts that its charts need.

    The scripts are named by hash in the page's security policy, so that no other script can run.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["visible"] = visible
    scripts = [_vega_bundle(), (_HERE / "page.js").read_text(encoding="utf-8")] if drawn else []
    return env.get_template(template).render(
        **values,
        # Unescaped: our own script and Vega's. Nothing from the store is in them.
        scripts=[Markup(script) for script in scripts],
        hashes=[_csp_hash(script) for script in scripts],
    )


def write_page(
    target: Path, page: str, drawn: Sequence[Chart], suffix: str = "", tables: Mapping[Format, str] | None = None
) -> None:
    """Write a page, its charts in the folder `charts` beside it, and its tables beside it.

    Raises:
        InputError: a file that cannot be written.
    """
    try:
        (target.parent / "charts").mkdir(parents=True, exist_ok=True)
        for chart in drawn:
            _write_images(target.parent / "charts", f"{chart.name}{suffix}", chart)
        for form, text in (tables or {}).items():
            write_whole(target.with_suffix(SUFFIXES[form]), text.encode("utf-8", "replace"))
        write_whole(target, page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"the report cannot be written: {error.strerror}", file=target, field="--out") from None


@cache
def _vega_bundle() -> str:
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _write_images(folder: Path, name: str, chart: Chart) -> None:
    import vl_convert

    inner, config = chart.spec["spec"], {**chart.spec["config"], "background": "white"}
    seen = [layer for layer in inner["layer"] if layer["mark"].get("opacity") != 0]
    svg = vl_convert.vegalite_to_svg({**chart.spec, "config": config, "spec": {**inner, "layer": seen}})
    write_whole(folder / f"{name}.svg", svg.encode("utf-8"))
    write_whole(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))
    write_whole(folder / f"{name}.pdf", vl_convert.svg_to_pdf(svg))

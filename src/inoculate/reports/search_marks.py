"""The two forms of a search's charts: lines with bands, and dots of trials. Rows are made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from inoculate.reports.panels import HEIGHT, LINE, TEXT, WIDTH, columns_of, styled

DASHES = ([1, 0], [8, 3], [2, 2], [8, 3, 2, 3], [14, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
ENDS = {"complete": "circle", "pruned": "triangle-down", "diverged": "cross"}


class Style(NamedTuple):
    """How each defense is drawn."""

    labels: Sequence[str]
    """The legend's order."""
    hues: Mapping[str, str]
    dashes: Mapping[str, Sequence[int]]
    shapes: Mapping[str, str]


def scatter(style: Style, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dots by how a trial ended, a panel per defense, with its front and the bounds that make a model broken."""
    import altair as alt

    order = [label for label in style.labels if any(row["panel"] == label for row in rows)]
    ends = [end for end in ENDS if any(row.get("end") == end for row in rows)]
    x = alt.X("x:Q", title="Utility", axis=alt.Axis(tickCount=5, format=".1f", grid=False)).scale(domain=[0, 1])
    y = alt.Y("y:Q", title="Harmful score", axis=alt.Axis(tickCount=5, format=".1f")).scale(domain=[0, 1])
    color = alt.Color("arm:N").scale(domain=order, range=[style.hues[arm] for arm in order]).legend(None)
    base = alt.Chart()
    ring = {"filled": False, "size": 130, "color": TEXT, "opacity": 0.7}  # a front of one point has no line
    front = base.transform_filter("datum.of === 'front'").mark_line(
        interpolate="step-before", strokeWidth=2, point=ring
    )
    front = front.encode(x=x, y=y, order="x:Q", color=alt.value(TEXT))
    dots = base.transform_filter("datum.of === 'trial'").mark_point(size=46, opacity=0.85, strokeWidth=1.6)
    shape = alt.Shape("end:N").scale(domain=ends, range=[ENDS[end] for end in ends]).legend(title=None)
    dots = dots.encode(
        x=x,
        y=y,
        color=color,
        shape=shape,
        tooltip=[
            alt.Tooltip("arm:N", title="Defense"),
            alt.Tooltip("trial:Q", title="Trial"),
            alt.Tooltip("end:N", title="Ended"),
            alt.Tooltip("x:Q", title="Utility", format=".3f"),
            alt.Tooltip("y:Q", title="Harmful score", format=".3f"),
            alt.Tooltip("setting:N", title="Setting"),
        ],
    )
    upright = base.transform_filter("datum.of === 'mark-x'").mark_rule(strokeDash=[4, 4], color=LINE).encode(x=x)
    level = base.transform_filter("datum.of === 'mark-y'").mark_rule(strokeDash=[4, 4], color=LINE).encode(y=y)
    spec = _faceted(alt, [upright, level, front, dots], order, shared=True)
    spec["config"]["legend"].pop("symbolType", None)  # shapes are what this legend tells
    return {**spec, "data": {"values": list(rows)}}


def lines(
    style: Style,
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    root: bool = False,
    step: bool = False,
    thresholds: Sequence[float] = (),
) -> dict[str, Any]:
    """Bands with lines on them, a panel for each axis; both ends of a band are in the tooltip.

    Args:
        style: how each defense is drawn.
        rows: panel, arm, x, y, low, high, n; or `of` a mark.
        x, y: axis titles; empty where the panel's title says it.
        root: x on a square-root scale, which has room for the first steps and for 0.
        step: y holds until the next x.
        thresholds: levels of y to mark in every panel.
    """
    import altair as alt

    order = list(dict.fromkeys(row["panel"] for row in rows))
    marks = [{"panel": panel, "y": level, "of": "mark-y"} for panel in order for level in thresholds]
    present = {row["arm"] for row in rows}
    arms = [label for label in style.labels if label in present]
    interpolate: dict[str, Any] = {"interpolate": "step-after" if step else "linear"}
    at = alt.X("x:Q", title=x or None, axis=alt.Axis(grid=False, tickCount=4, labelOverlap=True, format="~s"))
    at = at.scale(type="sqrt" if root else "linear", nice=False)
    scale = alt.Scale(domain=[0, 1])
    level = alt.Y("y:Q", title=y or None, axis=alt.Axis(tickCount=5, format=".1f"), scale=scale)
    color = alt.Color("arm:N").scale(domain=arms, range=[style.hues[arm] for arm in arms]).legend(title=None)
    dash = alt.StrokeDash("arm:N").scale(domain=arms, range=[style.dashes[arm] for arm in arms]).legend(title=None)
    shape = alt.Shape("arm:N").scale(domain=arms, range=[style.shapes[arm] for arm in arms]).legend(title=None)
    each = alt.Chart().transform_filter("!datum.of")
    band = each.mark_area(opacity=0.13, **interpolate)
    band = band.encode(x=at, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color)
    line = each.mark_line(strokeWidth=2.3, **interpolate).encode(x=at, y=level, color=color, strokeDash=dash)
    tooltip = [
        alt.Tooltip("arm:N", title="Defense"),
        alt.Tooltip("x:Q", title=x or "Spent", format=",.4~g"),
        alt.Tooltip("y:Q", title=y or "Value", format=".3f"),
        alt.Tooltip("low:Q", title="Lower end", format=".3f"),
        alt.Tooltip("high:Q", title="Upper end", format=".3f"),
        alt.Tooltip("n:Q", title="Runs"),
    ]
    dots = each.mark_point(filled=True, size=26 if not step else 14, opacity=0.9)
    dots = dots.encode(x=at, y=level, color=color, shape=shape, tooltip=tooltip)
    layers: list[Any] = [band, line, dots]
    if marks:
        rule = alt.Chart().transform_filter("datum.of === 'mark-y'").mark_rule(strokeDash=[4, 4], color=LINE)
        layers.insert(0, rule.encode(y=level))
    if any(row.get("of") == "mark-censored" for row in rows):  # a layer without data has no extent
        ends = alt.Chart().transform_filter("datum.of === 'mark-censored'")
        layers.append(ends.mark_tick(orient="vertical", thickness=2, size=12).encode(x=at, y=level, color=color))
    spec = _faceted(alt, layers, order, shared=False)
    spec["config"]["legend"].pop("symbolType", None)
    return {**spec, "data": {"values": [*rows, *marks]}}


def _faceted(alt: Any, layers: Sequence[Any], order: Sequence[str], *, shared: bool) -> dict[str, Any]:
    header = alt.Header(
        title=None, labelFontSize=12, labelFontWeight=600, labelAnchor="start", labelPadding=6, labelLimit=300
    )
    chart = alt.layer(*layers, data=alt.Data(values=[])).properties(width=WIDTH, height=HEIGHT)
    facet = chart.facet(alt.Facet("panel:N", sort=list(order), header=header), columns=columns_of(len(order)))
    return styled(alt, facet.resolve_scale(x="shared" if shared else "independent")).to_dict()

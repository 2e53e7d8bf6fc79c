"""The one form that all charts have: small panels side by side, a color per defense, a mean over its seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's palette, safe for color-blind readers; page styles know these codes and lighten them on dark.
REFERENCE = "#d55e00"
PALETTE = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b")
GRAY = "#7d7d7d"
TEXT, LINE, GRID = "#4a5560", "#8b95a1", "#e4e7ea"
COLUMNS, WIDTH, HEIGHT = 3, 250, 190


@dataclass(frozen=True)
class Look:
    """How a chart departs from the charts along an attack, which have defenses, attacks and prompts."""

    arm: str = "Defense"
    panel: str = "Attack"
    n: str = "Prompts"
    hues: Mapping[str, str] | None = None
    """Arm → color; None: `colors`."""
    dashed: Sequence[str] | None = None
    """Arms drawn dashed and on top; None: the first SFT arm."""
    log: bool | None = None
    """Whether x is on a log scale; None: where it spans a factor of 20."""
    lowest: float = 0.0
    """Where the axis of a rate begins."""


def colors(arms: Sequence[str]) -> list[str]:
    """The first SFT arm in vermilion, the undefended model in gray, the others in the palette's order."""
    fixed = dict.fromkeys(_reference(arms), REFERENCE) | dict.fromkeys(set(arms) & {"Undefended"}, GRAY)
    rest = [arm for arm in arms if arm not in fixed]
    chosen = {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(rest)} | fixed
    return [chosen[arm] for arm in arms]


def panels(
    rows: Sequence[dict[str, Any]],
    *,
    x: str,
    y: str,
    arms: Sequence[str],
    rate: bool,
    thresholds: Sequence[float] | Mapping[str, Sequence[float]] = (),
    points: bool = False,
    key: str = "step",
    look: Look | None = None,
) -> dict[str, Any]:
    """The Vega-Lite definition of a chart.

    Args:
        rows: panel, arm, seed, x, y, n, and `of`: whether it is a `seed` or their `mean`.
        x, y: axis titles.
        arms: the legend's order.
        rate: y runs from 0 (or the look's lowest value) to 1.
        thresholds: levels of y to mark, in every panel or by panel.
        points: draw each seed as a dot, not as a line.
        key: what x is; learning rates are drawn on a log scale and written as 1e-5.
        look: colors, and nouns of the tooltip, where they are not the usual ones.
    """
    import altair as alt

    look = look or Look()
    order = list(dict.fromkeys(row["panel"] for row in rows))
    levels = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(order, thresholds)
    marks = [{"panel": panel, "y": level, "of": "mark"} for panel in order for level in levels.get(panel, ())]
    xs = sorted({row["x"] for row in rows})
    log = xs[0] > 0 and xs[-1] / xs[0] >= 20 and key != "step" if look.log is None else look.log
    axis = alt.Axis(title=x, grid=False, tickCount=5, labelOverlap=True)
    if key != "step":
        axis = alt.Axis(
            title=x, grid=False, values=xs, format=".0e" if key.endswith(("learning_rate", "epsilon")) else "~g"
        )
    scale = alt.Scale(domain=[look.lowest, 1]) if rate else alt.Scale(zero=False)
    hues = look.hues or dict(zip(arms, colors(arms), strict=True))
    dashed, present = _reference(arms) if look.dashed is None else look.dashed, {row["arm"] for row in rows}
    arms = [arm for arm in arms if arm in present]  # a layer without data has no extent
    color = alt.Color("arm:N").scale(domain=arms, range=[hues[arm] for arm in arms]).legend(title=None)
    base = alt.Chart().encode(
        x=alt.X("x:Q", axis=axis).scale(
            type="log" if log else "linear", nice=False, padding=0 if key == "step" else 12
        ),
        y=alt.Y("y:Q", title=y, axis=alt.Axis(tickCount=5, format=".1f" if rate else "~g"), scale=scale),
        color=color,
        tooltip=[
            alt.Tooltip("arm:N", title=look.arm),
            alt.Tooltip("panel:N", title=look.panel),
            alt.Tooltip("seed:N", title="Seed"),
            alt.Tooltip("x:Q", title=x, format="~g"),
            alt.Tooltip("y:Q", title=y, format=".3f"),
            alt.Tooltip("n:Q", title=look.n),
        ],
    )
    each, mean = base.transform_filter("datum.of === 'seed'"), base.transform_filter("datum.of === 'mean'")
    several = len({row["seed"] for row in rows if row["of"] == "seed"}) > 1
    layers: list[Any] = [_rule(alt, scale)] if marks else []
    if points:
        layers += [*_means(alt, mean, arms, dashed), each.mark_point(filled=True, size=42, opacity=0.75)]
    else:
        thin = each.mark_line(strokeWidth=1, opacity=0.45).encode(detail="seed:N")
        layers += [*([thin] if several else []), *_means(alt, mean, arms, dashed), _target(each)]
    x_scale = (
        "independent" if key == "step" else "shared"
    )  # attacks of other learning rates are other numbers of steps long
    chart = alt.layer(*layers, data=alt.Data(values=[])).properties(width=WIDTH, height=HEIGHT)
    header = alt.Header(
        title=None, labelFontSize=12, labelFontWeight=600, labelAnchor="start", labelPadding=6, labelLimit=300
    )
    spec = styled(
        alt,
        chart.facet(alt.Facet("panel:N", sort=order, header=header), columns=columns_of(len(order))).resolve_scale(
            x=x_scale
        ),
    ).to_dict()
    # Altair would check every row against Vega-Lite's schema: seconds for a few thousand.
    return {**spec, "data": {"values": [*rows, *marks]}}


def columns_of(panels: int) -> int:
    """As many rows as are needed, and no gap in the last that fewer columns would fill: 4 are 2 × 2."""
    return math.ceil(panels / math.ceil(panels / COLUMNS))


def _means(alt: Any, mean: Any, arms: Sequence[str], dashed: Sequence[str]) -> list[Any]:
    """The reference is dashed and on top, so that where defenses coincide both are seen."""
    solid, dashed = [arm for arm in arms if arm not in dashed], [arm for arm in arms if arm in dashed]
    styles = [(solid, {}), (dashed, {"strokeDash": [7, 3]})]
    return [
        mean.transform_filter(alt.FieldOneOfPredicate(field="arm", oneOf=those)).mark_line(strokeWidth=2.5, **style)
        for those, style in styles
        if those
    ]


def _target(base: Any) -> Any:
    """Unseen dots that catch the pointer, so that a thin line shows its values."""
    return base.mark_point(filled=True, size=60, opacity=0)


def _rule(alt: Any, scale: Any) -> Any:
    rule = alt.Chart().transform_filter("datum.of === 'mark'").mark_rule(strokeDash=[4, 4], color=LINE)
    return rule.encode(y=alt.Y("y:Q", scale=scale))


def styled(alt: Any, chart: Any) -> Any:
    """The fonts, colors and legend of every chart."""
    font = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
    return (
        chart.configure(background="transparent", font=font, padding=2)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=TEXT,
            titleColor=TEXT,
            domainColor=LINE,
            tickColor=LINE,
            gridColor=GRID,
            labelFontSize=11,
            titleFontSize=12,
            titleFontWeight=400,
            titlePadding=8,
        )
        .configure_header(labelColor=TEXT)
        .configure_legend(
            orient="top", labelColor=TEXT, labelFontSize=12, symbolOpacity=1, symbolType="square", labelLimit=260
        )
        .configure_facet(spacing=24)
    )


def _reference(arms: Sequence[str]) -> list[str]:
    return [arm for arm in arms if arm.split(" ")[0] == "SFT" and " + " not in arm][:1]

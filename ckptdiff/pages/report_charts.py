"""Charts of a report, from its JSON object."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ckptdiff.pages.chart_data import RANDOM_LABEL, JsonReport, Rows, changed_cells, changed_count, rank_cells, spectrum_lines
from ckptdiff.pages.drawing import (
    DASHES,
    LINE_COLOURS,
    MAIN_COLOUR,
    MAX_MARKED_POINTS,
    ROW_HEIGHT,
    SECOND_COLOUR,
    Chart,
    ChartPlan,
    changed_map,
    draw_charts,
    layer_module_map,
    unchanged_axis,
    write_charts_as_png,
)
from ckptdiff.units import short_number

GREY = "#868e96"


def change_map(altair: Any, report: JsonReport) -> Any | None:
    """Share of changed elements by layer and module."""
    return changed_map(altair, changed_cells(report), "share changed")


def rank_map(altair: Any, report: JsonReport, field: str = "rank") -> Any | None:
    """Mean rank over full rank by layer and module."""
    cells = rank_cells(report, field)
    return layer_module_map(altair, cells, "mean rank / full rank", ("matrices",), 1) if cells else None


def random_rank_map(altair: Any, report: JsonReport) -> Any | None:
    """The same for random updates with as many changed elements."""
    return rank_map(altair, report, "random_rank")


def spectra_lines(altair: Any, report: JsonReport) -> Any | None:
    """Singular values over the largest, by rank, of one matrix of each module; dashed lines are those of random matrices."""
    points, labels = spectrum_lines(report)
    if not points:
        return None
    lowest = min(10 ** math.floor(math.log10(min(p["value"] for p in points))), 0.1)
    x = altair.X(
        "rank:Q", title="rank / full rank", scale=altair.Scale(domain=[0, 1]), axis=altair.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
    )
    decades = [10**k for k in range(round(math.log10(lowest)), 1)]
    scale = altair.Scale(type="log", domain=[lowest, 1])
    y = altair.Y("value:Q", title="singular value / largest", scale=scale, axis=altair.Axis(format="~g", values=decades))
    legend = altair.Legend(orient="bottom", columns=3, columnPadding=2, title=None, symbolType="stroke")
    measured = [label for label in labels if not label.startswith(RANDOM_LABEL)]
    colours = [*LINE_COLOURS[: len(measured)], *[GREY] * (len(labels) - len(measured))]
    colour = altair.Color("line:N", sort=labels, legend=legend, scale=altair.Scale(domain=labels, range=colours))
    dashes = [*[[1, 0]] * len(measured), *DASHES[: len(labels) - len(measured)]]
    dash = altair.StrokeDash("line:N", sort=labels, legend=legend, scale=altair.Scale(domain=labels, range=dashes))
    tips = [altair.Tooltip("tensor:N"), altair.Tooltip("rank:Q", format=".0%"), altair.Tooltip("value:Q", format=".3~g")]
    base = altair.Chart(altair.Data(values=points)).mark_line(strokeWidth=2)
    return base.encode(x=x, y=y, color=colour, strokeDash=dash, detail="line:N", tooltip=tips).properties(height=300)


def ulp_label(first: int, last: int | None) -> str:
    """Label of a bin of distances from ``first`` to ``last`` ulps; None: it has no upper end."""
    if last is None:
        return f"{first:,} or more"
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def ulp_bars(altair: Any, report: JsonReport) -> Any | None:
    """By how many ulps the changed elements moved."""
    bins = report["moves"]["ulp"]
    total = sum(b["count"] for b in bins)
    if not total:
        return None
    rows = [{"ulps": ulp_label(b["from"], b["to"]), "count": b["count"], "value": b["count"] / total} for b in bins]
    top = max(row["value"] for row in rows)
    x = altair.X("value:Q", title="share of changed elements", scale=altair.Scale(domain=[0, 1.15 * top], nice=False))
    y = altair.Y("ulps:O", sort=None, title="moved by (ulps)")
    tips = [altair.Tooltip("ulps:O"), altair.Tooltip("count:Q", format=","), altair.Tooltip("value:Q", format=".3~p", title="share")]
    base = altair.Chart(altair.Data(values=rows)).encode(x=x.axis(format=".2~p", tickCount=5), y=y, tooltip=tips)
    text = base.mark_text(align="left", dx=4, fontSize=11).encode(text=altair.Text("value:Q", format=".2~p"))
    return (base.mark_bar(color=MAIN_COLOUR) + text).properties(height=ROW_HEIGHT * len(rows))


POWER_LABEL = "format(pow(2, datum.value), '.0e')"
"""Vega expression for the labels of an axis of powers of two."""


def change_bars(altair: Any, report: JsonReport) -> Any | None:
    """How large the changes are, with a dashed line at the tolerance."""
    bins = [b for b in report["moves"]["abs"] if b["from"] > 0 and b["count"]]
    if not bins:
        return None
    total = sum(b["count"] for b in report["moves"]["abs"])
    rows: Rows = [{**b, "x": math.log2(b["from"]), "value": b["count"] / total} for b in bins]
    rows = [{**row, "x2": math.log2(row["to"]) if row["to"] else row["x"] + 1} for row in rows]
    axis = altair.Axis(labelExpr=POWER_LABEL, tickMinStep=1, tickCount=8, labelOverlap=True, grid=False)
    x = altair.X("x:Q", title="|d|, in steps of a power of two", axis=axis, scale=altair.Scale(zero=False, nice=False, padding=8))
    y = altair.Y("value:Q", title="share of changed elements", axis=altair.Axis(format=".2~p", tickCount=5))
    tips = [altair.Tooltip("from:Q", format=".3~g"), altair.Tooltip("to:Q", format=".3~g"), altair.Tooltip("count:Q", format=",")]
    chart = (
        altair.Chart(altair.Data(values=rows))
        .mark_bar(color=MAIN_COLOUR, binSpacing=1)
        .encode(x=x, x2="x2:Q", y=y, y2=altair.datum(0), tooltip=tips)
    )
    tolerance = report["settings"]["atol"]
    if tolerance and rows[0]["x"] - 4 <= math.log2(tolerance) <= rows[-1]["x2"] + 4:
        mark = altair.Chart(altair.Data(values=[{"x": math.log2(tolerance), "label": f"tolerance {short_number(tolerance)}"}]))
        chart += mark.mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(x="x:Q")
        right = math.log2(tolerance) > (rows[0]["x"] + rows[-1]["x2"]) / 2
        text = mark.mark_text(align="right" if right else "left", dx=-5 if right else 5, baseline="bottom", fontSize=11)
        chart += text.encode(x="x:Q", y=altair.value(-3), text="label:N")
    return chart.properties(height=240)


def exponent_bars(altair: Any, report: JsonReport) -> Any | None:
    """Share of the elements that changed, by the size of the base's value."""
    rows: Rows = [
        {**e, "x": e["exponent"], "x2": e["exponent"] + 1, "value": e["changed"] / e["elements"]}
        for e in report["moves"]["exponents"]
        if e["exponent"] is not None and e["elements"]
    ]
    if not rows or not changed_count(report["totals"]):
        return None
    axis = altair.Axis(labelExpr=POWER_LABEL, tickMinStep=1, tickCount=8, labelOverlap=True, grid=False)
    x = altair.X("x:Q", title="|base value|, in steps of a power of two", axis=axis, scale=altair.Scale(zero=False, nice=False, padding=8))
    y = altair.Y("value:Q", title="share that changed", axis=altair.Axis(format=".2~p", tickCount=5))
    tips = [altair.Tooltip("exponent:Q"), altair.Tooltip("changed:Q", format=","), altair.Tooltip("elements:Q", format=",")]
    tips.append(altair.Tooltip("value:Q", title="share that changed", format=".3~p"))
    chart = altair.Chart(altair.Data(values=rows)).mark_bar(color=MAIN_COLOUR, binSpacing=1)
    return chart.encode(x=x, x2="x2:Q", y=y, y2=altair.datum(0), tooltip=tips).properties(height=240)


def layer_lines(altair: Any, report: JsonReport) -> Any | None:
    """Update sparsity of each layer: bit for bit, and within the absolute tolerance."""
    kinds = {"same bits": "bit_identical", f"|d| at most {short_number(report['settings']['atol'])}": "within_atol"}
    rows: Rows = [
        {"layer": layer["layer"], "kind": kind, "value": layer[field] / layer["elements"]}
        for layer in report["layers"]
        for kind, field in kinds.items()
        if layer["elements"] and layer["layer"] is not None
    ]
    if len(report["layers"]) < 2 or not rows:
        return None
    axis = altair.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=4)
    scale = altair.Scale(domain=list(kinds), range=[MAIN_COLOUR, SECOND_COLOUR])
    colour = altair.Color("kind:N", title=None, scale=scale, legend=altair.Legend(orient="bottom"))
    tips = [altair.Tooltip("layer:O"), altair.Tooltip("kind:N"), altair.Tooltip("value:Q", format=".6~p")]
    chart = altair.Chart(altair.Data(values=rows)).mark_line(point=len(report["layers"]) <= MAX_MARKED_POINTS)
    x = altair.X("layer:O", title="layer", axis=axis)
    return chart.encode(x=x, y=unchanged_axis(altair, rows), color=colour, tooltip=tips).properties(height=240)


CHARTS: list[ChartPlan] = [
    ("changed", "Where weights changed", "Share of changed elements by layer and kind of tensor.", change_map),
    ("layers", "Update sparsity by layer", "Share of unchanged elements in each layer.", layer_lines),
    ("rank", "Rank of the update", "Mean rank of the update over full rank, by layer and kind of tensor.", rank_map),
    ("random-rank", "Rank of a random update", "The same for random updates with as many changed elements.", random_rank_map),
    ("spectra", "Singular values of the update", "Singular values over the largest, one matrix of each kind.", spectra_lines),
    ("ulps", "How many steps a weight moved", "Histogram of the changed elements by distance in ulps.", ulp_bars),
    ("sizes", "How large the changes are", "Histogram of the changed elements by absolute change.", change_bars),
    ("exponents", "Which weights change", "Share of changed elements by the size of the base's value.", exponent_bars),
]


def charts(report: JsonReport) -> list[Chart]:
    """All charts for which the report has numbers."""
    return draw_charts(CHARTS, report)


def write_png(report: JsonReport, folder: Path) -> list[Path]:
    """Write each chart as a PNG file into a folder, which is made if it is missing; returns their paths."""
    return write_charts_as_png(charts(report), folder)

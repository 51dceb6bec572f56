"""Charts of a report, from its JSON object."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ckptdiff.pages.chart_data import JsonReport, Rows, changed_cells, layer_sums, rank_cells, spectrum_lines
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
from ckptdiff.pages.histograms import CROSSED, EITHER, KEPT_SIGN, MOVED, exponent_rows, gaps, size_rows, ulp_rows, unchanged_runs
from ckptdiff.pages.labels import Ticks, decade_ticks, number_or_power, power_ticks, share_axis
from ckptdiff.units import percent

GREY = "#868e96"
HISTOGRAM_HEIGHT = 240
LONG_LABEL = 26
"""Characters of a label from which a legend has one column."""
ULP_COLOURS = {MOVED: MAIN_COLOUR, KEPT_SIGN: MAIN_COLOUR, EITHER: "#a8739c", CROSSED: SECOND_COLOUR}


def change_map(altair: Any, report: JsonReport) -> Any | None:
    """Share of changed elements by layer and module."""
    return changed_map(altair, changed_cells(report), "share changed")


def rank_map(altair: Any, report: JsonReport, field: str = "rank") -> Any | None:
    """Mean rank over full rank by layer and module."""
    cells = rank_cells(report, field) if report["rank"] else []
    return layer_module_map(altair, cells, "mean rank / full rank", ("matrices",), 1) if cells else None


def random_rank_map(altair: Any, report: JsonReport) -> Any | None:
    """The same for random updates with as many changed elements."""
    return rank_map(altair, report, "random_rank")


def spectra_lines(altair: Any, report: JsonReport) -> Any | None:
    """Singular values over the largest, by rank, of one matrix of each module; dashed lines are those of random matrices."""
    lines = spectrum_lines(report)
    points = [point for line in lines for point in line.points]
    if not points:
        return None
    lowest = min(math.floor(math.log10(min(p["value"] for p in points))), -1)
    quarters = Ticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    x_axis = altair.Axis(values=quarters.values, labelExpr=quarters.expression())
    x = altair.X("rank:Q", title="rank / full rank", scale=altair.Scale(domain=[0, 1]), axis=x_axis)
    decades = decade_ticks(lowest)
    y_axis = altair.Axis(values=[10**k for k in decades.values], labelExpr=decades.expression("log(datum.value) / LN10"))
    y = altair.Y("value:Q", title="singular value / largest", scale=altair.Scale(type="log", domain=[10.0**lowest, 1]), axis=y_axis)
    labels, random = [line.label for line in lines], sum(line.is_random for line in lines)
    measured = len(lines) - random
    title = "matrix of the update (dashed: independent random entries)"
    columns = 2 if max(map(len, labels)) < LONG_LABEL else 1
    stroke = {"symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2}
    legend = altair.Legend(orient="bottom", columns=columns, title=title, titleLimit=420, labelLimit=400, **stroke)
    colour = altair.Color("line:N", legend=legend, scale=altair.Scale(domain=labels, range=[*LINE_COLOURS[:measured], *[GREY] * random]))
    dashes = altair.Scale(domain=labels, range=[*[[1, 0]] * measured, *DASHES[:random]])
    tips = [altair.Tooltip("tensor:N"), altair.Tooltip("rank:Q", format=".0%"), altair.Tooltip("share:N", title="of the largest")]
    base = altair.Chart(altair.Data(values=points)).mark_line(strokeWidth=2)
    dash = altair.StrokeDash("line:N", legend=legend, scale=dashes)
    return base.encode(x=x, y=y, color=colour, strokeDash=dash, detail="line:N", tooltip=tips).properties(height=300)


def ulp_bars(altair: Any, report: JsonReport) -> Any | None:
    """By how many ulps the changed elements moved; gaps have a row, and what crossed zero another colour."""
    rows = ulp_rows(report)
    if not rows:
        return None
    top = max(row["value"] for row in rows)
    kinds = [kind for kind in ULP_COLOURS if any(row["kind"] == kind for row in rows)]
    x = altair.X("value:Q", title="share of changed elements", scale=altair.Scale(domain=[0, 1.2 * top], nice=False))
    distances = altair.Scale(domain=[row["ulps"] for row in rows])  # the order of the rows, gaps among them
    y = altair.Y("ulps:O", scale=distances, title="moved by (ulps)", axis=altair.Axis(labelLimit=260))
    tips = [altair.Tooltip("ulps:O"), altair.Tooltip("count:Q", format=","), altair.Tooltip("share:N")]
    base = altair.Chart(altair.Data(values=rows)).encode(x=x.axis(share_axis(altair, 0, top)), y=y, tooltip=tips)
    legend = None if kinds == [MOVED] else altair.Legend(orient="bottom", columns=1, title="the weight", titleLimit=420, labelLimit=420)
    colours = altair.Scale(domain=kinds, range=[ULP_COLOURS[kind] for kind in kinds])
    bars = base.transform_filter(altair.datum.count > 0).mark_bar().encode(color=altair.Color("kind:N", scale=colours, legend=legend))
    text = base.properties(name="share_note").mark_text(align="left", dx=4, fontSize=11).encode(text="label:N")
    return (bars + text).properties(height=ROW_HEIGHT * len(rows))


def power_bars(altair: Any, rows: Rows, title: str, value_title: str, top: float, tips: list[Any]) -> Any:
    """Bars over powers of two, with a grey band where there is none."""
    low, high = rows[0]["x"], rows[-1]["x2"]
    ticks = power_ticks(low, high)
    axis = altair.Axis(values=ticks.values, labelExpr=ticks.expression(), grid=False)
    x = altair.X("x:Q", title=title, axis=axis, scale=altair.Scale(zero=False, nice=False, padding=8))
    y = altair.Y("value:Q", title=value_title, scale=altair.Scale(domain=[0, top], nice=False), axis=share_axis(altair, 0, top))
    bars = altair.Chart(altair.Data(values=rows)).mark_bar(color=MAIN_COLOUR, binSpacing=1)
    chart = bars.encode(x=x, x2="x2:Q", y=y, y2=altair.datum(0), tooltip=tips)
    between, still = gaps(rows), unchanged_runs(rows)
    if between:
        chart += altair.Chart(altair.Data(values=between)).mark_rect(color=GREY, opacity=0.25).encode(x="x:Q", x2="x2:Q")
    labels = [{**part, "middle": (part["x"] + part["x2"]) / 2} for part in (*between, *still) if part["x2"] - part["x"] > (high - low) / 10]
    if labels:
        text = altair.Chart(altair.Data(values=labels), name="part_note").mark_text(fontSize=11, baseline="bottom")
        chart += text.encode(x="middle:Q", y=altair.value(HISTOGRAM_HEIGHT - 4), text="label:N")
    return chart.properties(height=HISTOGRAM_HEIGHT)


def change_bars(altair: Any, report: JsonReport) -> Any | None:
    """How large the changes are, with a dashed line at the tolerance."""
    rows = size_rows(report)
    if not rows:
        return None
    tips = [altair.Tooltip("size:N", title="|d|"), altair.Tooltip("count:Q", format=","), altair.Tooltip("share:N")]
    top = 1.05 * max(row["value"] for row in rows)
    chart = power_bars(altair, rows, "|d| (each bar: a power of two)", "share of changed elements", top, tips)
    tolerance = report["settings"]["atol"]
    if tolerance and rows[0]["x"] - 4 <= math.log2(tolerance) <= rows[-1]["x2"] + 4:
        place = {"x": math.log2(tolerance), "label": f"tolerance {number_or_power(tolerance)}"}
        mark = altair.Chart(altair.Data(values=[place]))
        chart += mark.properties(name="rule_note").mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(x="x:Q")
        right = math.log2(tolerance) > (rows[0]["x"] + rows[-1]["x2"]) / 2
        text = mark.properties(name="tolerance_note").mark_text(
            align="right" if right else "left", dx=-5 if right else 5, baseline="bottom", fontSize=11
        )
        chart += text.encode(x="x:Q", y=altair.value(-3), text="label:N")
    return chart


def exponent_bars(altair: Any, report: JsonReport) -> Any | None:
    """Share of the elements that changed, by the size of the base's value."""
    rows = exponent_rows(report)
    if not any(row["changed"] for row in rows):
        return None
    tips = [altair.Tooltip("size:N", title="|base value|"), altair.Tooltip("changed:Q", format=",")]
    tips += [altair.Tooltip("elements:Q", format=","), altair.Tooltip("share:N", title="share that changed")]
    top = max(row["value"] for row in rows)
    return power_bars(altair, rows, "|base value| (each bar: a power of two)", "share that changed", top, tips)


def layer_rows(report: JsonReport) -> Rows:
    """Shares of unchanged elements of each layer, of each component that has layers of its own."""
    kinds = unchanged_kinds(report)
    return [
        {"layer": layer, "component": component, "kind": kind, "value": sums[field] / sums["elements"]}
        for (component, layer), sums in layer_sums(report).items()
        for kind, field in kinds.items()
        if sums["elements"]
    ]


def unchanged_kinds(report: JsonReport) -> dict[str, str]:
    """The ways in which elements are counted as unchanged, and their fields."""
    return {"same bits": "bit_identical", f"|d| at most {number_or_power(report['settings']['atol'])}": "within_atol"}


def layer_lines(altair: Any, report: JsonReport) -> Any | None:
    """Update sparsity of each layer: bit for bit, and within the absolute tolerance; a dash for each component."""
    rows = [{**row, "share": percent(row["value"])} for row in layer_rows(report)]
    layers, components = sorted({row["layer"] for row in rows}), list(dict.fromkeys(row["component"] for row in rows))
    if len(layers) < 2:
        return None
    scale = altair.Scale(domain=list(unchanged_kinds(report)), range=[MAIN_COLOUR, SECOND_COLOUR])
    legend = {"symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2, "labelLimit": 300, "titleLimit": 420}
    colour = altair.Color("kind:N", scale=scale, legend=altair.Legend(title="unchanged means", orient="top", **legend))
    tips = [altair.Tooltip("layer:O"), altair.Tooltip("kind:N"), altair.Tooltip("share:N")]
    x = altair.X("layer:O", title="layer", axis=altair.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=4))
    base = altair.Chart(altair.Data(values=rows)).encode(x=x, y=unchanged_axis(altair, rows), color=colour)
    lines = base.mark_line()
    if len(components) > 1:
        dashes = altair.Scale(domain=components, range=[[1, 0], *DASHES])
        named = altair.Legend(title="component", orient="bottom", columns=1, **legend)
        lines = lines.encode(strokeDash=altair.StrokeDash("component:N", scale=dashes, legend=named))
        tips.insert(0, altair.Tooltip("component:N"))
    points = base.mark_circle(size=30, opacity=int(len(layers) <= MAX_MARKED_POINTS)).encode(tooltip=tips)
    return (lines + points).properties(height=240)


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

"""Charts of an overlap: what every two updates share, beside what chance gives, and how the update of a run grew."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

from ckptdiff.analysis.modules import components_of, layer_of, module_of, modules_by_component
from ckptdiff.analysis.overlap import OverlapResult, PairOverlap
from ckptdiff.errors import visible
from ckptdiff.pages.chart_data import Rows, heat_map_cells
from ckptdiff.pages.drawing import (
    DASHES,
    LINE_COLOURS,
    MAIN_COLOUR,
    MAX_LABELLED_COLUMNS,
    MAX_MARKED_POINTS,
    Chart,
    ChartPlan,
    changed_map,
    draw_charts,
    heat_map,
    unchanged_axis,
    write_charts_as_png,
)
from ckptdiff.pages.labels import axis_names, common_start, share_axis
from ckptdiff.units import percent

CHANCE = "chance among all"
ROW_WITH_NUMBERS, ROW_WITHOUT_NUMBERS = 34, 14
"""Height of a row of a matrix of updates, in pixels: with numbers in the cells, and without."""
MAX_TICKS = 12
"""Checkpoints up to which an axis has a tick at each."""
UPDATE_NAME_ENDS = "-_./ "
"""Characters after which the names of updates are cut."""
PairValue = Callable[[PairOverlap], float]


def update_names(result: OverlapResult) -> list[str]:
    """Names of the updates without what all begin with."""
    start = common_start(result.names, UPDATE_NAME_ENDS)
    return [name[len(start) :] for name in result.names]


def axis_labels(result: OverlapResult) -> list[str]:
    """Names of the updates as they stand on axes."""
    return axis_names(update_names(result))


def matrix_cell(update: str, other: str, value: float) -> dict[str, Any]:
    """The cell of an update and of another one."""
    return {"update": update, "other": other, "value": value}


def matrix_cells(result: OverlapResult, value: PairValue, whole: PairValue) -> Rows:
    """A cell for every two updates, both ways round, unless the ``whole`` of which ``value`` is a share is empty."""
    names, numbers = axis_labels(result), range(len(result.names))
    pairs = [result.pair(i, j) for i in numbers for j in numbers if i != j and result.tensors]
    return [matrix_cell(names[p.first], names[p.second], value(p)) for p in pairs if whole(p)]


def update_matrix(altair: Any, result: OverlapResult, cells: Rows, what: str, top: float = 1, more: tuple[str, ...] = ()) -> Any | None:
    """A heat map of updates from top to bottom against updates from left to right; ``more``: labels of further rows."""
    if not cells:
        return None
    names = axis_labels(result)
    height = ROW_WITH_NUMBERS if len(names) <= MAX_LABELLED_COLUMNS else ROW_WITHOUT_NUMBERS
    start = visible(common_start(result.names, UPDATE_NAME_ENDS))
    columns = ("other", names, "the other update" + (f" (names without “{start}”)" if start else ""))
    rows = ("update", [*names, *more], None)
    return heat_map(altair, cells, columns, rows, top, what, height=height, turned=True)


def changed_any(pair: PairOverlap) -> float:
    """Share of all elements that the first update changed, which is what o2 would be at random."""
    return pair.random_o2


def o1_map(altair: Any, result: OverlapResult) -> Any | None:
    """o1 of every two updates; the last row is what chance gives among all weights, which is the share that each column changed."""
    cells = matrix_cells(result, lambda p: p.o1, changed_any)
    others = zip(axis_labels(result), result.steps, strict=True)
    chance = [matrix_cell(CHANCE, name, 1 - step.sparsity) for name, step in others if cells]
    return update_matrix(altair, result, [*cells, *chance], "share of the row's changes", more=(CHANCE,))


def o1_size_map(altair: Any, result: OverlapResult) -> Any | None:
    """What chance among weights of the same size gives for o1."""
    return update_matrix(altair, result, matrix_cells(result, lambda p: p.o1_by_size, changed_any), "by chance, by size")


def jaccard_map(altair: Any, result: OverlapResult, field: str = "jaccard", what: str = "share of both's changes") -> Any | None:
    """Jaccard index of every two updates, or what chance gives for it; all three maps have the same colours."""
    top = max((max(p.jaccard, p.expected_jaccard, p.jaccard_by_size) for p in result.pairs), default=0) or 1
    return update_matrix(altair, result, matrix_cells(result, attrgetter(field), lambda p: p.random_o1 + p.random_o2), what, top)


def jaccard_random_map(altair: Any, result: OverlapResult) -> Any | None:
    """What chance among all weights gives for the Jaccard index."""
    return jaccard_map(altair, result, "expected_jaccard", "by chance")


def jaccard_size_map(altair: Any, result: OverlapResult) -> Any | None:
    """What chance among weights of the same size gives for the Jaccard index."""
    return jaccard_map(altair, result, "jaccard_by_size", "by chance, by size")


def direction_map(altair: Any, result: OverlapResult) -> Any | None:
    """Share of what both updates changed that moved the same way."""
    return update_matrix(altair, result, matrix_cells(result, lambda p: p.same_direction, lambda p: p.o1), "share of what both changed")


def core_cells(result: OverlapResult) -> Rows:
    """Elements, and those that all updates changed, of each kind of module in each layer."""
    tensors = result.tensors
    layers, modules = [layer_of(t.name) for t in tensors], [module_of(t.name) for t in tensors]
    labels = modules_by_component(components_of((t.scope, t.name) for t in tensors), layers, modules)
    rows = zip(tensors, layers, labels, strict=True)
    return heat_map_cells((layer, label, t.elements, t.core) for t, layer, label in rows)


def core_map(altair: Any, result: OverlapResult) -> Any | None:
    """Share of elements that all updates changed, by layer and module."""
    return changed_map(altair, core_cells(result), "share changed by all") if result.core else None


LAST_NUMBER = re.compile(r"(\d{1,12})\D*$")


def step_numbers(result: OverlapResult) -> tuple[str, list[int]]:
    """Title of the axis, and where on it the checkpoints stand: at the last numbers in their names if these grow, else in order."""
    matches = [LAST_NUMBER.search(name) for name in result.names]
    steps = [int(match[1]) for match in matches if match]
    if len(steps) == len(matches) and all(a < b for a, b in pairwise(steps)):
        return "step, from the names", steps
    return "checkpoint, in the order given", list(range(1, len(matches) + 1))


SERIES_LINES = {
    "have ever changed": "ever",
    "differ from the base": "differs",
    "changed since the last one": "since_last",
    "changed and are back": "back",
}
"""Lines of the chart of a run, and the fields of a step that they show."""


def step_rows(result: OverlapResult, lines: dict[str, str]) -> Rows:
    """A point for each line and checkpoint."""
    places = step_numbers(result)[1]
    shares = [
        (x, row, line, 1 - row.sparsity if field == "differs" else getattr(row, field))
        for x, row in zip(places, result.steps, strict=True)
        for line, field in lines.items()
    ]
    return [{"step": x, "name": visible(r.name), "line": line, "value": value, "share": percent(value)} for x, r, line, value in shares]


def step_lines(altair: Any, result: OverlapResult, rows: Rows, colour: dict[str, Any]) -> Any:
    """Lines along the checkpoints of a run; the caller adds the vertical axis."""
    title, places = step_numbers(result)
    scale = altair.Scale(domain=[places[0], places[-1]], nice=False, padding=10)
    ticks = {"values": places} if len(places) <= MAX_TICKS else {"tickMinStep": 1}
    x = altair.X("step:Q", title=title, scale=scale, axis=altair.Axis(**ticks, format=",d", labelOverlap=True))
    tips = [altair.Tooltip("name:N"), altair.Tooltip("line:N"), altair.Tooltip("share:N")]
    chart = altair.Chart(altair.Data(values=rows)).mark_line(point=len(places) <= MAX_MARKED_POINTS, strokeWidth=2, **colour)
    return chart.encode(x=x, tooltip=tips).properties(height=260)


def sparsity_line(altair: Any, result: OverlapResult) -> Any | None:
    """Share of the elements that are equal to the base, by checkpoint."""
    if len(result.names) < 2 or not result.elements:
        return None
    rows = step_rows(result, {"same as the base": "sparsity"})
    return step_lines(altair, result, rows, {"color": MAIN_COLOUR}).encode(y=unchanged_axis(altair, rows))


def growth_lines(altair: Any, result: OverlapResult) -> Any | None:
    """Shares of the elements that differ from the base, ever changed, changed since the last, and changed back, by checkpoint."""
    if len(result.names) < 2 or not result.elements:
        return None
    rows = step_rows(result, SERIES_LINES)
    y = altair.Y("value:Q", title="share of elements", axis=share_axis(altair, 0, max(row["value"] for row in rows)))
    scale = altair.Scale(domain=list(SERIES_LINES), range=LINE_COLOURS[: len(SERIES_LINES)])
    stroke = {"symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2}
    legend = altair.Legend(orient="bottom", columns=2, title="at a checkpoint, the share of weights that", titleLimit=320, **stroke)
    colour = altair.Color("line:N", scale=scale, legend=legend)
    dashes = altair.Scale(domain=list(SERIES_LINES), range=[[1, 0], *DASHES])  # lines that cover each other stay visible
    dash = altair.StrokeDash("line:N", scale=dashes, legend=legend)
    return step_lines(altair, result, rows, {}).encode(y=y, color=colour, strokeDash=dash)


SERIES_CHARTS: list[ChartPlan] = [
    ("sparsity", "Update sparsity along the run", "Share of weights equal to the base, by checkpoint.", sparsity_line),
    ("growth", "How the update grew", "Shares of weights that differ, ever changed, and changed back, by checkpoint.", growth_lines),
]
PAIR_CHARTS: list[ChartPlan] = [
    ("o1", "Shared changes (o1)", "Share of one update's changes that another made too.", o1_map),
    ("o1-by-size", "Shared changes by chance, by size", "The same for random updates among weights of the same size.", o1_size_map),
    ("jaccard", "Jaccard index", "Shared changes over the changes of either, of every two updates.", jaccard_map),
    (
        "jaccard-by-size",
        "Jaccard index by chance, by size",
        "The same for random updates among weights of the same size.",
        jaccard_size_map,
    ),
    ("jaccard-random", "Jaccard index by chance among all weights", "The same for random updates among all weights.", jaccard_random_map),
    ("direction", "Same direction", "Share of what two updates changed that moved the same way.", direction_map),
    ("core", "Changed by all", "Share of elements that all updates changed, by layer and kind of tensor.", core_map),
]


def charts(result: OverlapResult, series: bool) -> list[Chart]:
    """All charts for which there are numbers; with ``series`` also those of a run."""
    return draw_charts([*(SERIES_CHARTS if series else []), *PAIR_CHARTS], result)


def write_png(result: OverlapResult, series: bool, folder: Path) -> list[Path]:
    """Write each chart as a PNG file into a folder, which is made if it is missing; returns their paths."""
    return write_charts_as_png(charts(result, series), folder)

"""What all charts share: Vega-Lite specifications built with Altair, the theme, heat maps, and PNG files.

Altair and vl-convert are imported only when a chart is asked for. Names come from files that may be hostile: they appear in charts as data
values only, never in an expression or a file name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdiff.errors import OutputError
from ckptdiff.lazy import require
from ckptdiff.obtaining import how_to_get
from ckptdiff.pages.chart_data import NO_LAYER, Rows, layer_order, module_order
from ckptdiff.pages.labels import Ticks, share_axis
from ckptdiff.patching.output import build_beside, explain_write_errors
from ckptdiff.units import percent

MAX_LABELLED_COLUMNS = 9
"""Columns of a heat map up to which the numbers stand in the cells."""
MAX_TURNED_LABELS = 24
"""Columns up to which each has its turned name."""
MAX_MARKED_POINTS = 50
"""Points of a line up to which each is marked."""
ROW_HEIGHT = 24
"""Height of a row of a heat map or of bars, in pixels."""
PNG_WIDTH = 720
"""Width of a picture without its padding, in pixels at a scale of 1."""
LINE_COLOURS = ["#4c8bc9", "#e8833a", "#d9534f", "#4fa8a0", "#5aa04f", "#c9a227", "#a8739c", "#f08a94"]
DASHES = [[6, 4], [2, 3], [8, 3, 2, 3]]
MAIN_COLOUR, SECOND_COLOUR = "#3b82c4", "#d97706"
FONT = "system-ui, 'DejaVu Sans', sans-serif"
HeatMapAxis = tuple[str, Sequence[str], "str | None"]
"""One axis of a heat map: a field of the cells, its values in order, and a title."""


@dataclass(frozen=True)
class Chart:
    """A chart that has been drawn."""

    name: str
    """A short name, which is also that of its file and part of its id in a page."""
    title: str
    description: str
    """What a screen reader says."""
    spec: dict[str, Any]
    """The Vega-Lite specification, without a width."""


def libraries() -> tuple[Any, Any]:
    """Altair and vl-convert, once it is sure that all that charts and pages need is installed.

    Raises:
        OutputError: one of the libraries is missing; says how to get it.
    """
    try:
        require("jinja2")
        return require("altair"), require("vl_convert")
    except ModuleNotFoundError as error:
        raise OutputError(f"charts and pages need Altair, vl-convert and Jinja2 ({error}); {how_to_get('report')}") from error


def vega_lite_version(altair: Any, vl_convert: Any) -> str | None:
    """The version of Vega-Lite that Altair writes, if vl-convert has it; None for the newest that vl-convert has."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return version if version in vl_convert.get_vegalite_versions() else None


def theme() -> dict[str, Any]:
    """Vega's colours and fonts for a light ground, as pictures have; a page's style sheet gives its charts the colours of the page."""
    text, faint = "#24292f", "#dde1e6"
    axis = {"labelColor": text, "titleColor": text, "gridColor": faint, "domainColor": faint, "tickColor": faint, "labelFontSize": 11}
    return {
        "background": "white",
        "font": FONT,
        "axis": {**axis, "titleFontWeight": "normal", "titleFontSize": 12},
        "legend": {
            "symbolBaseStrokeColor": text,
            "labelColor": text,
            "titleColor": text,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 11,
        },
        "title": {"color": text, "anchor": "start", "fontSize": 15, "offset": 12},
        "text": {"color": text},
        "rule": {"color": text},
        "view": {"stroke": faint},
        "range": {"category": {"scheme": "tableau10"}},
    }


def heat_map(
    altair: Any,
    cells: Rows,
    x: HeatMapAxis,
    y: HeatMapAxis,
    top: float,
    value_title: str,
    fields: Sequence[str] = (),
    height: int = ROW_HEIGHT,
    turned: bool = False,
) -> Any:
    """A map whose cells are coloured by a share, with the numbers in the cells where there is room.

    Args:
        cells: objects with the fields of both axes and a ``value``.
        x, y: what stands on each axis.
        top: the share that has the brightest colour; 0 has the darkest.
        value_title: what the share is.
        fields: counts to show when a cell is pointed at.
        height: of a row, in pixels.
        turned: whether the horizontal axis has names, which are turned to have room.
    """
    (column, columns, below), (row, rows, beside) = x, y
    cells = [
        {**cell, "share": percent(cell["value"]), "label": percent(cell["value"]).removesuffix(" %").replace(" ", "")} for cell in cells
    ]
    every = turned and len(columns) <= MAX_TURNED_LABELS
    angle = {"labelAngle": -35, "labelLimit": 260} if turned else {"labelAngle": 0}
    x_axis = altair.Axis(labelOverlap=False if every else "greedy", labelSeparation=4, **angle)
    scales = [altair.Scale(domain=list(values)) for values in (columns, rows)]  # a domain also holds values that have no cell
    places = {
        "x": altair.X(f"{column}:O", scale=scales[0], title=below, axis=x_axis),
        "y": altair.Y(f"{row}:O", scale=scales[1], title=beside, axis=altair.Axis(labelLimit=260)),
    }
    numbered = len(columns) <= MAX_LABELLED_COLUMNS
    key_title = f"{value_title} (cells: %)" if numbered else value_title
    colour = altair.Color("value:Q", title=key_title, legend=colour_key(altair, top), scale=altair.Scale(scheme="viridis", domain=[0, top]))
    tooltip = [altair.Tooltip(f"{column}:O"), altair.Tooltip(f"{row}:O"), altair.Tooltip("share:N", title=value_title)]
    tooltip += [altair.Tooltip(f"{field}:Q", format=",") for field in fields]
    base = altair.Chart(altair.Data(values=cells)).encode(**places)
    chart = base.mark_rect().encode(color=colour, tooltip=tooltip)
    if numbered:
        ink = altair.condition(altair.datum.value > 0.6 * top, altair.value("#111"), altair.value("#fff"))
        chart += base.mark_text(fontSize=11).encode(text="label:N", color=ink, tooltip=tooltip)
    return chart.properties(height=height * len(rows))


def colour_key(altair: Any, top: float) -> Any:
    """The legend of a heat map: the shares of the darkest, the middle and the brightest colour."""
    ticks = Ticks([0, top / 2, top], [percent(share) for share in (0, top / 2, top)])
    labels = {"values": ticks.values, "labelExpr": ticks.expression(), "titleLimit": 320}
    return altair.Legend(orient="top", direction="horizontal", gradientLength=190, **labels)


def unchanged_axis(altair: Any, rows: Rows) -> Any:
    """An axis for shares of unchanged elements, from a little below the smallest of them to 1."""
    lowest = min(row["value"] for row in rows)
    bottom = max(0.0, 1 - 1.15 * max(1 - lowest, 1e-6)) if lowest < 1 else 0.0
    scale = altair.Scale(domain=[bottom, 1], nice=False)
    return altair.Y("value:Q", title="share of elements unchanged", scale=scale, axis=share_axis(altair, bottom, 1))


def layer_module_map(altair: Any, cells: Rows, value_title: str, fields: Sequence[str], top: float | None = None) -> Any:
    """A heat map of layers from left to right and modules from top to bottom; ``top`` is by default the largest value."""
    layers, modules = layer_order({c["layer"] for c in cells}), module_order({c["module"] for c in cells})
    top = top or max((c["value"] for c in cells), default=0) or 1
    return heat_map(altair, cells, ("layer", layers, "layer"), ("module", modules, None), top, value_title, fields)


def changed_map(altair: Any, cells: Rows, value_title: str) -> Any | None:
    """Share of changed elements by layer and module.

    Where names tell no layers, bars by module instead; None where they do not tell modules either.
    """
    if any(c["layer"] != NO_LAYER for c in cells):
        return layer_module_map(altair, cells, value_title, ("changed", "elements"))
    return module_bars(altair, cells) if len({c["module"] for c in cells}) > 1 else None


def module_bars(altair: Any, cells: Rows) -> Any:
    """Share of changed elements of each module."""
    modules = module_order({c["module"] for c in cells})
    top = max(c["value"] for c in cells)
    x = altair.X("value:Q", title="share of elements that changed", axis=share_axis(altair, 0, top))
    y = altair.Y("module:O", sort=modules, title=None)
    tooltip = [altair.Tooltip("module:O"), altair.Tooltip("share:N"), altair.Tooltip("elements:Q", format=",")]
    cells = [{**cell, "share": percent(cell["value"])} for cell in cells]
    bars = altair.Chart(altair.Data(values=cells)).mark_bar(color=MAIN_COLOUR)
    return bars.encode(x=x, y=y, tooltip=tooltip).properties(height=ROW_HEIGHT * len(modules))


DrawChart = Callable[[Any, Any], Any]
"""Draws a chart with Altair from a report or an overlap; returns None where that has no numbers for it."""
ChartPlan = tuple[str, str, str, DrawChart]
"""Name, title and description of a :class:`Chart`, and the function that draws it."""


def draw_charts(plans: Sequence[ChartPlan], result: Any) -> list[Chart]:
    """The planned charts for which a report or an overlap has numbers."""
    altair, _ = libraries()
    drawn = [(name, title, text, draw(altair, result)) for name, title, text, draw in plans]
    return [Chart(name, title, text, {**c.to_dict(), "description": text}) for name, title, text, c in drawn if c is not None]


def png(chart: Chart, scale: int = 2) -> bytes:
    """A chart as a PNG image; ``scale``: pixels for each unit of the chart's width."""
    altair, vl_convert = libraries()
    spec = {**chart.spec, "width": PNG_WIDTH, "title": chart.title, "padding": 16}
    return vl_convert.vegalite_to_png(spec, vl_version=vega_lite_version(altair, vl_convert), scale=scale, config=theme())


def write_charts_as_png(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write each chart as a PNG file into a folder, which is made if it is missing; returns their paths."""
    paths = []
    for chart in charts:
        image, path = png(chart), folder / f"{chart.name}.png"
        with explain_write_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
        with build_beside(path, overwrite=True) as built:
            built.write_bytes(image)
        paths.append(path)
    return paths

"""What all charts share: Vega-Lite made with Altair, the theme, heat maps, and PNG files.

Altair and vl-convert load only when a chart is asked for. Names come from files that may be hostile: they appear in charts as data
values only, never in an expression or a file name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdiff.errors import OutputError
from ckptdiff.lazy import require
from ckptdiff.pages.chart_data import NO_LAYER, Rows, in_order, layer_order
from ckptdiff.patching.output import build_beside, explain_write_errors

MOST_LABELS = 9
"""Heat maps with at most this many columns show their numbers in the cells."""
MOST_POINTS = 50
"""Lines with at most this many points show them."""
ROW = 24
"""Height of a row of a heat map or of bars."""
PNG_WIDTH = 720
LINE_COLOURS = ["#4c8bc9", "#e8833a", "#d9534f", "#4fa8a0", "#5aa04f", "#c9a227", "#a8739c", "#f08a94"]
DASHES = [[6, 4], [2, 3], [8, 3, 2, 3]]
HUE, SECOND_HUE = "#3b82c4", "#d97706"
FONT = "system-ui, 'DejaVu Sans', sans-serif"
Side = tuple[str, Sequence[str], "str | None"]
"""One side of a heat map: a field of the cells, its values in order, and a title."""


@dataclass(frozen=True)
class Chart:
    """A chart: a short name (also its file's), a title, what a screen reader says, and its Vega-Lite without a width."""

    name: str
    title: str
    description: str
    spec: dict[str, Any]


def libraries() -> tuple[Any, Any]:
    """Altair and vl-convert, or an error that says how to get them."""
    try:
        return require("altair"), require("vl_convert")
    except ModuleNotFoundError as error:
        raise OutputError(f"pictures need Altair and vl-convert ({error}): pip install 'ckptdiff[report]'") from error


def vega_lite_version(altair: Any, vl_convert: Any) -> str | None:
    """The version that Altair writes, if vl-convert has it; None for vl-convert's newest."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return version if version in vl_convert.get_vegalite_versions() else None


def theme(dark: bool = False) -> dict[str, Any]:
    """Vega's colours and fonts for a light or a dark page."""
    text, faint = ("#dfe3e8", "#3a424d") if dark else ("#24292f", "#dde1e6")
    axis = {"labelColor": text, "titleColor": text, "gridColor": faint, "domainColor": faint, "tickColor": faint, "labelFontSize": 11}
    return {
        "background": None if dark else "white",
        "font": FONT,
        "axis": {**axis, "titleFontWeight": "normal", "titleFontSize": 12},
        "legend": {"labelColor": text, "titleColor": text, "titleFontWeight": "normal", "titleFontSize": 12, "labelFontSize": 11},
        "title": {"color": text, "anchor": "start", "fontSize": 15, "offset": 12},
        "text": {"color": text},
        "rule": {"color": text},
        "view": {"stroke": faint},
        "range": {"category": {"scheme": "tableau10"}},
    }


def heat_map(
    altair: Any, cells: Rows, x: Side, y: Side, top: float, value_title: str, fields: Sequence[str] = (), height: int = ROW
) -> Any:
    """Colour from 0 to ``top``; numbers in the cells where there is room.

    ``fields``: counts to show when pointed at; ``height``: of a row. A cell may bring its label.
    """
    (column, columns, below), (row, rows, beside) = x, y
    decimals = min(max(2 - math.floor(math.log10(100 * top)), 1), 6)
    cells = [{"label": f"{100 * cell['value']:.{decimals}f}" if cell["value"] else "0", **cell} for cell in cells]
    x_axis = altair.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=4)
    scales = [altair.Scale(domain=list(values)) for values in (columns, rows)]  # also those that have no cell
    places = {
        "x": altair.X(f"{column}:O", scale=scales[0], title=below, axis=x_axis),
        "y": altair.Y(f"{row}:O", scale=scales[1], title=beside, axis=altair.Axis(labelLimit=220)),
    }
    ticks = [0, top / 2, top]
    legend = altair.Legend(orient="top", direction="horizontal", format=".2~p", gradientLength=190, values=ticks, titleLimit=280)
    key_title = f"{value_title} (cells: %)" if len(columns) <= MOST_LABELS else value_title
    colour = altair.Color("value:Q", title=key_title, legend=legend, scale=altair.Scale(scheme="viridis", domain=[0, top]))
    tooltip = [altair.Tooltip(f"{column}:O"), altair.Tooltip(f"{row}:O"), altair.Tooltip("value:Q", title=value_title, format=".3~p")]
    tooltip += [altair.Tooltip(f"{field}:Q", format=",") for field in fields]
    base = altair.Chart(altair.Data(values=cells)).encode(**places)
    chart = base.mark_rect().encode(color=colour, tooltip=tooltip)
    if len(columns) <= MOST_LABELS:
        ink = altair.condition(altair.datum.value > 0.6 * top, altair.value("#111"), altair.value("#fff"))
        chart += base.mark_text(fontSize=11).encode(text="label:N", color=ink, tooltip=tooltip)
    return chart.properties(height=height * len(rows))


def unchanged_axis(altair: Any, rows: Rows) -> Any:
    """Shares of unchanged elements, from a little below the least to 1."""
    lowest = min(row["value"] for row in rows)
    bottom = max(0.0, 1 - 1.15 * max(1 - lowest, 1e-6)) if lowest < 1 else 0.0
    scale = altair.Scale(domain=[bottom, 1], nice=False)
    return altair.Y("value:Q", title="share of elements unchanged", scale=scale, axis=altair.Axis(format=".5~p", tickCount=5))


def place_map(altair: Any, cells: Rows, value_title: str, fields: Sequence[str], top: float | None = None) -> Any:
    """Layers from left to right, modules from top to bottom; ``top``: of the colours, or else the largest value."""
    layers, modules = layer_order({c["layer"] for c in cells}), in_order({c["module"] for c in cells})
    top = top or max((c["value"] for c in cells), default=0) or 1
    return heat_map(altair, cells, ("layer", layers, "layer"), ("module", modules, None), top, value_title, fields)


def change_places(altair: Any, cells: Rows, value_title: str) -> Any | None:
    """Share of changed elements by layer and module; bars by module where the names give no layers; None where neither."""
    if any(c["layer"] != NO_LAYER for c in cells):
        return place_map(altair, cells, value_title, ("changed", "elements"))
    return module_bars(altair, cells) if len({c["module"] for c in cells}) > 1 else None


def module_bars(altair: Any, cells: Rows) -> Any:
    """Share of changed elements of each module."""
    modules = in_order({c["module"] for c in cells})
    x = altair.X("value:Q", title="share of elements that changed", axis=altair.Axis(format=".2~p", tickCount=5))
    y = altair.Y("module:O", sort=modules, title=None)
    tooltip = [altair.Tooltip("module:O"), altair.Tooltip("value:Q", format=".3~p"), altair.Tooltip("elements:Q", format=",")]
    bars = altair.Chart(altair.Data(values=cells)).mark_bar(color=HUE)
    return bars.encode(x=x, y=y, tooltip=tooltip).properties(height=ROW * len(modules))


Maker = Callable[[Any, Any], Any]
"""Makes a chart, from Altair and what was found; None where there are no numbers for it."""
Plan = tuple[str, str, str, Maker]
"""Name, title, what a screen reader says, and how to make it."""


def made(plans: Sequence[Plan], found: Any) -> list[Chart]:
    """The planned charts for which there are numbers."""
    altair, _ = libraries()
    drawn = [(name, title, text, make(altair, found)) for name, title, text, make in plans]
    return [Chart(name, title, text, {**c.to_dict(), "description": text}) for name, title, text, c in drawn if c is not None]


def png(chart: Chart, scale: int = 2) -> bytes:
    """A chart as a picture. ``scale``: pixels a unit of the chart's width."""
    altair, vl_convert = libraries()
    spec = {**chart.spec, "width": PNG_WIDTH, "title": chart.title, "padding": 16}
    return vl_convert.vegalite_to_png(spec, vl_version=vega_lite_version(altair, vl_convert), scale=scale, config=theme())


def save_png(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write one PNG a chart into a folder, made if missing; gives their paths."""
    paths = []
    for chart in charts:
        image, path = png(chart), folder / f"{chart.name}.png"
        with explain_write_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
        with build_beside(path, overwrite=True) as built:
            built.write_bytes(image)
        paths.append(path)
    return paths

"""A report as one HTML page: first what training changed in one sentence, then the numbers, then each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ckptdiff.pages.chart_data import Report, share, shares_of_rank
from ckptdiff.pages.html import (
    Cell,
    charts_html,
    definitions_html,
    figures_html,
    left_out_html,
    page_html,
    share_cell,
    small_table,
    tensor_table,
)
from ckptdiff.pages.report_charts import charts
from ckptdiff.pages.report_prose import captions, decimal, definitions, headline, key_figures, percent

COLUMNS = [
    ("name", "text"),
    ("layer", "number"),
    ("kind", "text"),
    ("dtype", "text"),
    ("shape", "number"),
    ("changed", "number"),
    ("one ulp", "number"),
    ("grew", "number"),
    ("in tolerance", "number"),
    ("rank", "number"),
    ("random rank", "number"),
    ("stable rank", "number"),
    ("rows 5–95 %", "number"),
    ("columns 5–95 %", "number"),
]
GROUP_COLUMNS = [
    ("kind", "text"),
    *((name, "number") for name in ("elements", "changed", "in tolerance", "… rounded", "… relative", "one ulp", "grew")),
]
SAMPLE_COLUMNS = [("kind", "text"), ("matrices", "number"), ("taken", "number"), ("layers", "text")]


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite ones; None where there are none."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    return sum(kept) / len(kept) if kept else None


def part(counts: dict[str, Any], field: str) -> float | None:
    """Share of the changed elements."""
    count = counts["elements"] - counts["bit_identical"]
    return counts[field] / count if count else None


def span_cell(quantiles: list[float] | None) -> Cell:
    """The 0.05 and 0.95 quantiles; sorts by how far they lie apart."""
    if not quantiles:
        return percent(None), None
    return f"{percent(quantiles[1])[:-2]}–{percent(quantiles[5])}", quantiles[5] - quantiles[1]


def tensor_cells(tensor: dict[str, Any]) -> list[Cell]:
    """One row of the table of tensors, in the order of COLUMNS."""
    name = "/".join(filter(None, (tensor["scope"], tensor["name"])))
    shape = " × ".join(map(str, tensor["shape"])) or "scalar"
    stable = mean([s["stable_rank"] for s in tensor["spectra"] or ()])
    layer = tensor["layer"]
    elements = tensor["elements"]
    return [
        (name, name),
        ("–" if layer is None else str(layer), layer),
        (tensor["module"], tensor["module"]),
        (tensor["dtype"], tensor["dtype"]),
        (shape, elements),
        share_cell(share(tensor)),
        share_cell(part(tensor, "one_ulp")),
        share_cell(part(tensor, "up")),
        share_cell(tensor["within_atol"] / elements if elements else None),
        share_cell(mean(shares_of_rank(tensor, "rank"))),
        share_cell(mean(shares_of_rank(tensor, "random_rank"))),
        (decimal(stable), stable),
        span_cell(tensor["rows"]),
        span_cell(tensor["columns"]),
    ]


def group_table(report: Report) -> str:
    """The kinds of tensors, as a small table."""
    rows = []
    for group in report["modules"]:
        unchanged = [group[field] / (group["elements"] or 1) for field in ("within_atol", "within_atol_rounded", "within_rtol")]
        values = [share(group), *unchanged, part(group, "one_ulp"), part(group, "up")]
        rows.append([group["module"], f"{group['elements']:,}", *map(percent, values)])
    note = (
        "“in tolerance” counts unchanged elements as the paper does; “rounded” as its code, “relative” by |base|. “one ulp” and "
        "“grew” are shares of the changed elements."
    )
    return small_table("kinds", "Each kind of tensor", note, GROUP_COLUMNS, rows)


def sample_table(report: Report) -> str:
    """Of which matrices the rank was taken, where that is a sample."""
    rows = report.get("sample") or []
    cells = [[row["module"], f"{row['matrices']:,}", f"{row['taken']:,}", ", ".join(map(str, row["layers"])) or "–"] for row in rows]
    note = "Ranks are those of a sample, spread over kinds and layers; --rank all takes every one."
    return small_table("sample", "Matrices whose rank was taken", note, SAMPLE_COLUMNS, cells)


def render_page(report: Report) -> str:
    """The report as the text of an HTML file."""
    drawn = charts(report)
    rows = [tensor_cells(tensor) for tensor in report["tensors"]]
    left_out = (
        ("only in the target", report["added"]),
        ("only in the base", report["removed"]),
        ("on both sides, but of different shapes or types", report["unpaired"]),
    )
    body = [figures_html(key_figures(report)), charts_html(drawn, captions(report)), group_table(report), sample_table(report)]
    body.append(tensor_table("“one ulp” and “grew” are shares of the changed elements.", COLUMNS, rows))
    body += [left_out_html(left_out), definitions_html(definitions(report))]
    return page_html(" → ".join(filter(None, (report["base"], report["target"]))), headline(report), body, drawn, COLUMNS, rows)

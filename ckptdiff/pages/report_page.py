"""A report as one HTML page: first what training changed in one sentence, then the numbers, then each tensor."""

from __future__ import annotations

from typing import Any

from ckptdiff.pages.chart_data import JsonReport, changed_share, label_of, mean_of_known, rank_shares, share_of_changed
from ckptdiff.pages.report_charts import charts
from ckptdiff.pages.report_prose import captions, compared_words, definitions, headline, key_figures
from ckptdiff.pages.templating import Cell, Columns, Page, Table, TensorTable, label_cells, render, share_cell
from ckptdiff.units import MISSING, percent, shape_text, three_digits

COLUMNS: Columns = [
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
MODULE_COLUMNS: Columns = [
    ("kind", "text"),
    *((name, "number") for name in ("elements", "changed", "in tolerance", "… rounded", "… relative", "one ulp", "grew")),
]
SAMPLE_COLUMNS: Columns = [("kind", "text"), ("matrices", "number"), ("taken", "number"), ("layers", "text")]


def span_cell(quantiles: list[float] | None) -> Cell:
    """The 0.05 and 0.95 quantiles; sorts by how far they lie apart."""
    if not quantiles:
        return percent(None), None
    return f"{percent(quantiles[1])[:-2]}–{percent(quantiles[5])}", quantiles[5] - quantiles[1]


def report_row(tensor: dict[str, Any]) -> list[Cell]:
    """One row of the table of tensors, in the order of COLUMNS."""
    stable = mean_of_known(s["stable_rank"] for s in tensor["spectra"] or ())
    elements = tensor["elements"]
    return [
        *label_cells(tensor["scope"], label_of(tensor), tensor["layer"], tensor["module"]),
        (tensor["dtype"], tensor["dtype"]),
        (shape_text(tensor["shape"], " × "), elements),
        share_cell(changed_share(tensor)),
        share_cell(share_of_changed(tensor, "one_ulp")),
        share_cell(share_of_changed(tensor, "up")),
        share_cell(tensor["within_atol"] / elements if elements else None),
        share_cell(mean_of_known(rank_shares(tensor, "rank"))),
        share_cell(mean_of_known(rank_shares(tensor, "random_rank"))),
        (three_digits(stable), stable),
        span_cell(tensor["rows"]),
        span_cell(tensor["columns"]),
    ]


def module_table(report: JsonReport) -> Table:
    """The kinds of modules, as a small table."""
    rows = []
    for module in report["modules"]:
        unchanged = [module[field] / (module["elements"] or 1) for field in ("within_atol", "within_atol_rounded", "within_rtol")]
        shares = [changed_share(module), *unchanged, share_of_changed(module, "one_ulp"), share_of_changed(module, "up")]
        rows.append([module["module"], f"{module['elements']:,}", *map(percent, shares)])
    note = (
        "“in tolerance” counts unchanged elements as the paper does; “rounded” as its code, “relative” by |base|. “one ulp” and "
        "“grew” are shares of the changed elements."
    )
    return Table("kinds", "Each kind of tensor", note, MODULE_COLUMNS, rows)


def sample_table(report: JsonReport) -> Table:
    """The matrices whose rank was taken, where that is a sample."""
    rows = [
        [row["module"], f"{row['matrices']:,}", f"{row['taken']:,}", ", ".join(map(str, row["layers"])) or MISSING]
        for row in report.get("sample") or ()
    ]
    note = "Ranks are those of a sample, spread over kinds and layers; --rank all takes every one."
    return Table("sample", "Matrices whose rank was taken", note, SAMPLE_COLUMNS, rows)


EXPLANATION = "“one ulp” and “grew” are shares of the changed elements."


def render_page(report: JsonReport) -> str:
    """The report as the text of an HTML file."""
    left_out = (
        ("only in the target", report["added"]),
        ("only in the base", report["removed"]),
        ("on both sides, but of shapes or types that cannot be compared", report["unpaired"]),
        ("in added rows, which no base tensor has", [f"{zeros:,} elements"] if (zeros := report.get("against_zeros", 0)) else []),
    )
    return render(
        Page(
            title=" → ".join(filter(None, (report["base"], report["target"]))),
            headline=" ".join(filter(None, (headline(report), compared_words(report)))),
            figures=key_figures(report),
            charts=charts(report),
            captions=captions(report),
            tables=[module_table(report), sample_table(report)],
            tensors=TensorTable(EXPLANATION, COLUMNS, [report_row(tensor) for tensor in report["tensors"]]),
            left_out=[(reason, names) for reason, names in left_out if names],
            definitions=definitions(report),
        )
    )

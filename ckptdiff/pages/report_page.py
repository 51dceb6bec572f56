"""A report as one HTML page: first what training changed in one sentence, then the numbers, then each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptdiff.analysis.modules import expert_of, packing
from ckptdiff.pages.chart_data import JsonReport, changed_share, label_of, layer_sums, mean_of_known, rank_shares, share_of_changed
from ckptdiff.pages.labels import common_start, start_words
from ckptdiff.pages.null_prose import NULL_COLUMNS, null_table_rows
from ckptdiff.pages.report_captions import captions
from ckptdiff.pages.report_charts import charts
from ckptdiff.pages.report_prose import definitions, findings, headline, key_figures
from ckptdiff.pages.templating import Cell, Columns, Page, Table, TensorTable, label_cells, path_of, render, share_cell
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
    ("size explains", "number"),
    ("rows 5–95 %", "number"),
    ("columns 5–95 %", "number"),
]
GROUP_COLUMNS: Columns = [
    (name, "number") for name in ("elements", "changed", "in tolerance", "… rounded", "… relative", "one ulp", "grew")
]
SAMPLE_COLUMNS: Columns = [("kind", "text"), ("matrices", "number"), ("taken", "number"), ("layers", "text")]


def span_cell(quantiles: list[float] | None) -> Cell:
    """The 0.05 and 0.95 quantiles; sorts by how far they lie apart."""
    if not quantiles:
        return percent(None), None
    return f"{percent(quantiles[1])[:-2]}–{percent(quantiles[5])}", quantiles[5] - quantiles[1]


def report_row(tensor: dict[str, Any], start: str) -> list[Cell]:
    """One row of the table of tensors, in the order of COLUMNS; ``start``: what its path begins with, which is not shown."""
    stable = mean_of_known(s["stable_rank"] for s in tensor["spectra"] or ())
    elements = tensor["elements"]
    return [
        *label_cells(path_of(tensor["scope"], label_of(tensor)), start, tensor["layer"], tensor["module"]),
        (f"{tensor['dtype']} (packed)" if packing(tensor["name"], tensor["dtype"]) else tensor["dtype"], tensor["dtype"]),
        (shape_text(tensor["shape"], " × "), elements),
        share_cell(changed_share(tensor)),
        share_cell(share_of_changed(tensor, "one_ulp")),
        share_cell(share_of_changed(tensor, "up")),
        share_cell(tensor["within_atol"] / elements if elements else None),
        share_cell(mean_of_known(rank_shares(tensor, "rank"))),
        share_cell(mean_of_known(rank_shares(tensor, "random_rank"))),
        (three_digits(stable), stable),
        share_cell(tensor["exponents"] and tensor["exponents"]["explained"]),
        span_cell(tensor["rows"]),
        span_cell(tensor["columns"]),
    ]


GROUP_NOTE = (
    "“in tolerance” counts unchanged elements as the paper does; “rounded” as its code, “relative” by |base|. “one ulp” and "
    "“grew” are shares of the changed elements."
)


def group_table(name: str, title: str, note: str, heading: str, groups: Mapping[str, dict[str, int]]) -> Table:
    """Sums over groups of tensors, as a table."""
    rows = []
    for label, sums in groups.items():
        unchanged = [sums[field] / (sums["elements"] or 1) for field in ("within_atol", "within_atol_rounded", "within_rtol")]
        shares = [changed_share(sums), *unchanged, share_of_changed(sums, "one_ulp"), share_of_changed(sums, "up")]
        rows.append([label, f"{sums['elements']:,}", *map(percent, shares)])
    return Table(name, title, note, [(heading, "text"), *GROUP_COLUMNS], rows)


def group_tables(report: JsonReport) -> list[Table]:
    """Sums by component, kind of module, layer and expert, of those that the checkpoint has."""
    components, kinds, experts = ({str(row[key]): row for row in report.get(f"{key}s", ())} for key in ("component", "module", "expert"))
    layers = {f"{component} {layer}".strip(): sums for (component, layer), sums in layer_sums(report).items()}
    stacked = sum(t["module"] == "experts" and expert_of(t["name"], t["part"]) is None for t in report["tensors"])
    note = "Over all layers." + (f" {stacked:,} tensors that hold all experts of a layer count under “experts” alone." if stacked else "")
    return [
        group_table(
            "components",
            "Each component",
            "Folders of a pipeline, and towers of a model; “the rest” is in none of these.",
            "component",
            components,
        ),
        group_table("kinds", "Each kind of tensor", GROUP_NOTE, "kind", kinds),
        group_table("layers", "Each layer", "", "layer", layers),
        group_table("experts", "Each expert", note, "expert", experts),
    ]


def sample_table(report: JsonReport) -> Table:
    """The matrices whose rank was taken, where that is a sample."""
    rows = [
        [row["module"], f"{row['matrices']:,}", f"{row['taken']:,}", ", ".join(map(str, row["layers"])) or MISSING]
        for row in report.get("sample") or ()
    ]
    note = "Ranks are those of a sample, spread over kinds and layers; --rank all takes every one."
    return Table("sample", "Matrices whose rank was taken", note, SAMPLE_COLUMNS, rows)


def null_table(report: JsonReport) -> Table:
    """Figures beside what they would be without the effect."""
    note = (
        "Means over the matrices whose nulls were drawn. In brackets the 95 % interval of one more draw: with random signs, and with the "
        "same values shuffled among weights of the same size. Only what lies outside the latter is more than the weights' sizes explain."
    )
    return Table("nulls", "What the sizes of the weights explain", note, NULL_COLUMNS, null_table_rows(report))


def tensor_table(report: JsonReport) -> TensorTable:
    """The table of all tensors."""
    start = common_start([path_of(t["scope"], label_of(t)) for t in report["tensors"]])
    meaning = (
        "“one ulp” and “grew” are shares of the changed elements, “size explains” is the R² of which elements changed by binary exponent."
    )
    explanation = f"{meaning} {start_words(start, 'tensors')}".strip()
    return TensorTable(explanation, COLUMNS, [report_row(tensor, start) for tensor in report["tensors"]])


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
            headline=headline(report),
            findings=findings(report),
            figures=key_figures(report),
            charts=charts(report),
            captions=captions(report),
            tables=[null_table(report), *group_tables(report), sample_table(report)],
            tensors=tensor_table(report),
            left_out=[(reason, names) for reason, names in left_out if names],
            definitions=definitions(report),
        )
    )

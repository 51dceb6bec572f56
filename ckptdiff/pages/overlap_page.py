"""An overlap as one HTML page: first what the updates share in one sentence, then the numbers, then each tensor."""

from __future__ import annotations

from ckptdiff.analysis.modules import layer_of, module_of
from ckptdiff.analysis.overlap import OverlapResult, TensorOverlap, ratio
from ckptdiff.pages.chart_data import mean_of_known
from ckptdiff.pages.labels import common_start, start_words
from ckptdiff.pages.overlap_captions import captions
from ckptdiff.pages.overlap_charts import UPDATE_NAME_ENDS, charts, update_names
from ckptdiff.pages.overlap_prose import definitions, findings, headline, key_figures, smaller_first, title
from ckptdiff.pages.templating import Cell, Columns, Page, Table, TensorTable, label_cells, path_of, render, share_cell
from ckptdiff.units import percent, three_digits

MAX_UPDATE_COLUMNS = 3
"""With more updates, the table of tensors shows the least and the most changed instead of a column for each update."""
MAX_PAIR_ROWS = 200
"""With more pairs, the page shows them as matrices only."""
UPDATE_COLUMNS: Columns = [("update", "text"), ("changed", "number")]
SERIES_COLUMNS: Columns = [(name, "number") for name in ("since the last", "ever changed", "changed and back")]
PAIR_COLUMNS: Columns = [
    *((name, "text") for name in ("first", "second")),
    *((name, "number") for name in ("o1", "by size", "excess", "at random", "o2", "by size", "excess", "at random", "z")),
    *((name, "number") for name in ("Jaccard", "by size", "at random", "same direction")),
]


def update_table(result: OverlapResult, series: bool) -> Table:
    """How much each update changed; for a series also since the last checkpoint, and over the whole run."""
    rows = [
        [label, *map(percent, (1 - step.sparsity, *((step.since_last, step.ever, step.back) if series else ())))]
        for label, step in zip(update_names(result), result.steps, strict=True)
    ]
    note = f"Shares of all weights. {start_words(common_start(result.names, UPDATE_NAME_ENDS), 'updates')}".strip()
    return Table("updates", "Each update", note, [*UPDATE_COLUMNS, *(SERIES_COLUMNS if series else ())], rows)


def pair_table(result: OverlapResult) -> Table:
    """The figures of every two updates; without rows where there are too many pairs."""
    pairs, names, rows = result.pairs, update_names(result), []
    for p in pairs if len(pairs) <= MAX_PAIR_ROWS else ():
        o1, o2 = (p.o1, p.o1_by_size, p.o1_excess, p.random_o1), (p.o2, p.o2_by_size, p.o2_excess, p.random_o2)
        rest = (p.jaccard, p.jaccard_by_size, p.expected_jaccard, p.same_direction)
        rows.append([names[p.first], names[p.second], *map(percent, (*o1, *o2)), three_digits(p.z), *map(percent, rest)])
    note = (
        "o1 is the share of the first's changes that the second made too, o2 the other way round. Beside them what chance gives: "
        "“by size” among weights of the same size, and “at random” among all, which is the weaker chance. “excess” is (o1 − size) / "
        "(1 − size), and z how many standard deviations of chance by size the updates share more than it gives."
    )
    return Table("pairs", "Every two updates", note, PAIR_COLUMNS, rows)


def tensor_columns(result: OverlapResult) -> Columns:
    """Headings of the table of tensors."""
    count = len(result.names)
    changes = [f"changed by {name}" for name in update_names(result)] if count <= MAX_UPDATE_COLUMNS else ["least changed", "most changed"]
    shared = ["changed by all", "shared", "by size", "at random", "Jaccard", "by size", "at random", "same direction"] if count > 1 else []
    return [("name", "text"), ("layer", "number"), ("kind", "text"), *((name, "number") for name in ("elements", *changes, *shared))]


def overlap_row(result: OverlapResult, tensor: TensorOverlap, start: str) -> list[Cell]:
    """One row of the table of tensors, without the ``start`` of all names; figures of two are means over the pairs that have any."""
    labels = label_cells(path_of(tensor.scope, tensor.name), start, layer_of(tensor.name), module_of(tensor.name))
    changes = [ratio(int(n), tensor.elements) for n in tensor.changed]
    values: list[float | None] = [*(changes if len(changes) <= MAX_UPDATE_COLUMNS else (min(changes), max(changes)))]
    if len(changes) > 1:
        values.append(ratio(tensor.core, tensor.elements))
        pairs = smaller_first(result, [tensor])
        fields = ("o1", "o1_by_size", "random_o1", "jaccard", "jaccard_by_size", "expected_jaccard")
        values += [mean_of_known(getattr(p, field) for p in pairs) for field in fields]
        values.append(mean_of_known(p.same_direction for p in pairs if p.o1))
    return [*labels, (f"{tensor.elements:,}", tensor.elements), *map(share_cell, values)]


def render_overlap(result: OverlapResult, series: bool) -> str:
    """The overlap as the text of an HTML file; ``series``: the updates are checkpoints of one run, in order."""
    start = common_start([path_of(t.scope, t.name) for t in result.tensors])
    shared = "“Shared” is o1 of the update that changed less; figures of two updates are means over all pairs."
    explanation = " ".join(filter(None, (shared if len(result.names) > 1 else "", start_words(start, "tensors"))))
    rows = [overlap_row(result, tensor, start) for tensor in result.tensors]
    return render(
        Page(
            title=title(result),
            headline=headline(result, series),
            findings=findings(result, series),
            figures=key_figures(result, series),
            charts=charts(result, series),
            captions=captions(result),
            tables=[update_table(result, series), pair_table(result)],
            tensors=TensorTable(explanation, tensor_columns(result), rows),
            left_out=[("that not all have with one type and shape", result.left_out)] if result.left_out else [],
            definitions=definitions(result),
        )
    )

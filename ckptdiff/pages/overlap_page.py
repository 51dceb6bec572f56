"""An overlap as one HTML page: first what the updates share in one sentence, then the numbers, then each tensor."""

from __future__ import annotations

from ckptdiff.analysis.modules import layer_of, module_of
from ckptdiff.analysis.overlap import OverlapResult, TensorOverlap, ratio
from ckptdiff.pages.html import (
    Cell,
    Columns,
    charts_html,
    definitions_html,
    figures_html,
    left_out_html,
    page_html,
    share_cell,
    small_table,
    tensor_table,
)
from ckptdiff.pages.overlap_charts import charts, labels
from ckptdiff.pages.overlap_prose import CAPTIONS, definitions, headline, key_figures, smaller_first, title
from ckptdiff.pages.report_prose import percent

MOST_UPDATES = 6
"""Of more updates, the table of tensors does not show each one's changes."""
MOST_PAIRS = 200
"""Of more pairs, the page shows the matrices only."""
UPDATES: Columns = [("update", "text"), ("changed", "number")]
STEPS: Columns = [(name, "number") for name in ("since the last", "ever changed", "changed and back")]
PAIRS: Columns = [
    ("updates", "text"),
    *((name, "number") for name in ("o1", "by size", "at random", "o2", "by size", "at random")),
    *((name, "number") for name in ("Jaccard", "by size", "at random", "same direction")),
]


def update_table(result: OverlapResult, series: bool) -> str:
    """How much each update changed; of a run, also since when."""
    rows = [
        [label, *map(percent, (1 - step.sparsity, *((step.since_last, step.ever, step.back) if series else ())))]
        for label, step in zip(labels(result), result.steps, strict=True)
    ]
    return small_table("updates", "Each update", "Shares of all weights.", [*UPDATES, *(STEPS if series else ())], rows)


def pair_table(result: OverlapResult) -> str:
    """The figures of every two updates."""
    rows = []
    for p in result.pairs[: MOST_PAIRS + 1]:
        o1, o2 = (p.o1, p.o1_by_size, p.random_o1), (p.o2, p.o2_by_size, p.random_o2)
        values = (*o1, *o2, p.jaccard, p.jaccard_by_size, p.expected_jaccard, p.same_direction)
        rows.append([f"{p.first + 1} and {p.second + 1}", *map(percent, values)])
    note = (
        "o1 is the share of the first's changes that the second made too, o2 the other way round. Beside them what chance gives: "
        "“by size” among weights of the same size, “at random” among all."
    )
    return small_table("pairs", "Every two updates", note, PAIRS, rows) if len(rows) <= MOST_PAIRS else ""


def tensor_columns(result: OverlapResult) -> Columns:
    """Headings of the table of tensors; of many updates, the least and the most instead of each one's changes."""
    count = len(result.names)
    changes = [f"changed by {k}" for k in range(1, count + 1)] if count <= MOST_UPDATES else ["least changed", "most changed"]
    shared = ["changed by all", "shared", "by size", "at random", "Jaccard", "by size", "at random", "same direction"] if count > 1 else []
    return [("name", "text"), ("layer", "number"), ("kind", "text"), *((name, "number") for name in ("elements", *changes, *shared))]


def tensor_cells(result: OverlapResult, tensor: TensorOverlap) -> list[Cell]:
    """One row of the table of tensors; figures of two updates are means over the pairs that have any."""
    name, layer, module = "/".join(filter(None, (tensor.scope, tensor.name))), layer_of(tensor.name), module_of(tensor.name)
    place: list[Cell] = [(name, name), ("–" if layer is None else str(layer), layer), (module, module)]
    changes = [ratio(int(n), tensor.elements) for n in tensor.changed]
    values: list[float | None] = [*(changes if len(changes) <= MOST_UPDATES else (min(changes), max(changes)))]
    if len(changes) > 1:
        values.append(ratio(tensor.core, tensor.elements))
        pairs = smaller_first(result, [tensor])
        fields = ("o1", "o1_by_size", "random_o1", "jaccard", "jaccard_by_size", "expected_jaccard")
        values += [mean([getattr(p, field) for p in pairs]) for field in fields]
        values.append(mean([p.same_direction for p in pairs if p.o1]))
    return [*place, (f"{tensor.elements:,}", tensor.elements), *map(share_cell, values)]


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def render_overlap(result: OverlapResult, series: bool) -> str:
    """The overlap as the text of an HTML file; ``series``: as a run's checkpoints, in order."""
    drawn, columns = charts(result, series), tensor_columns(result)
    rows = [tensor_cells(result, tensor) for tensor in result.tensors]
    of_pairs = " “Shared” is o1 of the update that changed less; figures of two updates are means over all pairs."
    note = "“changed by 1”: the share that update 1 changed." if len(result.names) <= MOST_UPDATES else ""
    note += of_pairs if len(result.names) > 1 else ""
    body = [figures_html(key_figures(result, series)), charts_html(drawn, CAPTIONS), update_table(result, series), pair_table(result)]
    body += [tensor_table(note, columns, rows)]
    body += [left_out_html([("that not all have with one type and shape", result.left_out)]), definitions_html(definitions(result))]
    return page_html(title(result), headline(result, series), body, drawn, columns, rows)

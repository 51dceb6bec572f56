"""Results as tables of other programs: rows of plain values, pandas DataFrames, and Parquet."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ckptdiff.analysis.modules import expert_of
from ckptdiff.analysis.sparsity import COUNT_FIELDS, Counts
from ckptdiff.errors import UnsupportedError
from ckptdiff.lazy import pandas, require
from ckptdiff.obtaining import how_to_get

COUNT_COLUMNS = (*COUNT_FIELDS, "changed", "sparsity")
"""What is known of the elements of a tensor or of a group."""
TEXTS = {"level", "first_name", "second_name", "scope", "name", "base_dtype", "target_dtype", "dtype", "module"}
LISTS = {"shape": "int", "bases": "text", "rows": "float", "columns": "float"}
"""Columns that hold lists, and of what."""
INTEGERS = {
    *("part", "layer", "expert", "experts", "tensors", "index", "height", "width", "matrices", "step", "first", "second", "exponent"),
    *(field for field in COUNT_COLUMNS if field != "sparsity"),
    *("changed_first", "changed_second", "both", "both_same_direction", "since_last", "ever", "back"),
}
"""Columns of whole numbers, which may be missing; where they are shares, as of steps, they are floats. So are all others."""
RANKS = {"rank", "effective_rank"}
"""Columns of whole numbers in a table of matrices, and of means in others."""


class Table(NamedTuple):
    """Rows by the names of their columns; what a row lacks is not known."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]


def kind_of(table: Table, column: str) -> str:
    """What a column holds: ``text``, ``list``, ``int`` or ``float``."""
    if column in TEXTS:
        return "text"
    if column in LISTS:
        return "list"
    whole = all(isinstance(row.get(column), (int, type(None))) for row in table.rows)
    return "int" if whole and (column in INTEGERS or (column in RANKS and "index" in table.columns)) else "float"


def frame_of(table: Table) -> Any:
    """A pandas DataFrame: whole numbers are nullable integers (``Int64``), so that a layer that is not known does not turn the others into
    floats.

    Raises:
        ImportError: pandas is not installed.
    """
    frame = pandas.DataFrame({column: [row.get(column) for row in table.rows] for column in table.columns}, columns=list(table.columns))
    dtypes = {"int": "Int64", "float": "float64", "text": "object", "list": "object"}
    return frame.astype({column: dtypes[kind_of(table, column)] for column in table.columns})


def parquet_of(table: Table) -> bytes:
    """A Parquet file, with the same columns as the CSV; lists are lists there.

    Raises:
        UnsupportedError: pyarrow is not installed.
    """
    check_parquet()
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    types = {"int": arrow.int64(), "float": arrow.float64(), "text": arrow.string()}
    columns = {}
    for column in table.columns:
        kind = kind_of(table, column)
        dtype = arrow.list_(types[LISTS[column]]) if kind == "list" else types[kind]
        columns[column] = arrow.array([row.get(column) for row in table.rows], type=dtype)
    out = io.BytesIO()
    parquet.write_table(arrow.table(columns), out)
    return out.getvalue()


def check_parquet() -> None:
    """Raise UnsupportedError unless pyarrow is installed."""
    try:
        require("pyarrow.parquet")
    except ImportError:
        raise UnsupportedError(f"Parquet files need pyarrow; {how_to_get('parquet')}") from None


def counts_row(counts: Counts, complete: bool = True) -> dict[str, Any]:
    """The counts of a tensor or of a group; ``complete``: whether more than which elements changed is known."""
    known = COUNT_FIELDS if complete else ("elements", "bit_identical")
    return {key: getattr(counts, key) for key in known} | {"changed": counts.changed, "sparsity": counts.sparsity}


# --- reports ---

TENSOR_COLUMNS = ("scope", "name", "part", "dtype", "shape", "layer", "module")
EXPONENT_COLUMNS = ("scope", "name", "part", "dtype", "exponent", "elements", "changed", "p_changed")
RANK_MEANS = ("rank_share", "stable_rank", "effective_share", "random_rank_share")


def tensor_table(tensors: Iterable[Any], complete: bool) -> Table:
    """A row for each tensor."""
    return Table((*TENSOR_COLUMNS, *COUNT_COLUMNS, "explained", *RANK_MEANS), [tensor_row(tensor, complete) for tensor in tensors])


def tensor_row(tensor: Any, complete: bool) -> dict[str, Any]:
    """A tensor (:class:`~ckptdiff.analysis.report_model.TensorReport`) as a row.

    It has names, counts, sparsity, how far the base's exponents explain which elements changed (:func:`ckptdiff.analysis.sizes.explained`),
    and means over its matrices that changed, which are NaN where no rank was taken.
    """
    row = {key: getattr(tensor, key) for key in TENSOR_COLUMNS}
    explained = {"explained": None if tensor.exponents is None else tensor.exponents.explained}
    return row | counts_row(tensor.counts, complete) | explained | _mean_ranks(tensor.ranks or ())


def exponent_table(tensors: Iterable[Any]) -> Table:
    """A row for each binary exponent of each tensor, none for zeros and subnormals: ``p_changed`` is changed / elements, that is
    P(changed | exponent)."""
    rows = [
        {key: getattr(tensor, key) for key in EXPONENT_COLUMNS[:4]}
        | {"exponent": exponent, "elements": elements, "changed": changed, "p_changed": changed / elements}
        for tensor in tensors
        for exponent, elements, changed in (tensor.exponents.rows() if tensor.exponents is not None else ())
    ]
    return Table(EXPONENT_COLUMNS, rows)


def _mean_ranks(ranks: Sequence[Any]) -> dict[str, float]:
    rows = [(r.spectrum.rank_share, r.spectrum.stable_rank, *r.shares) for r in ranks if r.spectrum.stable_rank]
    means = [math.fsum(values) / len(rows) for values in zip(*rows, strict=True)] or [math.nan] * 4
    return dict(zip(RANK_MEANS, means, strict=True))


def layer_table(tensors: Iterable[Any], complete: bool) -> Table:
    """A row for each layer and kind of module: the sums over their tensors (:class:`~ckptdiff.analysis.report_model.TensorReport`). The
    layer of those that belong to none is not known."""
    sums: dict[tuple[int | None, str], tuple[Counts, int]] = {}
    for tensor in tensors:
        counts, number = sums.get((tensor.layer, tensor.module), (Counts(), 0))
        sums[tensor.layer, tensor.module] = counts + tensor.counts, number + 1
    ordered = sorted(sums.items(), key=lambda item: (item[0][0] is None, item[0][0] or 0))
    rows = [
        {"layer": layer, "module": module, "tensors": number} | counts_row(counts, complete)
        for (layer, module), (counts, number) in ordered
    ]
    return Table(("layer", "module", "tensors", *COUNT_COLUMNS), rows)


def expert_table(tensors: Iterable[Any]) -> Table:
    """A row for each expert of each tensor: of one that is an expert's by its name, and of each expert of a stack."""
    rows = []
    for tensor in tensors:
        place = {"scope": tensor.scope, "name": tensor.name, "layer": tensor.layer}
        expert, counts = expert_of(tensor.name, tensor.part), tensor.counts
        if expert is not None:
            known = ("elements", "changed", "sparsity")
            rows.append(place | {"expert": expert} | {key: getattr(counts, key) for key in known})
        elif tensor.expert_changes is not None:
            elements = counts.elements // len(tensor.expert_changes)
            rows += [
                place | {"expert": k, "elements": elements, "changed": changed, "sparsity": 1 - changed / elements}
                for k, changed in enumerate(tensor.expert_changes)
            ]
    return Table(("scope", "name", "layer", "expert", "elements", "changed", "sparsity"), rows)


MATRIX_COLUMNS = (
    *("scope", "name", "part", "layer", "module", "index", "height", "width", "rank", "rank_share", "stable_rank"),
    *("effective_rank", "effective_share", "random_rank", "random_rank_share"),
)


def matrix_table(tensors: Iterable[Any]) -> Table:
    """A row for each matrix whose rank was taken, also of those that did not change."""
    rows = []
    for tensor in tensors:
        place = {key: getattr(tensor, key) for key in ("scope", "name", "part", "layer", "module")}
        for taken in tensor.ranks or ():
            spectrum, (effective, random) = taken.spectrum, taken.shares
            row = {"index": taken.index, "height": spectrum.rows, "width": spectrum.columns, "random_rank": taken.random_rank}
            row |= {key: getattr(spectrum, key) for key in ("rank", "rank_share", "stable_rank", "effective_rank")}
            rows.append(place | row | {"effective_share": effective, "random_rank_share": random})
    return Table(MATRIX_COLUMNS, rows)


# --- overlaps and series ---

STEP_COLUMNS = ("step", "name", "sparsity", "since_last", "ever", "back")


def step_table(numbers: Iterable[int], steps: Iterable[Any]) -> Table:
    """A row for each update, or step of a run: shares of all elements (:class:`~ckptdiff.analysis.overlap.StepRow`)."""
    rows = [
        {"step": number} | {key: getattr(step, key) for key in STEP_COLUMNS[1:]} | {"changed": 1 - step.sparsity}
        for number, step in zip(numbers, steps, strict=True)
    ]
    return Table(("step", "name", "changed", *STEP_COLUMNS[2:]), rows)


def tensor_step_table(numbers: Sequence[int], tensors: Iterable[Any]) -> Table:
    """A row for each tensor and step: numbers of elements (:class:`~ckptdiff.analysis.series.TensorSeries`)."""
    rows = [
        {"scope": t.scope, "name": t.name, "step": number, "elements": t.elements}
        | {key: int(getattr(t, key)[k]) for key in ("changed", "since_last", "ever", "back")}
        | {"sparsity": 1 - int(t.changed[k]) / t.elements if t.elements else 1.0}
        for t in tensors
        for k, number in enumerate(numbers)
    ]
    return Table(("scope", "name", "step", "elements", "changed", "sparsity", "since_last", "ever", "back"), rows)


def counted_pair(tensors: Sequence[Any], first: int, second: int) -> dict[str, Any]:
    """Numbers of elements of two updates, over some tensors (:class:`~ckptdiff.analysis.overlap.TensorOverlap`)."""
    return {
        "elements": sum(t.elements for t in tensors),
        "changed_first": sum(int(t.changed[first]) for t in tensors),
        "changed_second": sum(int(t.changed[second]) for t in tensors),
        "both": sum(int(t.both[first, second]) for t in tensors),
        "both_same_direction": sum(int(t.same_direction[first, second]) for t in tensors),
        "both_by_size": math.fsum(float(t.both_by_size[first, second]) for t in tensors),
        "both_variance": math.fsum(float(t.both_variance[first, second]) for t in tensors),
    }

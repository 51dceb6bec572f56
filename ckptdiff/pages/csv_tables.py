"""Reports and overlaps as CSV tables for other programs: counts are whole numbers, shares have all their digits.

Columns have the names of the JSON's fields. What is not known is an empty cell, and a list is JSON in one cell.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ckptdiff.analysis.frames import COUNT_COLUMNS, RANK_MEANS, Table, check_parquet, counted_pair, parquet_of, tensor_row
from ckptdiff.analysis.overlap import OverlapResult, PairOverlap, TensorOverlap
from ckptdiff.analysis.report_model import Report, TensorReport, tensor_json

REPORT_COLUMNS = (
    *("scope", "name", "part", "bases", "base_dtype", "target_dtype", "dtype", "shape", "layer", "module"),
    *COUNT_COLUMNS,
    *("explained", "matrices", "rank", "effective_rank", "random_rank", *RANK_MEANS, "rows", "columns"),
)
PAIR_FIELDS = tuple(field.name for field in fields(PairOverlap))
COUNTED = ("elements", "changed_first", "changed_second", "both", "both_same_direction", "both_by_size", "both_variance")
OVERLAP_COLUMNS = ("level", "first_name", "second_name", "scope", "name", *COUNTED, *PAIR_FIELDS)


__all__ = ["check_parquet", "csv_of", "overlap_table", "parquet_of", "report_table"]


def report_table(report: Report, name: str = "tensors") -> Table:
    """The table of a name (:meth:`Report.to_frame <ckptdiff.analysis.notebook.Framed.to_frame>`); that of tensors has means of ranks
    in full."""
    if name != "tensors":
        return report.table(name)
    return Table(REPORT_COLUMNS, [_report_row(report, tensor) for tensor in report.tensors])


def overlap_table(result: OverlapResult, name: str = "pairs") -> Table:
    """The table of a name; that of pairs has a row for every two updates over all tensors (``level`` is ``all``), and then one for each
    tensor (``tensor``)."""
    return result.table(name) if name != "pairs" else Table(OVERLAP_COLUMNS, list(_overlap_rows(result)))


def csv_of(table: Table) -> str:
    """A table as CSV."""
    return _text(table.columns, table.rows)


def _report_row(report: Report, tensor: TensorReport) -> dict[str, Any]:
    changed = [rank for rank in tensor.ranks or () if rank.spectrum.stable_rank]
    row = tensor_json(tensor) | tensor_row(tensor, report.complete) | {"shape": list(tensor.shape)}
    row |= {key: _mean([getattr(rank.spectrum, key) for rank in changed]) for key in ("rank", "effective_rank")}
    row |= {"matrices": len(changed), "random_rank": _mean([rank.random_rank for rank in changed])}
    return row | {"bases": row["bases"] or None}


def _mean(values: Sequence[float]) -> float | None:
    """The mean; of one value that value itself, of none None."""
    return None if not values else values[0] if len(values) == 1 else math.fsum(values) / len(values)


def _overlap_rows(result: OverlapResult) -> Iterator[dict[str, Any]]:
    for pair in result.pairs:
        yield {"level": "all"} | _pair_row(result, pair, result.tensors)
    for tensor in result.tensors:
        for pair in result.pairs:
            one = result.pair(pair.first, pair.second, [tensor])
            yield {"level": "tensor", "scope": tensor.scope, "name": tensor.name} | _pair_row(result, one, [tensor])


def _pair_row(result: OverlapResult, pair: PairOverlap, tensors: Sequence[TensorOverlap]) -> dict[str, Any]:
    i, j = pair.first, pair.second
    return {"first_name": result.names[i], "second_name": result.names[j]} | counted_pair(tensors, i, j) | pair.to_json()


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A value as csv writes it: floats in the fewest digits that give the same float."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value

"""The bins of a report's histograms as rows to draw: with the gaps between them, and which moves can only have crossed zero."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise

from ckptdiff.analysis.sparsity import EXPONENT_FIELDS
from ckptdiff.kernels.bins import HIGHEST
from ckptdiff.pages.chart_data import JsonReport, Rows, changed_count
from ckptdiff.pages.labels import power
from ckptdiff.units import percent

KEPT_SIGN, CROSSED, EITHER = "kept its sign", "crossed zero", "kept its sign, or crossed or touched zero"
MOVED, NONE = "moved", "none"
"""What the weights of a bin of ulps did, as far as the sums of a report tell; of integers they tell only that they moved."""


def ulp_label(first: int, last: int | None) -> str:
    """Label of a bin of distances from ``first`` to ``last`` ulps; None: it has no upper end."""
    if last is None:
        return f"{first:,} or more"
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def ulp_rows(report: JsonReport) -> Rows:
    """A row for each bin of distances that counts a move, and one for each gap between them, from the nearest on."""
    total, kind_of, rows = changed_count(report["totals"]), Signs(report), Rows()
    for row in sorted((b for b in report["moves"]["ulp"] if b["count"]), key=lambda b: b["from"]):
        before = rows[-1]["to"] if rows else None
        if before is not None and row["from"] > before + 1:
            rows.append(ulp_row(before + 1, row["from"] - 1, 0, total, NONE))
        rows.append(ulp_row(row["from"], row["to"], row["count"], total, kind_of(row["from"], row["to"])))
    return rows


def ulp_row(first: int, last: int | None, count: int, total: int, kind: str) -> dict[str, object]:
    """A row of the histogram of ulps."""
    share = count / total
    label = f"{percent(share)} {CROSSED}" if kind == CROSSED else percent(share) if count else NONE
    row = {"ulps": ulp_label(first, last), "from": first, "to": last, "kind": kind}
    return row | {"count": count, "value": share, "share": percent(share), "label": label}


class Signs:
    """Tells which moves must have crossed zero, and which cannot have, from the sums of a report.

    A float that moves by D ulps and keeps its sign changes by at least the D-th number above zero: where the largest change of all is less,
    all that moved so far went through zero, past all the small numbers on both sides of it. One that crosses zero or reaches it by D ulps
    was at most the D-th number above zero: where the smallest that changed was more, all that moved no further kept their sign.
    """

    def __init__(self, report: JsonReport) -> None:
        sizes = [b for b in report["moves"]["abs"] if b["count"]]
        starts = [e["exponent"] for e in report["moves"]["exponents"] if e["changed"]]
        self._dtypes = {"F32" if t["dtype"] == "C64" else t["dtype"] for t in report["tensors"] if changed_count(t)}
        self._floats = self._dtypes <= set(EXPONENT_FIELDS)
        # Changes by infinities and NaNs, and between -0 and +0, have no size.
        complete = sizes and sum(b["count"] for b in sizes) == changed_count(report["totals"]) and sizes[-1]["to"] <= 2.0**HIGHEST
        self._largest = max(b["to"] for b in sizes) if complete else math.inf
        self._smallest = power_of_two(min(starts)) if starts and None not in starts else 0.0

    def __call__(self, low: int, high: int | None) -> str:
        """What all weights of a bin did."""
        if not self._floats:
            return MOVED
        if all(number_above_zero(low, dtype) >= self._largest for dtype in self._dtypes):
            return CROSSED
        if high is not None and all(number_above_zero(high, dtype) < self._smallest for dtype in self._dtypes):
            return KEPT_SIGN
        return EITHER


def power_of_two(exponent: int) -> float:
    """2 to an exponent; infinity for that of the infinities and NaNs of F64."""
    return 2.0**exponent if exponent < sys.float_info.max_exp else math.inf


def number_above_zero(steps: int, dtype: str) -> float:
    """The value that is ``steps`` ulps above zero; infinity above the largest."""
    shift, mask, bias = EXPONENT_FIELDS[dtype]
    exponent, part = steps >> shift, (steps & ((1 << shift) - 1)) / (1 << shift)
    if exponent > mask or exponent - bias > 1023:
        return math.inf
    return math.ldexp(1 + part, exponent - bias) if exponent else math.ldexp(part, 1 - bias)


def size_rows(report: JsonReport) -> Rows:
    """A row for each bin of |d| that counts a change; ends are binary logarithms."""
    total = changed_count(report["totals"])
    bins = sorted((b for b in report["moves"]["abs"] if b["from"] > 0 and b["count"]), key=lambda b: b["from"])
    rows = [{**b, "x": math.log2(b["from"]), "value": b["count"] / total, "share": percent(b["count"] / total)} for b in bins]
    return [{**row, "x2": math.log2(row["to"]) if row["to"] else row["x"] + 1} | {"size": size_text(row["x"])} for row in rows]


def exponent_rows(report: JsonReport) -> Rows:
    """A row for each binary exponent that a weight of the base has."""
    found = sorted((e for e in report["moves"]["exponents"] if e["exponent"] is not None and e["elements"]), key=lambda e: e["exponent"])
    rows = [{**e, "x": e["exponent"], "x2": e["exponent"] + 1, "value": e["changed"] / e["elements"]} for e in found]
    return [{**row, "share": percent(row["value"]), "size": size_text(row["exponent"])} for row in rows]


def size_text(exponent: float) -> str:
    """The range of a bin: 2⁻¹⁷ to 2⁻¹⁶."""
    return f"{power(2, round(exponent))} to {power(2, round(exponent) + 1)}"


def gaps(rows: Sequence[dict[str, float]]) -> Rows:
    """The ranges between bins in which nothing lies."""
    return [{"x": a["x2"], "x2": b["x"], "label": "none"} for a, b in pairwise(rows) if b["x"] > a["x2"]]


def unchanged_runs(rows: Sequence[dict[str, float]]) -> Rows:
    """The ranges of bins side by side in which weights lie, of which none changed."""
    runs = Rows()
    for row in rows:
        if not row["value"] and runs and runs[-1]["x2"] == row["x"]:
            runs[-1]["x2"] = row["x2"]
        elif not row["value"]:
            runs.append({"x": row["x"], "x2": row["x2"], "label": "none changed"})
    return runs


def gap_words(found: Sequence[dict[str, float]]) -> str:
    """Where the gaps are, as powers of two; empty if there are none."""
    return ", ".join(f"{power(2, round(gap['x']))} to {power(2, round(gap['x2']))}" for gap in found)

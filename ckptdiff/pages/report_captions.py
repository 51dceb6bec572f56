"""Captions of a report's charts: what each shows, and what it says of this update, computed from the numbers that it draws."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ckptdiff.analysis.modules import APART
from ckptdiff.pages.chart_data import (
    NO_LAYER,
    JsonReport,
    Rows,
    changed_cells,
    changed_count,
    layer_sums,
    spectra_by_module,
    spectrum_lines,
)
from ckptdiff.pages.histograms import CROSSED, EITHER, KEPT_SIGN, MOVED, NONE, exponent_rows, gap_words, gaps, size_rows, ulp_rows
from ckptdiff.pages.labels import number_or_power, power_of_two, span
from ckptdiff.pages.report_prose import PAPER
from ckptdiff.units import percent

EVEN = 1.5
"""Times as large that the largest share of several may be for them to be called alike."""
MIN_BINS = 5
"""Bins of a histogram from which it is said to fall."""
FALLING = 0.05
"""By how much a share may grow from one bin to the next in a histogram that is said to fall."""


def captions(report: JsonReport) -> dict[str, str]:
    """What each chart of the report shows, by the chart's name."""
    changed = changed_count(report["totals"]) > 0
    words = {"changed": changed_caption(report), "layers": layers_caption(report)}
    words |= {"rank": rank_caption(report), "random-rank": random_caption(report), "spectra": spectra_caption(report)}
    return words | (
        {"ulps": ulps_caption(report), "sizes": sizes_caption(report), "exponents": exponents_caption(report)} if changed else {}
    )


def cell_name(cell: dict[str, Any]) -> str:
    """A cell of a heat map in words."""
    return cell["module"] if cell["layer"] == NO_LAYER else f"{cell['module']} of layer {cell['layer']}"


def range_words(cells: Rows) -> str:
    """The least and the largest value of some cells, and where they are."""
    low, high = min(cells, key=lambda c: c["value"]), max(cells, key=lambda c: c["value"])
    if low["value"] == high["value"]:
        return percent(low["value"])
    return f"{percent(low['value'])} ({cell_name(low)}) to {percent(high['value'])} ({cell_name(high)})"


def changed_caption(report: JsonReport) -> str:
    """Of the map of changed elements."""
    text = "Share of the weights whose bits changed, by kind of tensor and layer."
    cells = changed_cells(report)
    matrices, apart = ([c for c in cells if (c["module"].rpartition(" ")[2] in APART) is which] for which in (False, True))
    if not changed_count(report["totals"]):
        return f"{text} None did."
    if matrices:
        values = [c["value"] for c in matrices]
        even = "much the same everywhere" if max(values) <= EVEN * min(values) else "not the same everywhere"
        text += (
            f" Of the matrices it is {even}: {range_words(matrices)}." if len(values) > 1 else f" Of the matrices: {percent(values[0])}."
        )
    if apart:
        text += f" Of {', '.join(dict.fromkeys(c['module'] for c in apart))}: {range_words(apart)}."
    return text + (f" “{NO_LAYER}”: in no layer." if any(c["layer"] == NO_LAYER for c in cells) else "")


def layers_caption(report: JsonReport) -> str:
    """Of the lines of update sparsity by layer."""
    tolerance = report["settings"]["atol"]
    sums = [row for row in layer_sums(report).values() if row["elements"]]
    same, within = ([row[field] / row["elements"] for row in sums] for field in ("bit_identical", "within_atol"))
    text = "Share of each layer's weights that stayed the same"
    if not sums:
        return f"{text}."
    text += f": {span(same)} bit for bit, {span(within)} within the tolerance of {number_or_power(tolerance)}."
    if tolerance == 1e-5:
        text += f" {PAPER} reports 68.5 to 96.0 % for whole RL-tuned models at this tolerance (table 1)."
    return text


def rank_caption(report: JsonReport) -> str:
    """Of the map of ranks, beside what random updates give."""
    text = "Rank of target minus base over the most it can be, a mean over the matrices of a cell whose rank was taken"
    rank = report["rank"]
    if not rank or rank["rank_share"] is None or rank["random_rank_share"] is None:
        return f"{text}."
    mean, chance = rank["rank_share"], rank["random_rank_share"]
    text += f". Those that changed have {percent(mean)} on average, as many changes at random places {percent(chance)}"
    if mean < 0.9 * chance:
        text += ": the update has structure, as a LoRA's has"
    elif mean <= 1.1 * chance:
        text += ": that is about as much, and says nothing of a structure"
    return f"{text}." + (f" {rank['unchanged']:,} did not change and have none." if rank.get("unchanged") else "")


def random_caption(report: JsonReport) -> str:
    """Of the map of the ranks of random updates."""
    rank = report["rank"]
    known = f" Those that changed would have {percent(rank['random_rank_share'])} of full rank on average." if rank else ""
    return f"What to compare the rank of the update with: as many changed weights in each of these matrices, but at random places.{known}"


def spectra_caption(report: JsonReport) -> str:
    """Of the lines of singular values."""
    lines = spectrum_lines(report)
    measured, random = sum(not line.is_random for line in lines), sum(line.is_random for line in lines)
    kinds = len(spectra_by_module(report))
    what = "one matrix of each kind" if kinds > 1 else "some matrices" if measured > 1 else "one matrix"
    what += f" (the first {measured} of {kinds} kinds)" if kinds > measured else ""
    dashed = "the dashed line is that" if random == 1 else "the dashed lines are those"
    return (
        f"How the update's strength is spread over its directions, for {what}, from a middle layer; {dashed} of matrices of independent "
        "random entries, by the ratio of their sides. A line that falls steeply at the left has its strength in a few directions; one that "
        "ends before 100 % has no more ranks."
    )


def ulps_caption(report: JsonReport) -> str:
    """Of the histogram of distances in ulps, with its gaps."""
    text = "An ulp is the step from one number that the format can hold to the next."
    rows = ulp_rows(report)
    one = sum(row["count"] for row in rows if row["to"] == 1)
    text += f" {percent(one / changed_count(report['totals']))} of the changed weights moved by one, the smallest change there is."
    crossed = sum(row["count"] for row in rows if row["kind"] == CROSSED)
    if crossed:
        first = next(row["from"] for row in rows if row["kind"] == CROSSED)
        text += (
            f" The {crossed:,} that moved by {first:,} ulps or more crossed zero: all the small numbers on both sides of it count, "
            "although the change is small."
        )
    empty = [row["ulps"] for row in rows if row["kind"] == NONE]
    if empty:
        cause = " that crossings leave" if crossed and rows[-1]["kind"] == CROSSED and rows[-2]["kind"] == NONE else ""
        text += f" No weight moved by {' or '.join(empty)} ulps{': the gap' * bool(cause)}{cause}."
    if any(row["kind"] == EITHER for row in rows) and not any(row["kind"] == MOVED for row in rows):
        text += " A report's sums do not always tell which moves crossed or touched zero."
    elif all(row["kind"] == KEPT_SIGN for row in rows):
        text += " None crossed zero."
    return text


def sizes_caption(report: JsonReport) -> str:
    """Of the histogram of absolute changes, with its gaps."""
    totals, tolerance = report["totals"], report["settings"]["atol"]
    hidden = max(totals["within_atol"] - totals["bit_identical"], 0) / changed_count(totals)
    paper = ", as in the paper" if tolerance == 1e-5 else ""
    text = f"Absolute change of the changed weights. {percent(hidden) if hidden else 'None'} of them changed by at most "
    text += number_or_power(tolerance)
    text += f", and count as unchanged at that tolerance{paper}." if hidden else "."
    rows = size_rows(report)
    without = changed_count(totals) - sum(b["count"] for b in report["moves"]["abs"] if b["from"] > 0)
    if without > 0:
        text += f" {without:,} have no size: they changed between −0 and +0, or to or from an infinity or a NaN."
    between = gap_words(gaps(rows))
    if between:
        text += (
            f" No weight changed by {between} (grey). Weights move in whole steps of their format: a gap lies between large weights, whose "
            "steps are coarse, and small ones that moved little; or few weights changed."
        )
    return text


def exponents_caption(report: JsonReport) -> str:
    """Of the shares of changed elements by size of the base's value."""
    text = "Share of the weights that changed, by the size of their value in the base."
    rows = exponent_rows(report)
    moved = [row for row in rows if row["changed"]]
    values = [row["value"] for row in rows]
    if len(rows) >= MIN_BINS and values[-1] < values[0] / 2 and all(b <= a + FALLING for a, b in pairwise(values)):
        text += " It falls from left to right: large weights have coarse steps, so that small updates of them are rounded away."
    if moved and rows[-1]["exponent"] > moved[-1]["exponent"]:
        text += f" Of the weights from {power_of_two(moved[-1]['exponent'] + 1)} on none changed."
    between = gap_words(gaps(rows))
    if between:
        text += f" Grey: no weight of the base is of the size {between}."
    zeros = [e for e in report["moves"]["exponents"] if e["exponent"] is None and e["elements"]]
    if zeros:
        text += f" Zeros and subnormals are not shown: {zeros[0]['changed']:,} of {zeros[0]['elements']:,} changed."
    return text

"""Reports and overlaps as text for a person: compact tables with bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.bar import Bar
from rich.table import Table

from ckptdiff.analysis.overlap import OverlapResult, PairOverlap
from ckptdiff.analysis.report_model import MatrixRank, Report
from ckptdiff.analysis.sparsity import Counts
from ckptdiff.cli.render import console, escaped, first_names, plain_table, print_grid
from ckptdiff.pages.report_prose import sample_words
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.units import byte_size, percent_of, shape_text

BAR_WIDTH = 20
"""Characters of a full bar."""
PAIR_FIELDS = ("o1", "random_o1", "o2", "random_o2", "jaccard", "expected_jaccard", "jaccard_by_size", "same_direction")


def print_report(result: Report, tensors: bool) -> None:
    """Print a report: totals, counts by kind of module and by layer, and with ``tensors`` also by tensor."""
    out = console()
    print_grid(out, _total_rows(result) + _move_rows(result) + _rank_rows(result) + _unpaired_rows(result))
    for title, groups in (("module", result.modules), ("layer", {str(k): v for k, v in result.layers.items()})):
        if groups:
            out.print()
            out.print(_group_table(title, groups, result))
    if tensors:
        out.print()
        out.print(_tensor_table(result))


def _total_rows(result: Report) -> list[tuple[str, str]]:
    t = result.totals
    rows = [
        ("elements", f"{t.elements:,} in {len(result.tensors)} tensors"),
        ("bit-identical", f"{percent_of(t.bit_identical, t.elements)} (update sparsity by bits)"),
    ]
    if not result.complete:
        return [*rows, ("", "give the base too for tolerances, the size of the moves, and rank")]
    atol, rtol = result.tolerance.atol, result.tolerance.rtol
    return [
        *rows,
        ("equal by value", percent_of(t.equal, t.elements)),
        (f"|d| <= {atol:g}", f"{percent_of(t.within_atol, t.elements)} (update sparsity in arXiv 2505.11711)"),
        ("as its code rounds", percent_of(t.within_atol_rounded, t.elements)),
        (f"|d| <= {rtol:g} |base|", percent_of(t.within_rtol, t.elements)),
    ]


def _move_rows(result: Report) -> list[tuple[str, str]]:
    t = result.totals
    if not (result.complete and t.changed):
        return []
    both = f"{percent_of(t.up, t.changed)}, {percent_of(t.down, t.changed)}"
    return [("moved by one ulp", f"{percent_of(t.one_ulp, t.changed)} of the changed"), ("up, down", both)]


def _rank_rows(result: Report) -> list[tuple[str, str]]:
    taken = [("rank taken of", sample_words(map(asdict, result.sample)))] if result.sample else []
    rank = result.rank
    if rank is None:
        return taken
    others = f" ({rank.unchanged} did not change)" if rank.unchanged else ""
    return [
        ("mean rank", f"{percent_of(rank.rank_share, 1)} of the largest possible, over {rank.matrices} matrices{others}"),
        ("at random", f"{percent_of(rank.random_rank_share, 1)} for updates as dense, but scattered at random"),
        ("99 % of energy", f"in {percent_of(rank.effective_share, 1)} of the singular values; mean stable rank {rank.stable_rank:.1f}"),
        *taken,
    ]


def _unpaired_rows(result: Report) -> list[tuple[str, str]]:
    lists = (
        ("only in the target", result.added),
        ("only in the base", result.removed),
        ("cannot be compared", result.unpaired),
        ("no rank: inf or NaN", result.without_rank),
    )
    rows = _compared_rows(result) + [(what, first_names(names)) for what, names in lists if names]
    return rows + ([("added rows", f"{result.against_zeros:,} elements, in no number above")] if result.against_zeros else [])


def _compared_rows(result: Report) -> list[tuple[str, str]]:
    """What was compared with base tensors of another dtype, or of other names."""
    casts = Counter(tensor.base_dtype for tensor in result.tensors if tensor.base_dtype is not None)
    rows = [("compared", f"{count} tensors after a cast from {dtype}") for dtype, count in casts.items()]
    others = [tensor for tensor in result.tensors if tensor.bases]
    if others:
        first, more = others[0], f" and {len(others[0].bases) - 1} more" if len(others[0].bases) > 1 else ""
        rows.append(("compared", f"{len(others)} tensors with base tensors of other names: {first.label} with {first.bases[0]}{more}"))
    return rows


def _group_table(title: str, groups: dict[str, Counts], result: Report) -> Table:
    table = plain_table(title, "elements", "changed", "")
    most = max((counts.changed / counts.elements for counts in groups.values() if counts.elements), default=0.0) or 1.0
    if result.complete:
        table.add_column(f"|d| > {result.tolerance.atol:g}")
    for name, counts in groups.items():
        bar = Bar(most, 0, counts.changed / counts.elements if counts.elements else 0, width=BAR_WIDTH)
        cells = [f"{counts.elements:,}", percent_of(counts.changed, counts.elements)]
        table.add_row(escaped(name), *cells, bar, *([percent_of(counts.elements - counts.within_atol, counts.elements)] * result.complete))
    return table


def _tensor_table(result: Report) -> Table:
    table = plain_table("tensor", "dtype", "shape", "changed", "one ulp", "rank", "stable rank", "99 % energy", "at random")
    for row in result.tensors:
        c = row.counts
        cells = [row.dtype, shape_text(row.shape), percent_of(c.changed, c.elements)]
        table.add_row(
            escaped(row.label), *cells, percent_of(c.one_ulp, c.changed) if result.complete else "", *_rank_cells(row.ranks or ())
        )
    return table


def _rank_cells(ranks: Iterable[MatrixRank]) -> list[str]:
    rows = list(ranks)
    if not rows:
        return ["", "", "", ""]
    figures = ((r.spectrum.rank, r.spectrum.stable_rank, r.spectrum.effective_rank, r.random_rank) for r in rows)
    mean = [sum(x) / len(rows) for x in zip(*figures, strict=True)]
    return [f"{mean[0]:g} of {rows[0].spectrum.largest}", f"{mean[1]:.1f}", f"{mean[2]:g}", f"{mean[3]:.1f}"]


def print_pictures(html: Path | None, png: Path | None) -> None:
    """Print where the page and the pictures were written."""
    rows = [("page", str(html))] * bool(html) + [("pictures", str(png))] * bool(png)
    if rows:
        console().print()
        print_grid(console(), rows)


def print_overlap(result: OverlapResult, series: bool, tensors: bool) -> None:
    """Print what each update changed and how every two overlap.

    Args:
        result: what was compared.
        series: the updates are checkpoints of one run, in order; print also how the update grew.
        tensors: print also the overlaps of every tensor.
    """
    out = console()
    rows = [("base", result.base), ("elements", f"{result.elements:,} in {len(result.tensors)} tensors")]
    if len(result.names) > 1:
        rows.append(("changed by all", percent_of(result.core, result.elements)))
    if result.left_out:
        rows.append(("left out", first_names(result.left_out)))
    print_grid(out, rows)
    out.print()
    steps = plain_table("#", "update", "changed", "", *(("since the last", "ever changed", "changed and back") if series else ()))
    most = max((1 - step.sparsity for step in result.steps), default=0) or 1.0
    for k, step in enumerate(result.steps, 1):
        more = [percent_of(x, 1) for x in (step.since_last, step.ever, step.back)] if series else []
        steps.add_row(str(k), escaped(step.name), percent_of(1 - step.sparsity, 1), Bar(most, 0, 1 - step.sparsity, width=BAR_WIDTH), *more)
    out.print(steps)
    if len(result.names) > 1:
        out.print()
        out.print(_pair_table([("", pair) for pair in result.pairs]))
    if tensors and len(result.names) > 1:
        out.print()
        out.print(_pair_table([(t.name, result.pair(p.first, p.second, [t])) for t in result.tensors for p in result.pairs]))


def print_mask(path: Path, mask: Mask, nbytes: int) -> None:
    """Print what went into a mask file of ``nbytes`` bytes."""
    named = sum(math.prod(shape) for shape in mask.shapes.values())
    rows = [("elements", f"{mask.total:,} in {len(mask.bits)} tensors ({percent_of(mask.total, named)} of these)")]
    print_grid(console(), [*rows, ("mask", f"{path} ({byte_size(nbytes)})")])


def _pair_table(rows: list[tuple[str, PairOverlap]]) -> Table:
    named = any(name for name, _ in rows)
    heads = ("1", "2", "o1", "at random", "o2", "at random", "Jaccard", "expected", "by size", "same direction")
    table = plain_table(*(("tensor",) if named else ()), *heads)
    for name, p in rows:
        figures = p.to_json()
        cells = ["-" if figures[key] is None else percent_of(figures[key], 1) for key in PAIR_FIELDS]
        table.add_row(*((escaped(name),) if named else ()), str(p.first + 1), str(p.second + 1), *cells)
    return table

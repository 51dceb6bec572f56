"""Reports and overlaps as text for a person: compact tables with bars."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.bar import Bar
from rich.table import Table

from ckptdiff.analysis.overlap import OverlapResult, PairOverlap
from ckptdiff.analysis.report_model import MatrixRank, Report
from ckptdiff.analysis.sparsity import Counts
from ckptdiff.cli.render import cell, console, print_grid, rows_table, some
from ckptdiff.pages.report_prose import sample_words
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.units import share, size

BAR = 20
PAIR = ("o1", "random_o1", "o2", "random_o2", "jaccard", "expected_jaccard", "jaccard_by_size", "same_direction")


def percent(value: float) -> str:
    return share(value, 1)


def reported(result: Report, tensors: bool) -> None:
    """Print a report: totals, then by kind of module, by layer, and by tensor if asked."""
    out = console()
    print_grid(out, _totals(result) + _moves(result) + _rank(result) + _names(result))
    for title, groups in (("module", result.modules), ("layer", {str(k): v for k, v in result.layers.items()})):
        if groups:
            out.print()
            out.print(_groups(title, groups, result))
    if tensors:
        out.print()
        out.print(_tensors(result))


def _totals(result: Report) -> list[tuple[str, str]]:
    t = result.totals
    rows = [
        ("elements", f"{t.elements:,} in {len(result.tensors)} tensors"),
        ("bit-identical", f"{share(t.bit_identical, t.elements)} (update sparsity by bits)"),
    ]
    if not result.complete:
        return [*rows, ("", "give the base too for tolerances, the size of the moves, and rank")]
    atol, rtol = result.tolerance.atol, result.tolerance.rtol
    return [
        *rows,
        ("equal by value", share(t.equal, t.elements)),
        (f"|d| <= {atol:g}", f"{share(t.within_atol, t.elements)} (update sparsity in arXiv 2505.11711)"),
        ("as its code rounds", share(t.within_atol_rounded, t.elements)),
        (f"|d| <= {rtol:g} |base|", share(t.within_rtol, t.elements)),
    ]


def _moves(result: Report) -> list[tuple[str, str]]:
    t = result.totals
    if not (result.complete and t.changed):
        return []
    both = f"{share(t.up, t.changed)}, {share(t.down, t.changed)}"
    return [("moved by one ulp", f"{share(t.one_ulp, t.changed)} of the changed"), ("up, down", both)]


def _rank(result: Report) -> list[tuple[str, str]]:
    taken = [("rank taken of", sample_words(map(asdict, result.sample)))] if result.sample else []
    rank = result.rank
    if rank is None:
        return taken
    others = f" ({rank.unchanged} did not change)" if rank.unchanged else ""
    return [
        ("mean rank", f"{percent(rank.rank_share)} of the largest possible, over {rank.matrices} matrices{others}"),
        ("at random", f"{percent(rank.random_rank_share)} for updates as dense, but scattered at random"),
        ("99 % of energy", f"in {percent(rank.effective_share)} of the singular values; mean stable rank {rank.stable_rank:.1f}"),
        *taken,
    ]


def _names(result: Report) -> list[tuple[str, str]]:
    lists = (
        ("only in the target", result.added),
        ("only in the base", result.removed),
        ("other dtype or shape", result.unpaired),
        ("no rank: inf or NaN", result.without_rank),
    )
    return [(what, some(names)) for what, names in lists if names]


def _groups(title: str, groups: dict[str, Counts], result: Report) -> Table:
    table = rows_table(title, "elements", "changed", "")
    most = max((counts.changed / counts.elements for counts in groups.values() if counts.elements), default=0.0) or 1.0
    if result.complete:
        table.add_column(f"|d| > {result.tolerance.atol:g}")
    for name, counts in groups.items():
        bar = Bar(most, 0, counts.changed / counts.elements if counts.elements else 0, width=BAR)
        cells = [f"{counts.elements:,}", share(counts.changed, counts.elements)]
        table.add_row(cell(name), *cells, bar, *([share(counts.elements - counts.within_atol, counts.elements)] * result.complete))
    return table


def _tensors(result: Report) -> Table:
    table = rows_table("tensor", "dtype", "shape", "changed", "one ulp", "rank", "stable rank", "99 % energy", "at random")
    for row in result.tensors:
        c = row.counts
        cells = [row.dtype, "x".join(map(str, row.shape)) or "scalar", share(c.changed, c.elements)]
        table.add_row(cell(row.name), *cells, share(c.one_ulp, c.changed) if result.complete else "", *_rank_cells(row.ranks or ()))
    return table


def _rank_cells(ranks: Iterable[MatrixRank]) -> list[str]:
    rows = list(ranks)
    if not rows:
        return ["", "", "", ""]
    figures = ((r.spectrum.rank, r.spectrum.stable_rank, r.spectrum.effective_rank, r.random_rank) for r in rows)
    mean = [sum(x) / len(rows) for x in zip(*figures, strict=True)]
    return [f"{mean[0]:g} of {rows[0].spectrum.largest}", f"{mean[1]:.1f}", f"{mean[2]:g}", f"{mean[3]:.1f}"]


def written(html: Path | None, png: Path | None) -> None:
    """Say where pictures are."""
    rows = [("page", str(html))] * bool(html) + [("pictures", str(png))] * bool(png)
    if rows:
        console().print()
        print_grid(console(), rows)


def overlapped(result: OverlapResult, series: bool, tensors: bool) -> None:
    """Print overlaps of every two updates as a table, or a run's steps."""
    out = console()
    rows = [("base", result.base), ("elements", f"{result.elements:,} in {len(result.tensors)} tensors")]
    if len(result.names) > 1:
        rows.append(("changed by all", share(result.core, result.elements)))
    if result.left_out:
        rows.append(("left out", some(result.left_out)))
    print_grid(out, rows)
    out.print()
    steps = rows_table("#", "update", "changed", "", *(("since the last", "ever changed", "changed and back") if series else ()))
    most = max((1 - step.sparsity for step in result.steps), default=0) or 1.0
    for k, step in enumerate(result.steps, 1):
        more = [percent(x) for x in (step.since_last, step.ever, step.back)] if series else []
        steps.add_row(str(k), cell(step.name), percent(1 - step.sparsity), Bar(most, 0, 1 - step.sparsity, width=BAR), *more)
    out.print(steps)
    if len(result.names) > 1:
        out.print()
        out.print(_pairs([("", pair) for pair in result.pairs]))
    if tensors and len(result.names) > 1:
        out.print()
        out.print(_pairs([(t.name, result.pair(p.first, p.second, [t])) for t in result.tensors for p in result.pairs]))


def masked(path: Path, mask: Mask, nbytes: int) -> None:
    """Print what went into a mask file."""
    named = sum(math.prod(shape) for shape in mask.shapes.values())
    rows = [("elements", f"{mask.total:,} in {len(mask.bits)} tensors ({share(mask.total, named)} of these)")]
    print_grid(console(), [*rows, ("mask", f"{path} ({size(nbytes)})")])


def _pairs(rows: list[tuple[str, PairOverlap]]) -> Table:
    named = any(name for name, _ in rows)
    heads = ("1", "2", "o1", "at random", "o2", "at random", "Jaccard", "expected", "by size", "same direction")
    table = rows_table(*(("tensor",) if named else ()), *heads)
    for name, p in rows:
        figures = p.to_json()
        cells = ["-" if figures[key] is None else percent(figures[key]) for key in PAIR]
        table.add_row(*((cell(name),) if named else ()), str(p.first + 1), str(p.second + 1), *cells)
    return table

"""Reports and masks as text for a person: compact tables with bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ckptdiff.analysis.matrix_rank import MatrixRank
from ckptdiff.analysis.report_model import Report
from ckptdiff.analysis.sparsity import Counts
from ckptdiff.cli.render import and_more, counted, first_names
from ckptdiff.cli.tables import Cell, Column, print_grid, print_table, print_text
from ckptdiff.pages.chart_data import JsonReport
from ckptdiff.pages.null_prose import null_table_rows, size_words, update_words
from ckptdiff.pages.report_prose import headline, relative_words, sample_words
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.units import byte_size, percent, percent_of, shape_text, short_number, three_digits

TENSOR_COLUMNS = (
    *(Column("tensor", "name"), Column("dtype", order=6), Column("shape", order=7), Column("changed", "number")),
    *(Column("one ulp", "number", 4), Column("rank", "number", 1), Column("stable rank", "number", 2)),
    *(
        Column("… shuffled", "number", 2),
        Column("99 % energy", "number", 3),
        Column("at random", "number", 5),
        Column("size explains", "number", 3),
    ),
)


NULL_COLUMNS = (
    *(Column("beside nulls", "name"), Column("matrices", "number", 3), Column("measured", "number")),
    *(Column("signs flipped", "number", 2), Column("shuffled by size", "number"), Column("verdict", order=1)),
)
IN_PAPER = " (update sparsity in arXiv 2505.11711)"


def print_report(result: Report, tensors: bool) -> None:
    """Print a report: totals, counts by component, kind of module, layer and expert, and with ``tensors`` also by tensor."""
    value = result.to_json() if result.complete else None
    short = [("in short", headline(value))] if value else []
    print_grid(short + _total_rows(result) + _move_rows(result) + _size_rows(value) + _rank_rows(result) + _unpaired_rows(result))
    if value and value["nulls"]:
        print_text()
        print_table(NULL_COLUMNS, null_table_rows(value))
    numbered = {"layer": result.layers, "expert": result.experts}
    groups_of = {"component": result.components, "module": result.modules}
    groups_of |= {title: {str(k): counts for k, counts in groups.items()} for title, groups in numbered.items()}
    for title, groups in groups_of.items():
        if groups:
            print_text()
            _print_groups(title, groups, result)
    if tensors:
        print_text()
        print_table(TENSOR_COLUMNS, [_tensor_row(result, k) for k in range(len(result.tensors))])


def _total_rows(result: Report) -> list[tuple[str, str]]:
    t = result.totals
    rows = [
        ("elements", f"{t.elements:,} in {counted(len(result.tensors), 'tensor')}"),
        ("bit-identical", f"{percent_of(t.bit_identical, t.elements)} (update sparsity by bits)"),
    ]
    if not result.complete:
        return [*rows, ("", "give the base too for tolerances, the size of the moves, and rank")]
    atol, rtol = (short_number(value) for value in (result.tolerance.atol, result.tolerance.rtol))
    empty = relative_words((tensor.dtype for tensor in result.tensors), result.tolerance.rtol)
    return [
        *rows,
        ("equal by value", percent_of(t.equal, t.elements)),
        (f"|d| <= {atol}", percent_of(t.within_atol, t.elements) + (IN_PAPER if result.tolerance.atol == 1e-5 else "")),
        ("as its code has it", f"{percent_of(t.within_atol_rounded, t.elements)} (d is rounded to the dtype first)"),
        (f"|d| <= {rtol} |base|", percent_of(t.within_rtol, t.elements) + (f" ({empty})" if empty else "")),
    ]


def _move_rows(result: Report) -> list[tuple[str, str]]:
    t = result.totals
    if not (result.complete and t.changed):
        return []
    both = f"{percent_of(t.up, t.changed)}, {percent_of(t.down, t.changed)}"
    far = sum(b.count for b in result.ulps if b.low >= 4)
    moved = [("moved by one ulp", t.one_ulp), ("by four or more", far)]
    return [*((label, f"{percent_of(count, t.changed)} of the changed") for label, count in moved), ("up, down", both)]


def _size_rows(value: JsonReport | None) -> list[tuple[str, str]]:
    """How far sizes explain which weights changed, and what the places tell of the updates."""
    if value is None:
        return []
    rows = [("by size", size_words(value)), ("updates", update_words(value))]
    return [(name, words) for name, words in rows if words]


def _rank_rows(result: Report) -> list[tuple[str, str]]:
    taken = [("rank taken of", sample_words(map(asdict, result.sample)))] if result.sample else []
    rank = result.rank
    if rank is None:
        return taken
    others = f" ({rank.unchanged:,} did not change)" if rank.unchanged else ""
    energy = f"in {percent(rank.effective_share)} of the singular values; mean stable rank {three_digits(rank.stable_rank)}"
    return [
        ("mean rank", f"{percent(rank.rank_share)} of the largest possible, over {rank.matrices:,} matrices{others}"),
        ("at random", f"{percent(rank.random_rank_share)} for updates as dense, but scattered at random"),
        ("99 % of energy", energy),
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
    sides = {"": [t.base_dtype for t in result.tensors], "of the target ": [t.target_dtype for t in result.tensors]}
    rows = [
        ("compared", f"{counted(count, 'tensor')} {side}after a cast from {dtype}")
        for side, dtypes in sides.items()
        for dtype, count in Counter(filter(None, dtypes)).items()
    ]
    if result.cast is not None:
        rows.insert(0, ("compared", f"as {result.cast}, but for tensors of other dtypes than F32, F16 and BF16"))
    others = [tensor for tensor in result.tensors if tensor.bases]
    if others:
        told = f"{others[0].label} with {and_more(others[0].bases)}"
        rows.append(("compared", f"{counted(len(others), 'tensor')} with base tensors of other names: {told}"))
    return rows


def _print_groups(title: str, groups: dict[str, Counts], result: Report) -> None:
    shares = {name: counts.changed / counts.elements if counts.elements else 0.0 for name, counts in groups.items()}
    most = max(shares.values()) or 1.0
    columns = [Column(title, "name"), Column("elements", "number", 2), Column("changed", "number"), Column("", "bar", 3)]
    rows: list[list[Cell]] = []
    for name, counts in groups.items():
        rows.append([name, f"{counts.elements:,}", percent_of(counts.changed, counts.elements), shares[name] / most])
        if result.complete:
            rows[-1].append(percent_of(counts.elements - counts.within_atol, counts.elements))
    if result.complete:
        columns.append(Column(f"|d| > {short_number(result.tolerance.atol)}", "number", 1))
    print_table(columns, rows)


def _tensor_row(result: Report, index: int) -> list[Cell]:
    row = result.tensors[index]
    c = row.counts
    one_ulp = percent_of(c.one_ulp, c.changed) if result.complete else ""
    changed = percent_of(c.changed, c.elements)
    explained = row.exponents.explained if row.exponents is not None else None
    return [row.label, row.dtype, shape_text(row.shape), changed, one_ulp, *_rank_cells(row.ranks or ()), percent(explained)]


def _rank_cells(ranks: Iterable[MatrixRank]) -> list[str]:
    """Means over the matrices of a tensor. Ranks are counts, and are not rounded up: what is below full rank must not look full."""
    rows = list(ranks)
    if not rows:
        return ["", "", "", "", ""]
    figures = ((r.spectrum.rank, r.spectrum.stable_rank, r.spectrum.effective_rank, r.random_rank) for r in rows)
    rank, stable, effective, random = (sum(x) / len(rows) for x in zip(*figures, strict=True))
    whole = f"{math.floor(rank):,} of {rows[0].spectrum.largest:,}"
    draws = [draw for r in rows if r.nulls is not None for draw in r.nulls.shuffled.stable_rank]
    shuffled = three_digits(math.fsum(draws) / len(draws)) if draws else ""
    return [whole, three_digits(stable), shuffled, f"{math.floor(effective):,}", f"{math.floor(random):,}"]


def print_pictures(html: Path | None, png: Path | None, *tables: Path) -> None:
    """Print where the page, the pictures and the tables were written."""
    rows = [(what, str(path)) for what, path in (("page", html), ("pictures", png), *(("table", table) for table in tables)) if path]
    if rows:
        print_text()
        print_grid(rows)


def print_mask(path: Path, mask: Mask, nbytes: int) -> None:
    """Print what went into a mask file of ``nbytes`` bytes."""
    named = sum(math.prod(shape) for shape in mask.shapes.values())
    tensors = f"{len(mask.rows):,} of {counted(len(mask.shapes), 'tensor')}"
    rows = [("elements", f"{len(mask):,} in {tensors} ({percent_of(len(mask), named)} of these)")]
    print_grid([*rows, ("mask", f"{path} ({byte_size(nbytes)})")])

"""Overlaps as text for a person: what each update changed, and what every two of them share."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdiff.analysis.overlap import OverlapResult, PairOverlap, TensorOverlap
from ckptdiff.analysis.series import ChainReport
from ckptdiff.cli.render import counted, first_names
from ckptdiff.cli.tables import Cell, Column, fits, print_grid, print_table, print_text
from ckptdiff.pages.overlap_prose import headline
from ckptdiff.units import percent, percent_of, three_digits

PAIR_FIELDS = {
    "o1": Column("o1", "number"),
    "o1_by_size": Column("by size", "number", 1),
    "o1_excess": Column("excess", "number", 1),
    "z": Column("z", "number", 1),
    "random_o1": Column("at random", "number", 5),
    "o2": Column("o2", "number"),
    "o2_by_size": Column("by size", "number", 1),
    "jaccard": Column("Jaccard", "number", 3),
    "same_direction": Column("same direction", "number", 2),
}
SERIES_COLUMNS = (
    *(Column("since the last", "number", 4), Column("ever changed", "number", 5), Column("changed and back", "number", 6)),
    *(Column("kept", "number", 1), Column("kept to the end", "number", 2), Column("of the last", "number", 3)),
)
"""What ``--series`` adds."""
SERIES_LEGEND = (
    "since the last: changed since the checkpoint before; changed and back: changed before, and equal to the base again; kept: of what the "
    "checkpoint before changed, what this one changes too; kept to the end: of what this one changes, what the last does too; of the last: "
    "of what the last changes, what this one does too"
)


PAIR_LEGEND = (
    "by size: by chance among weights of the same size; excess: (o1 - size) / (1 - size); z: deviations of that chance, which is exact; "
    "at random: the weaker chance, among all weights; --json has all of these of o2 and of Jaccard too"
)


def print_overlap(result: OverlapResult, series: bool, tensors: bool) -> None:
    """Print what each update changed and how every two overlap.

    Args:
        result: what was compared.
        series: the updates are checkpoints of one run, in order; print how the update grew, and compare each with the one before and with
            the last one instead of every two.
        tensors: print also the overlaps of every tensor.
    """
    rows = [("in short", headline(result, series)), ("base", result.base)]
    rows += [("elements", f"{result.elements:,} in {counted(len(result.tensors), 'tensor')}")]
    rows += [("compared", f"as {result.cast}")] if result.cast else []
    if len(result.names) > 1:
        rows.append(("changed by all", percent_of(result.core, result.elements)))
    if result.left_out:
        rows.append(("left out", first_names(result.left_out)))
    print_grid(rows)
    print_text()
    _print_steps(result, series)
    if series and result.tensors:
        print_text()
        print_text(SERIES_LEGEND)
    if len(result.names) < 2 or not result.tensors:
        return
    pairs = [p for p in result.pairs if not series or p.second == p.first + 1]
    if not series:
        print_text()
        _print_pairs(result, [(None, pair) for pair in pairs])
        print_text()
        print_text(PAIR_LEGEND)
    if tensors:
        print_text()
        _print_pairs(result, [(tensor, result.pair(p.first, p.second, [tensor])) for tensor in result.tensors for p in pairs])


def _print_steps(result: OverlapResult, series: bool) -> None:
    """What each update changed; with ``series`` also what it shares with the one before and with the last."""
    most = max((1 - step.sparsity for step in result.steps), default=0) or 1.0
    rows: list[list[Cell]] = []
    for k, step in enumerate(result.steps):
        changed = 1 - step.sparsity
        rows.append([f"{k + 1}", step.name, percent(changed), changed / most])
        if series:
            rows[-1] += [*map(percent, (step.since_last, step.ever, step.back)), *_shared_in_series(result, k)]
    columns = [Column("#", "number"), Column("update", "name"), Column("changed", "number"), Column("", "bar", 7)]
    print_table([*columns, *(SERIES_COLUMNS if series else ())], rows)


def _shared_in_series(result: OverlapResult, k: int) -> list[str]:
    """What a checkpoint shares with the one before, and with the last one."""
    if not result.tensors:
        return ["", "", ""]
    last = len(result.names) - 1
    before = result.pair(k - 1, k).to_json()["o1"] if k else None
    end = result.pair(k, last).to_json() if k < last else {"o1": None, "o2": None}
    return [percent(before), percent(end["o1"]), percent(end["o2"])]


def _print_pairs(result: OverlapResult, pairs: Sequence[tuple[TensorOverlap | None, PairOverlap]]) -> None:
    """A row for each two updates, with their names where these fit, else with their numbers in the table above."""
    named = pairs[0][0] is not None
    heads = [Column("tensor", "name")] if named else []
    figures = list(PAIR_FIELDS.values())
    cells: list[list[Cell]] = [[(three_digits if key == "z" else percent)(p.to_json()[key]) for key in PAIR_FIELDS] for _, p in pairs]
    tensors: list[list[Cell]] = [[tensor.name] if tensor is not None else [] for tensor, _ in pairs]
    names: list[list[Cell]] = [[result.names[p.first], result.names[p.second]] for _, p in pairs]
    numbers: list[list[Cell]] = [[f"{p.first + 1}", f"{p.second + 1}"] for _, p in pairs]
    columns = [*heads, Column("first", "name"), Column("second", "name"), *figures]
    rows = [[*a, *b, *c] for a, b, c in zip(tensors, names, cells, strict=True)]
    if not fits(columns, rows):
        columns = [*heads, Column("1st", "number"), Column("2nd", "number"), *figures]
        rows = [[*a, *b, *c] for a, b, c in zip(tensors, numbers, cells, strict=True)]
    print_table(columns, rows)


def print_chain_report(result: ChainReport, tensors: bool) -> None:
    """Print how the update of a chain grew, step by step; ``tensors``: also what the last step changed in every tensor."""
    rows = [("chain", result.chain), ("base", result.base)]
    rows += [("elements", f"{result.elements:,} in {counted(len(result.tensors), 'tensor')}")]
    rows += [("compared", f"as {result.cast}")] if result.cast else []
    if result.left_out:
        rows.append(("left out", first_names(result.left_out)))
    print_grid(rows)
    print_text()
    most = max((1 - step.sparsity for step in result.steps), default=0) or 1.0
    columns = [Column("step", "number"), Column("changed", "number"), Column("", "bar", 4), *SERIES_COLUMNS[:3]]
    cells: list[list[Cell]] = [
        [step.name, percent(1 - step.sparsity), (1 - step.sparsity) / most, *map(percent, (step.since_last, step.ever, step.back))]
        for step in result.steps
    ]
    print_table(columns, cells)
    if tensors:
        print_text()
        heads = [Column("tensor", "name"), Column("elements", "number"), Column("changed", "number"), *SERIES_COLUMNS[:3]]
        counts: list[list[Cell]] = [
            [t.name, f"{t.elements:,}", *(percent_of(int(n[-1]), t.elements) for n in (t.changed, t.since_last, t.ever, t.back))]
            for t in result.tensors
        ]
        print_table(heads, counts)

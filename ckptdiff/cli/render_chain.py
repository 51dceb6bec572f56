"""Chains as text for a person."""

from __future__ import annotations

from ckptdiff.cli.render import counted, first_names, total_rows
from ckptdiff.cli.tables import Cell, Column, digest, print_grid, print_table, print_text
from ckptdiff.units import byte_size, percent_of, size_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command needs its own verb alone
    from ckptdiff.engines.vllm_client import Updated
    from ckptdiff.verbs.chain_add import ChainAddResult
    from ckptdiff.verbs.chain_list import ChainListing
    from ckptdiff.verbs.chain_prune import ChainPruneResult
    from ckptdiff.verbs.chain_restore import ChainRestoreResult
    from ckptdiff.verbs.chain_squash import ChainSquashResult
    from ckptdiff.verbs.chain_verify import ChainVerifyResult

MAX_STEPS = 100
"""Steps that a terminal lists; of more, only the last."""


def print_add(result: ChainAddResult) -> None:
    """Print what ``chain add`` did with each checkpoint."""
    columns = [
        Column("step", "number"),
        Column("checkpoint", "name"),
        Column("state"),
        Column("changed", "number"),
        Column("patch", "number"),
        Column("keyframe", "number", order=1),
        Column("of", "number", order=2),
        Column("files removed", "number", order=3),
    ]
    rows: list[list[Cell]] = []
    for row in result.steps:
        is_added = row.state == "added"
        rows.append(
            [
                str(row.step),
                row.checkpoint,
                row.state,
                percent_of(row.changed, row.units) if is_added else "",
                byte_size(row.patch_size) if is_added else "",
                byte_size(row.keyframe_size) if row.keyframe_size else "",
                byte_size(row.target_size) if row.target_size else "",
                str(row.removed) if row.removed else "",
            ]
        )
    print_table(columns, rows)
    stored = sum(row.patch_size + row.keyframe_size for row in result.steps)
    given = sum(row.target_size for row in result.steps if row.state == "added")
    print_text()
    added = sum(row.state == "added" for row in result.steps)
    sizes = f": {byte_size(stored)} for {byte_size(given)}, {size_ratio(given, stored)}" if added else ""
    base = next((row.checkpoint for row in result.steps if row.state == "base"), None)
    print_grid(
        [
            ("new chain" if result.created else "chain", result.chain),
            ("added", counted(added, "step") + sizes),
            *([("base", f"{base}, which the chain has no copy of: keep it")] if base else ()),
            ("time", f"{result.seconds:.2f} s"),
        ]
    )


def print_listing(result: ChainListing) -> None:
    """Print the steps of a chain."""
    columns = [
        Column("step", "number"),
        Column("kind"),
        Column("changed", "number"),
        Column("patch", "number"),
        Column("keyframe", "number", order=1),
        Column("patches", "number", order=3),
        Column("identity", order=2),
        Column("epoch", "number", order=4),
    ]
    rows: list[list[Cell]] = [
        [
            str(row.step),
            row.kind,
            percent_of(row.changed, row.units),
            byte_size(row.patch_size) if row.patch_size else "",
            byte_size(row.keyframe_size) if row.keyframe_size else "",
            "out of reach" if row.patches is None else str(row.patches),
            digest(row.identity),
            str(row.epoch),
        ]
        for row in result.steps
    ]
    if rows:
        print_table(columns, rows)
        print_text()
    base = digest(result.base_identity) + (f", step {result.base_step}" if result.base_step is not None else "")
    print_grid(
        [
            ("chain", result.chain),
            ("base", base + (f", {result.base_repo}" if result.base_repo else "")),
            ("stored", f"{counted(len(result.steps), 'step')}, {byte_size(result.size)}"),
            ("policy", f"a keyframe where a step would take more than {result.keyframe_every} patches; codec {result.codec or 'auto'}"),
            *((what, first_names(names)) for what in ("torn", "superseded", "foreign") if (names := getattr(result, what))),
        ]
    )


def print_restore(result: ChainRestoreResult) -> None:
    """Print what ``chain restore`` wrote."""
    start = "the chain's base" if result.start is None else f"step {result.start}"
    print_grid(
        [
            ("step", f"{result.step}, from {start} by {len(result.patches)} patch{'es' * (len(result.patches) != 1)}"),
            ("rebuilt", f"{counted(len(result.files), 'file')}, {byte_size(result.size)}: the same bytes as the original"),
            ("time", f"{result.seconds:.2f} s"),
            ("written", str(result.out)),
        ]
    )


def print_verify(result: ChainVerifyResult) -> None:
    """Print the problems of a chain, and what is unusual."""
    for problem in result.problems:
        print_text(f"{problem.kind}: {problem.message}")
    for note in result.notes:
        print_text(f"note: {note}")
    found = counted(len(result.problems), "problem") if result.problems else "no problem"
    print_text(f"{found} in {counted(result.steps, 'step')} of {result.patches:,} patches")


def print_prune(result: ChainPruneResult) -> None:
    """Print what ``chain prune`` removed, or would."""
    would = "would be " if result.dry_run else ""
    dropped = f": {first_names(list(map(str, result.dropped)))}" if result.dropped else ""
    written = f": {byte_size(result.written_size)}" if result.written_size else ""
    print_grid(
        [
            ("chain", result.chain),
            ("kept", f"{counted(len(result.kept), 'step')}: {first_names(list(map(str, result.kept)))}"),
            ("dropped", counted(len(result.dropped), "step") + dropped),
            (f"{would}written", counted(len(result.keyframes), "keyframe") + written),
            (f"{would}removed", f"{byte_size(result.removed_size)} in {len(result.removed):,} patches"),
            ("time", f"{result.seconds:.2f} s"),
        ]
    )


def print_squash(result: ChainSquashResult) -> None:
    """Print what ``chain squash`` wrote."""
    way = "encoded against the first step's checkpoint" if result.through_base else "ulp distances added, without a base"
    size = f"{byte_size(result.patch_size)} for {counted(len(result.patches), 'patch', 'es')} of {byte_size(result.patches_size)}"
    rows = [
        ("steps", f"{result.first} to {result.last}: {way}"),
        ("patch", size),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.patch)),
    ]
    print_grid(total_rows(result.totals) + rows)


def print_followed(updated: Updated) -> None:
    """Print what an update of a served model did."""
    seconds = updated.timings
    print_text(
        f"step {updated.step}: {byte_size(updated.nbytes)}; staged in {1000 * seconds['stage']:.0f} ms, paused for "
        f"{1000 * seconds['paused']:.0f} ms ({1000 * seconds['apply']:.0f} ms to apply)"
    )

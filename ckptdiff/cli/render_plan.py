"""The plans of dry runs as text."""

from __future__ import annotations

from ckptdiff.cli.render import MEANS, counted, first_names, left_out_tensors
from ckptdiff.cli.tables import print_grid
from ckptdiff.patching.work_plan import UNIT_BYTES, Work
from ckptdiff.units import byte_size

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command needs its own verb alone
    from ckptdiff.verbs.plan_apply import ApplyPlan
    from ckptdiff.verbs.plan_make import MakePlan


def print_make_plan(plan: MakePlan) -> None:
    """Print what ``make`` would do."""
    pairs = plan.pairs
    by_means = [f"{count:,} {'by name' if means == 'name' else MEANS[means]}" for means, count in pairs.by_means.items()]
    print_grid(
        [
            ("tensors", ", ".join([*by_means, f"{pairs.new:,} without a base", f"{pairs.removed:,} removed"])),
            ("told from", "headers, and samples of tensors, as names do not agree" if pairs.sampled else "headers alone"),
            *_work_rows(plan.work, plan.threads, "for the SHA-256 of files"),
            (
                "patch",
                f"at most about {byte_size(plan.patch_at_most)} for a target of {byte_size(plan.target_size)}, if nothing is the base's",
            ),
            *_needs(plan.disk_needed, plan.disk_free, plan.memory, plan.threads),
            *_files(plan.weight_files, plan.files),
            *([("left out", first_names(plan.left_out))] if plan.left_out else ()),
            *([("left out", left_out_tensors(plan.left_out_tensors))] if plan.left_out_tensors else ()),
            ("not written", str(plan.patch)),
        ]
    )


def print_apply_plan(plan: ApplyPlan) -> None:
    """Print what ``apply`` would do."""
    kinds = [f"{count:,} {kind}" for kind, count in plan.kinds.items()]
    print_grid(
        [
            ("tensors", ", ".join([*kinds, f"{plan.removed:,} removed"])),
            ("told from", "headers and tables alone: neither the base's content nor payloads are checked"),
            *_work_rows(plan.work, plan.threads, "to check the payloads"),
            ("written", f"{byte_size(plan.out_size)}" + (f", and {byte_size(plan.scratch_size)} on the way" if plan.scratch_size else "")),
            *_needs(plan.disk_needed, plan.disk_free, plan.memory, plan.threads),
            *_files(plan.weight_files, plan.files),
            ("not written", str(plan.out)),
        ]
    )


def _work_rows(work: Work, threads: int, why: str) -> list[tuple[str, str]]:
    most = "" if work.exact else "at most "
    blocks = f"{counted(work.blocks, 'block')} in {counted(work.units, 'unit')} of {byte_size(UNIT_BYTES)} of the target"
    return [
        ("plan", f"{most}{counted(work.jobs, 'job')} on {counted(threads, 'thread')}, {blocks}"),
        ("read", f"{most}{byte_size(work.read)} of tensors and payloads, and {byte_size(work.hashed)} once more {why}"),
    ]


def _needs(needed: int, free: int | None, memory: int, threads: int) -> list[tuple[str, str]]:
    room = "" if free is None else f", {byte_size(free)} free" + ("" if needed <= free else ": NOT ENOUGH")
    return [
        ("disk" if free is not None else "store", f"{byte_size(needed)} needed at most{room}"),
        ("memory", f"about {byte_size(memory)} at most on {counted(threads, 'thread')}"),
    ]


def _files(weights: tuple[str, ...], others: tuple[str, ...]) -> list[tuple[str, str]]:
    return [("weight files", first_names(weights)), *([("other files", first_names(others))] if others else ())]

"""Results as text for a person. Tables are rich's; nothing is computed here but shares."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ckptdiff.errors import visible
from ckptdiff.format.entry import Totals
from ckptdiff.units import share, size, times
from ckptdiff.verbs.apply import ApplyResult
from ckptdiff.verbs.compare import CompareResult
from ckptdiff.verbs.info import PatchInfo
from ckptdiff.verbs.make import MakeResult
from ckptdiff.verbs.verify import VerifyResult

SHOWN = 10


CODE = (".py", ".sh", ".so", ".ipynb", ".js", ".exe", ".dll", ".pkl", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that other tools may run, or unpickle."""


def console() -> Console:
    """stdout; wide where it is not a terminal, so that a row stays a line."""
    out = Console(highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = 1000
    return out


def cell(text: str) -> str:
    return escape(visible(text))


def rows_table(*columns: str) -> Table:
    """A table without lines whose cells fold rather than being cut."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_grid(out: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns: what, and its value."""
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        out.print(f"[bold]{left:>{width}}[/bold]  {cell(right)}", soft_wrap=True)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(map(visible, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def total_rows(totals: Totals) -> list[tuple[str, str]]:
    """Counts of tensors and elements."""
    parts = [f"{totals.same} same", f"{totals.delta} changed", f"{totals.new} added", f"{totals.removed} removed"]
    if totals.copy:
        parts.append(f"{totals.copy} copies of others")
    return [
        ("tensors", ", ".join(parts)),
        ("elements changed", f"{totals.changed:,} of {totals.units:,} ({share(totals.changed, totals.units)})"),
    ]


def made(result: MakeResult) -> None:
    """Print what make did."""
    rows = total_rows(result.totals)
    if result.files:
        rows.append(("other files", some(result.files)))
    if result.removed_files:
        rows.append(("files removed", some(result.removed_files)))
    rows += _file_rows(result)
    rows += [
        (
            "patch",
            f"{size(result.patch_size)} for a target of {size(result.target_size)}: {times(result.target_size, result.patch_size)}",
        ),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.patch)),
    ]
    print_grid(console(), rows)


def _file_rows(result: MakeResult) -> list[tuple[str, str]]:
    """What make has to say of files that did not go in, and of some that did."""
    rows = []
    left_out = [name for name in result.left_out if name not in result.secrets]
    if left_out:
        rows.append(("left out", some(left_out)))
    if result.secrets:
        rows.append(("left out", f"{some(result.secrets)}: named like secrets"))
    if result.followed:
        rows.append(("links followed", some([f"{link} to {to}" for link, to in result.followed.items()])))
    if result.other_formats:
        names = some([f"{name} ({size(stored)} of the patch)" for name, stored in result.other_formats.items()])
        globs = " ".join(f"--exclude '*{end}'" for end in sorted({os.path.splitext(name)[1] for name in result.other_formats}))
        rows.append(("other formats", f"{names}; where they hold the weights once more, leave them out with {globs}"))
    return rows


def may_run(patch: PatchInfo) -> str:
    """Names of files that a patch adds or changes and that other tools may run; empty if there are none."""
    return some([file.path for file in patch.files if file.kind != "same" and file.path.lower().endswith(CODE)])


def applied(result: ApplyResult) -> None:
    """Print what apply did."""
    rows = [
        ("rebuilt", f"{result.tensors} tensors, {size(result.size)}, in {len(result.files)} file{'s' * (len(result.files) != 1)}"),
        ("checked", "patch, base and result agree with their digests"),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(console(), rows)


def described(result: PatchInfo, tensors: bool) -> None:
    """Print what a patch says of itself."""
    out = console()
    rows = [
        ("patch", f"{result.path}: {size(result.patch_size)}, {'folder' if result.is_folder else 'file'}, format 1"),
        ("target", f"{size(result.target_size)}: the patch is {times(result.target_size, result.patch_size)}"),
        *total_rows(result.totals),
        ("base wanted", "identity " + result.base_identity),
    ]
    rows += [("", f"{file['path']} ({size(file['size'])}) SHA-256 {file['sha256']}") for file in result.base_files[:SHOWN]]
    if len(result.base_files) > SHOWN:
        rows.append(("", f"and {len(result.base_files) - SHOWN} more"))
    rows.append(("gives", "identity " + result.target_identity))
    if result.has_report:
        rows.append(("report", f"stored: ckptdiff report {result.path}"))
    if result.removed_tensors:
        rows.append(("removed", some(result.removed_tensors)))
    if result.removed_files:
        rows.append(("files removed", some(result.removed_files)))
    print_grid(out, rows)
    files = rows_table("file", "kind", "size", "in the patch", "SHA-256")
    for file in result.files:
        files.add_row(cell(file.path), file.kind, size(file.size), size(file.stored), file.sha256 or "")
    out.print()
    out.print(files)
    if tensors:
        table = rows_table("tensor", "dtype", "shape", "kind", "codec", "changed", "payload", "base")
        for row in result.tensors:
            base = row.base if row.base not in (None, row.name) else ""
            shape = "x".join(map(str, row.shape)) or "scalar"
            changed = share(row.changed, row.units) if row.kind == "delta" else ""
            cells = (row.dtype, shape, row.kind, row.codec or "", changed, size(row.payload), cell(base or ""))
            table.add_row(cell(row.name), *cells)
        out.print()
        out.print(table)


def verified(result: VerifyResult) -> None:
    """Print problems, or that there is none; of many of one kind the first, as a wrong base is wrong in every tensor."""
    out = console()
    what = "patch" + (" and base" if result.against_base else "") + (" and rebuilt files" if result.against_target else "")
    if result.ok:
        out.print(f"ok: {what}: {result.checked} checks")
        return
    for kind in dict.fromkeys(problem.kind for problem in result.problems):
        alike = [problem for problem in result.problems if problem.kind == kind]
        for problem in alike if len(alike) <= SHOWN else alike[:1]:
            out.print(cell(f"{kind}: {problem.message}"), soft_wrap=True)
        if len(alike) > SHOWN:
            out.print(f"{kind}: {len(alike) - 1} more, which --json lists")
    out.print(f"{len(result.problems)} problem{'s' * (len(result.problems) != 1)} in {result.checked} checks of {what}")


def compared(result: CompareResult, tensors: bool) -> None:
    """Print counts and shares of equal elements."""
    out = console()
    rows = [
        ("tensors in both", str(len(result.tensors))),
        ("elements", f"{result.elements:,}"),
        ("bit-identical", f"{result.identical:,} ({share(result.identical, result.elements)})"),
    ]
    rows += [(f"within {atol:g}", f"{n:,} ({share(n, result.elements)})") for atol, n in zip(result.atol, result.within, strict=True)]
    for label, names in (("only in A", result.only_in_a), ("only in B", result.only_in_b), ("another dtype or shape", result.mismatched)):
        if names:
            rows.append((label, some(names)))
    print_grid(out, rows)
    if tensors:
        within = (f"within {atol:g}" for atol in result.atol)
        table = rows_table("tensor", "dtype", "shape", "elements", "bit-identical", *within)
        for row in result.tensors:
            shares = (share(n, row.elements) for n in (row.identical, *row.within))
            table.add_row(cell(row.name), row.dtype, "x".join(map(str, row.shape)) or "scalar", f"{row.elements:,}", *shares)
        out.print()
        out.print(table)

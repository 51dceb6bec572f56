"""Results as text for a person. Tables are rich's; nothing is computed here but shares."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ckptdiff.applier import ApplyResult
from ckptdiff.comparison import CompareResult
from ckptdiff.maker import MakeResult
from ckptdiff.patchinfo import PatchInfo
from ckptdiff.table import Totals
from ckptdiff.verifier import VerifyResult

SHOWN = 10


def console() -> Console:
    """stdout; as wide as the longest line where it is not a terminal, so that nothing is cut."""
    out = Console(highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 200
    return out


def size(nbytes: int) -> str:
    """A size in decimal units, as the Hub shows it."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def share(part: int, whole: int) -> str:
    """A percentage that never rounds to 0 or 100 unless it is."""
    if whole == 0:
        return "-"
    percent = 100 * part / whole
    for digits in range(2, 8):
        text = f"{percent:.{digits}f}"
        if float(text) not in (0.0, 100.0) or part in (0, whole):
            return f"{text} %"
    return f"{percent:.2g} %"


def grid(rows: Sequence[tuple[str, str]]) -> Table:
    """Two columns: what, and its value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    for left, right in rows:
        table.add_row(left, escape(right))
    return table


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


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
    if result.left_out:
        rows.append(("left out", some(result.left_out) + " (--include GLOB takes them)"))
    rows += [
        ("patch", f"{size(result.patch_size)} for a target of {size(result.target_size)}: {result.ratio:.1f} times smaller"),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.patch)),
    ]
    console().print(grid(rows))


def applied(result: ApplyResult) -> None:
    """Print what apply did."""
    rows = [
        ("rebuilt", f"{result.tensors} tensors, {size(result.size)}, in {len(result.files)} file{'s' * (len(result.files) != 1)}"),
        ("checked", "patch, base and result agree with their digests"),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    console().print(grid(rows))


def described(result: PatchInfo, tensors: bool) -> None:
    """Print what a patch says of itself."""
    out = console()
    rows = [
        ("patch", f"{result.path}: {size(result.patch_size)}, {'folder' if result.is_folder else 'file'}, format 1"),
        ("target", f"{size(result.target_size)}: {result.target_size / max(result.patch_size, 1):.1f} times larger"),
        *total_rows(result.totals),
        ("base wanted", "identity " + result.base_identity),
    ]
    rows += [("", f"{file['path']} ({size(file['size'])}) SHA-256 {file['sha256']}") for file in result.base_files[:SHOWN]]
    if len(result.base_files) > SHOWN:
        rows.append(("", f"and {len(result.base_files) - SHOWN} more"))
    rows.append(("gives", "identity " + result.target_identity))
    if result.removed_tensors:
        rows.append(("removed", some(result.removed_tensors)))
    if result.removed_files:
        rows.append(("files removed", some(result.removed_files)))
    out.print(grid(rows))
    files = Table("file", "kind", "size", "in the patch", "SHA-256", box=None, pad_edge=False)
    for file in result.files:
        files.add_row(escape(file.path), file.kind, size(file.size), size(file.stored), file.sha256)
    out.print()
    out.print(files)
    if tensors:
        rows_table = Table("tensor", "dtype", "shape", "kind", "codec", "changed", "payload", "base", box=None, pad_edge=False)
        for row in result.tensors:
            base = row.base if row.base not in (None, row.name) else ""
            shape = "x".join(map(str, row.shape)) or "scalar"
            changed = share(row.changed, row.units) if row.kind == "delta" else ""
            cells = (row.dtype, shape, row.kind, row.codec or "", changed, size(row.payload), escape(base or ""))
            rows_table.add_row(escape(row.name), *cells)
        out.print()
        out.print(rows_table)


def verified(result: VerifyResult) -> None:
    """Print problems, or that there is none."""
    out = console()
    what = "patch" + (" and base" if result.against_base else "") + (" and rebuilt files" if result.against_target else "")
    if result.ok:
        out.print(f"ok: {what}: {result.checked} checks")
        return
    for problem in result.problems:
        out.print(escape(f"{problem.kind}: {problem.message}"))
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
    out.print(grid(rows))
    if tensors:
        within = (f"within {atol:g}" for atol in result.atol)
        table = Table("tensor", "dtype", "shape", "elements", "bit-identical", *within, box=None, pad_edge=False)
        for row in result.tensors:
            shares = (share(n, row.elements) for n in (row.identical, *row.within))
            table.add_row(escape(row.name), row.dtype, "x".join(map(str, row.shape)) or "scalar", f"{row.elements:,}", *shares)
        out.print()
        out.print(table)

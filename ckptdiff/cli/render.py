"""Results as text for a person, in tables by rich. Nothing is computed here but percentages."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ckptdiff.errors import visible
from ckptdiff.format.entry import Totals
from ckptdiff.units import byte_size, percent_of, shape_text, size_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command needs its own verb alone
    from ckptdiff.verbs.apply import ApplyResult
    from ckptdiff.verbs.compare import CompareResult
    from ckptdiff.verbs.info import PatchInfo
    from ckptdiff.verbs.make import MakeResult
    from ckptdiff.verbs.verify import VerifyResult

MAX_NAMES = 10
"""Names, or problems of one kind, that are listed; of more only the first are."""
RUNNABLE = (".py", ".sh", ".so", ".ipynb", ".js", ".exe", ".dll", ".pkl", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that other tools may run or unpickle."""


def console() -> Console:
    """Standard output; very wide where it is not a terminal, so that each row stays on one line."""
    out = Console(highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = 1000
    return out


def escaped(text: str) -> str:
    """Text that rich prints as it is, with what cannot be seen written out."""
    return escape(visible(text))


def plain_table(*columns: str) -> Table:
    """A table without rules, whose cells are folded rather than cut."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_grid(out: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns: a label, and its value."""
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        out.print(f"[bold]{left:>{width}}[/bold]  {escaped(right)}", soft_wrap=True)


def first_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_NAMES
    return ", ".join(map(visible, names[:MAX_NAMES])) + (f" and {more} more" if more > 0 else "")


def total_rows(totals: Totals, replaced: int = 0, replaced_new: int = 0) -> list[tuple[str, str]]:
    """Counts of tensors and elements; ``replaced`` tensors are stored whole though the base has one, ``replaced_new`` of them as new."""
    changed, added = totals.delta - (replaced - replaced_new), totals.new - replaced_new
    parts = [f"{totals.same} same", f"{changed} changed", f"{added} added", f"{totals.removed} removed"]
    if replaced:
        parts.insert(2, f"{replaced} replaced")
    if totals.copy:
        parts.append(f"{totals.copy} copies of others")
    shares = f"{totals.changed:,} of {totals.units:,} ({percent_of(totals.changed, totals.units)})"
    return [("tensors", ", ".join(parts)), ("elements changed", shares if changes_something(totals) else "none: each tensor is the base's")]


def changes_something(totals: Totals) -> bool:
    """Whether a patch gives any tensor that is not the base's, or leaves one out."""
    return bool(totals.delta or totals.new or totals.copy or totals.removed)


def print_make(result: MakeResult) -> None:
    """Print what ``make`` did."""
    rows = total_rows(result.totals, result.whole.replaced, result.whole.replaced_new) + _pairing_rows(result)
    if result.files:
        rows.append(("other files", first_names(result.files)))
    if result.removed_files:
        rows.append(("files removed", first_names(result.removed_files)))
    rows += _file_rows(result)
    rows += [
        (
            "patch",
            f"{byte_size(result.patch_size)} for a target of {byte_size(result.target_size)}: "
            + (size_ratio(result.target_size, result.patch_size) if changes_something(result.totals) else "no tensor changed"),
        ),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.patch)),
    ]
    print_grid(console(), rows)


MEANS = {
    "rename": "by --rename",
    "content": "by content",
    "parts": "in parts, by content",
    "rows": "row by row, by content",
    "similar name": "by similar names",
    "digest": "by equal content",
}
"""How tensors were paired, by means."""


def _pairing_rows(result: MakeResult) -> list[tuple[str, str]]:
    """Rows about tensors that were paired by other means than their names, and about those that are stored whole."""
    told = []
    for row in result.paired:
        more = f" and {len(row.bases) - 1} more" if len(row.bases) > 1 else ""
        count = f"{row.tensors} tensor{'s' * (row.tensors != 1)}"
        told.append(f"{count} {MEANS[row.means]}: {visible(row.target)} from {visible(row.bases[0])}{more}")
    rows = [("paired", "; ".join(told))] * bool(told)
    whole = result.whole
    stored = whole.replaced + whole.added
    if stored:
        rows.append(
            ("stored whole", f"{stored} tensor{'s' * (stored != 1)} of {byte_size(whole.nbytes)}, {whole.replaced} of them replaced")
        )
    if whole.rename:
        rows.append(
            ("", f"base tensors of the same sizes are left over; if these were trained from them: --rename {shlex.quote(whole.rename)}")
        )
    return rows


def _file_rows(result: MakeResult) -> list[tuple[str, str]]:
    """Rows about files that ``make`` left out, links that it followed, and files that may hold the weights once more."""
    rows = []
    left_out = [name for name in result.left_out if name not in result.secrets]
    if left_out:
        rows.append(("left out", first_names(left_out)))
    if result.secrets:
        rows.append(("left out", f"{first_names(result.secrets)}: named like secrets"))
    if result.followed:
        rows.append(("links followed", first_names([f"{link} to {to}" for link, to in result.followed.items()])))
    if result.other_formats:
        names = first_names([f"{name} ({byte_size(stored)} of the patch)" for name, stored in result.other_formats.items()])
        globs = " ".join(f"--exclude '*{end}'" for end in sorted({os.path.splitext(name)[1] for name in result.other_formats}))
        rows.append(("other formats", f"{names}; where they hold the weights once more, leave them out with {globs}"))
    return rows


def runnable_files(patch: PatchInfo) -> str:
    """Names of the files that a patch adds or changes and that other tools may run; empty if there are none."""
    return first_names([file.path for file in patch.files if file.kind != "same" and file.path.lower().endswith(RUNNABLE)])


def print_apply(result: ApplyResult) -> None:
    """Print what ``apply`` did."""
    rows = [
        ("rebuilt", f"{result.tensors} tensors, {byte_size(result.size)}, in {len(result.files)} file{'s' * (len(result.files) != 1)}"),
        ("checked", "patch, base and result agree with their digests"),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(console(), rows)


def print_info(result: PatchInfo, tensors: bool) -> None:
    """Print what a patch says about itself; with ``tensors`` also every tensor."""
    out = console()
    rows = [
        ("patch", f"{result.path}: {byte_size(result.patch_size)}, {'folder' if result.is_folder else 'file'}, format 1"),
        ("target", f"{byte_size(result.target_size)}: the patch is {size_ratio(result.target_size, result.patch_size)}"),
        *total_rows(result.totals, sum(row.kind == "delta" and row.codec == "raw" for row in result.tensors)),
        ("base wanted", "identity " + result.base_identity),
    ]
    rows += [("", f"{file['path']} ({byte_size(file['size'])}) SHA-256 {file['sha256']}") for file in result.base_files[:MAX_NAMES]]
    if len(result.base_files) > MAX_NAMES:
        rows.append(("", f"and {len(result.base_files) - MAX_NAMES} more"))
    rows.append(("gives", "identity " + result.target_identity))
    if result.has_report:
        rows.append(("report", f"stored: ckptdiff report {result.path}"))
    if result.removed_tensors:
        rows.append(("removed", first_names(result.removed_tensors)))
    if result.removed_files:
        rows.append(("files removed", first_names(result.removed_files)))
    print_grid(out, rows)
    files = plain_table("file", "kind", "size", "in the patch", "SHA-256")
    for file in result.files:
        files.add_row(escaped(file.path), file.kind, byte_size(file.size), byte_size(file.stored), file.sha256 or "")
    out.print()
    out.print(files)
    if tensors:
        table = plain_table("tensor", "dtype", "shape", "kind", "codec", "changed", "payload", "base")
        for row in result.tensors:
            bases = "" if row.bases == (row.name,) else escaped(", ".join(row.bases[:MAX_NAMES]))
            changed = percent_of(row.changed, row.units) if row.kind == "delta" else ""
            cells = (row.dtype, shape_text(row.shape), row.kind, row.codec or "", changed, byte_size(row.payload), bases)
            table.add_row(escaped(row.name), *cells)
        out.print()
        out.print(table)


def print_verify(result: VerifyResult) -> None:
    """Print the problems, or that there are none.

    Of many problems of one kind only the first is printed: a wrong base is wrong in every tensor.
    """
    out = console()
    what = "patch" + (" and base" if result.against_base else "") + (" and rebuilt files" if result.against_target else "")
    if result.ok:
        out.print(f"ok: {what}: {result.checked} checks")
        return
    for kind in dict.fromkeys(problem.kind for problem in result.problems):
        alike = [problem for problem in result.problems if problem.kind == kind]
        for problem in alike if len(alike) <= MAX_NAMES else alike[:1]:
            out.print(escaped(f"{kind}: {problem.message}"), soft_wrap=True)
        if len(alike) > MAX_NAMES:
            out.print(f"{kind}: {len(alike) - 1} more, which --json lists")
    out.print(f"{len(result.problems)} problem{'s' * (len(result.problems) != 1)} in {result.checked} checks of {what}")


def print_compare(result: CompareResult, tensors: bool) -> None:
    """Print counts and shares of equal elements; with ``tensors`` also those of every tensor."""
    out = console()
    count = len(result.tensors) + len(result.only_in_a) + len(result.only_in_b) + len(result.mismatched)
    verdict = f"{result.differing} of {count} tensors differ" if result.differing else "identical tensors, in files that differ"
    verdict += ", in names, dtypes or shapes alone" if result.differing and result.renamed else ""
    rows = [
        ("verdict", "identical files" if result.same_files else verdict),
        ("tensors in both", str(len(result.tensors))),
        ("elements", f"{result.elements:,}"),
        ("bit-identical", f"{result.identical:,} ({percent_of(result.identical, result.elements)})"),
    ]
    rows += [(f"within {atol:g}", f"{n:,} ({percent_of(n, result.elements)})") for atol, n in zip(result.atol, result.within, strict=True)]
    cast = Counter(row.other_dtype for row in result.tensors if row.other_dtype)
    rows += [("compared", f"{n} tensors after a cast from {dtype}") for dtype, n in cast.items()]
    others = [row for row in result.tensors if row.others]
    if others:
        more = f" and {len(others[0].others) - 1} more" if len(others[0].others) > 1 else ""
        rows.append(
            ("compared", f"{len(others)} tensors of other names: {visible(others[0].name)} with {visible(others[0].others[0])}{more}")
        )
    apart = (("only in A", result.only_in_a), ("only in B", result.only_in_b), ("cannot be compared", result.mismatched))
    rows += [(label, first_names(names)) for label, names in apart if names]
    print_grid(out, rows)
    if tensors:
        within = (f"within {atol:g}" for atol in result.atol)
        table = plain_table("tensor", "dtype", "shape", "elements", "bit-identical", *within)
        for row in result.tensors:
            shares = (percent_of(n, row.elements) for n in (row.identical, *row.within))
            table.add_row(escaped(row.name), row.dtype, shape_text(row.shape), f"{row.elements:,}", *shares)
        out.print()
        out.print(table)

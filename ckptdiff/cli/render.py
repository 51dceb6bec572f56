"""Results as text for a person. Nothing is computed here but percentages."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence

from ckptdiff.cli.options import print_note
from ckptdiff.cli.tables import Cell, Column, digest, print_grid, print_table, print_text
from ckptdiff.errors import visible
from ckptdiff.format.entry import Totals
from ckptdiff.units import byte_size, percent_of, shape_text, short_number, size_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command needs its own verb alone
    from ckptdiff.io.store_traffic import Traffic
    from ckptdiff.verbs.apply import ApplyResult
    from ckptdiff.verbs.compare import CompareResult
    from ckptdiff.verbs.compose import ComposeResult
    from ckptdiff.verbs.info import PatchInfo
    from ckptdiff.verbs.make import MakeResult
    from ckptdiff.verbs.verify import VerifyResult

MAX_NAMES = 10
"""Names, or problems of one kind, that are listed; of more only the first are."""
RUNNABLE = (".py", ".sh", ".so", ".ipynb", ".js", ".exe", ".dll", ".pkl", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that other tools may run or unpickle."""


def counted(count: int, noun: str, plural: str = "s") -> str:
    """A number of things, such as ``1 tensor`` or ``1,024 tensors``."""
    return f"{count:,} {noun}{plural * (count != 1)}"


def first_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_NAMES
    return ", ".join(map(visible, names[:MAX_NAMES])) + (f" and {more:,} more" if more > 0 else "")


def left_out_tensors(names: Sequence[str]) -> str:
    """What of a checkpoint of torch.distributed.checkpoint is left out."""
    return f"{len(names):,} entr{'y' if len(names) == 1 else 'ies'} of optimizer and other state, such as {visible(names[0])}"


def and_more(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return visible(names[0]) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def total_rows(totals: Totals, replaced: int = 0, replaced_new: int = 0) -> list[tuple[str, str]]:
    """Counts of tensors and elements; ``replaced`` tensors are stored whole though the base has one, ``replaced_new`` of them as new."""
    changed, added = totals.delta - (replaced - replaced_new), totals.new - replaced_new
    parts = [f"{totals.same:,} same", f"{changed:,} changed", f"{added:,} added", f"{totals.removed:,} removed"]
    if replaced:
        parts.insert(2, f"{replaced:,} replaced")
    if totals.copy:
        parts.append(f"{totals.copy:,} copies of others")
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
        rows.append(("not in the target", first_names(result.removed_files)))
    rows += _file_rows(result)
    rows += [
        (
            "patch",
            f"{byte_size(result.patch_size)} for a target of {byte_size(result.target_size)}: "
            + (size_ratio(result.target_size, result.patch_size) if changes_something(result.totals) else "no tensor changed"),
        ),
        *([("report", f"{byte_size(result.report_size)} of the patch")] if result.report_size else ()),
        *traffic_rows(result.traffic),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.patch)),
    ]
    print_grid(rows)


def print_compose(result: ComposeResult) -> None:
    """Print what ``compose`` did."""
    size = f"{byte_size(result.patch_size)} for {counted(result.patches, 'patch', 'es')} of {byte_size(result.patches_size)}"
    rows = [("patch", size), ("time", f"{result.seconds:.2f} s"), ("written", str(result.patch))]
    print_grid(total_rows(result.totals) + rows)


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
    told = [
        f"{counted(row.tensors, 'tensor')} {MEANS[row.means]}: {visible(row.target)} from {and_more(row.bases)}" for row in result.paired
    ]
    rows = [("paired", "; ".join(told))] * bool(told)
    alike = next((row.alike for row in result.paired if row.alike), ())
    if alike:
        rows.append(("", f"--rename gives {first_names(alike)} one and the same base tensor: is the rule too broad?"))
    whole = result.whole
    stored = whole.replaced + whole.added
    if stored:
        rows.append(("stored whole", f"{counted(stored, 'tensor')} of {byte_size(whole.nbytes)}, {whole.replaced:,} of them replaced"))
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
    if result.left_out_tensors:
        rows.append(("left out", left_out_tensors(result.left_out_tensors)))
    if result.secrets:
        rows.append(("left out", f"{first_names(result.secrets)}: named like secrets"))
    if result.followed:
        rows.append(("links followed", first_names([f"{link} to {to}" for link, to in result.followed.items()])))
    if result.other_formats:
        names = first_names([f"{name} ({byte_size(stored)} of the patch)" for name, stored in result.other_formats.items()])
        globs = " ".join(f"--exclude '*{end}'" for end in sorted({os.path.splitext(name)[1] for name in result.other_formats}))
        rows.append(("other formats", f"{names}; where they hold the weights once more, leave them out with {globs}"))
    return rows


def note_runnable(paths: list[str]) -> None:
    """Name, on standard error, the files that other tools may run or unpickle."""
    if names := first_names([path for path in paths if path.lower().endswith(RUNNABLE)]):
        print_note(f"the patch gives files that other tools may run, read them before you use them: {names}")


def traffic_rows(traffic: Traffic) -> list[tuple[str, str]]:
    """A row about what was asked of stores, if anything was."""
    sizes = f"{byte_size(traffic.read)} read, {byte_size(traffic.written)} written"
    return [("stores", f"{counted(traffic.requests, 'request')}, {sizes}")] * bool(traffic.requests)


def print_apply(result: ApplyResult) -> None:
    """Print what ``apply`` did."""
    rows = [
        ("rebuilt", f"{counted(result.tensors, 'tensor')}, {byte_size(result.size)}, in {counted(len(result.files), 'file')}"),
        ("checked", "patch, base and result agree with their digests"),
        *traffic_rows(result.traffic),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(rows)


def print_info(result: PatchInfo, tensors: bool) -> None:
    """Print what a patch says about itself; with ``tensors`` also every tensor."""
    rows = [
        ("patch", f"{result.path}: {byte_size(result.patch_size)}, {'folder' if result.is_folder else 'file'}, format 1"),
        ("target", f"{byte_size(result.target_size)}: the patch is {size_ratio(result.target_size, result.patch_size)}"),
        *total_rows(result.totals, result.replaced),
        *_origin_rows(result),
    ]
    if result.has_report:
        rows.append(("report", f"stored: ckptdiff report {shlex.quote(str(result.path))}"))
    if result.removed_tensors:
        rows.append(("removed", first_names(result.removed_tensors)))
    if result.removed_files:
        rows.append(("not in the target", first_names(result.removed_files)))
    print_grid(rows)
    columns = [Column("file", "name"), Column("kind", order=2), Column("size", "number", 1), Column("in the patch", "number")]
    files: list[list[Cell]] = [
        [file.path, file.kind, byte_size(file.size), byte_size(file.stored), digest(file.sha256 or "")] for file in result.files
    ]
    print_text()
    print_table([*columns, Column("SHA-256", order=3)], files)
    if tensors:
        print_text()
        _print_tensors(result)


def _origin_rows(result: PatchInfo) -> list[tuple[str, str]]:
    """Which base the patch needs, and what it gives: identities, the base's files, and repos on the Hub."""
    rows = [("base wanted", f"identity {digest(result.base_identity)}")]
    if result.base_repo is not None:
        rows.append(("", f"on the Hub: {result.base_repo}"))
    rows += [("", f"{file['path']} ({byte_size(file['size'])}) SHA-256 {digest(file['sha256'])}") for file in result.base_files[:MAX_NAMES]]
    if len(result.base_files) > MAX_NAMES:
        rows.append(("", f"and {len(result.base_files) - MAX_NAMES:,} more"))
    rows.append(("gives", f"identity {digest(result.target_identity)}"))
    if result.target_repo is not None:
        rows.append(("", f"on the Hub: {result.target_repo}"))
    return rows


def _print_tensors(result: PatchInfo) -> None:
    columns = [
        *(Column("tensor", "name"), Column("dtype", order=3), Column("shape", order=4), Column("kind", order=1), Column("codec", order=5)),
        *(Column("changed", "number"), Column("payload", "number", 2), Column("base", "name", 6)),
    ]
    rows: list[list[Cell]] = []
    for row in result.tensors:
        bases = "" if row.bases == (row.name,) else first_names(row.bases)
        changed = percent_of(row.changed, row.units) if row.kind == "delta" else ""
        rows.append([row.name, row.dtype, shape_text(row.shape), row.kind, row.codec or "", changed, byte_size(row.payload), bases])
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows)


def print_verify(result: VerifyResult) -> None:
    """Print the problems, or that there are none.

    Of many problems of one kind only the first is printed: a wrong base is wrong in every tensor.
    """
    checks = counted(result.checked, "check")
    what = " and ".join(
        ["checkpoint and repo"]
        if result.against_hub
        else ["patch", *["base"] * result.against_base, *["rebuilt files"] * result.against_target]
    )
    if result.ok:
        print_text(f"ok: {what}: {checks}")
        return
    for kind in dict.fromkeys(problem.kind for problem in result.problems):
        alike = [problem for problem in result.problems if problem.kind == kind]
        for problem in alike if len(alike) <= MAX_NAMES else alike[:1]:
            print_text(f"{kind}: {problem.message}")
        if len(alike) > MAX_NAMES:
            print_text(f"{kind}: {len(alike) - 1:,} more, which --json lists")
    print_text(f"{counted(len(result.problems), 'problem')} in {checks} of {what}")


def print_compare(result: CompareResult, tensors: bool) -> None:
    """Print counts and shares of equal elements; with ``tensors`` also those of every tensor."""
    count = len(result.tensors) + len(result.only_in_a) + len(result.only_in_b) + len(result.mismatched)
    verdict = (
        f"{result.differing:,} of {counted(count, 'tensor')} differ" if result.differing else "identical tensors, in files that differ"
    )
    verdict += ", in names, dtypes or shapes alone" if result.differing and result.renamed else ""
    rows = [
        ("verdict", "identical files" if result.same_files else verdict),
        ("tensors in both", f"{len(result.tensors):,}"),
        ("elements", f"{result.elements:,}"),
    ]
    tolerances = [f"within {short_number(atol)}" for atol in result.atol]
    counts = zip(("bit-identical", *tolerances), (result.identical, *result.within), strict=True)
    rows += [(label, f"{n:,} ({percent_of(n, result.elements)})") for label, n in counts]
    cast = Counter(row.other_dtype for row in result.tensors if row.other_dtype)
    rows += [("compared", f"{counted(n, 'tensor')} after a cast from {dtype}") for dtype, n in cast.items()]
    others = [row for row in result.tensors if row.others]
    if others:
        told = f"{visible(others[0].name)} with {and_more(others[0].others)}"
        rows.append(("compared", f"{counted(len(others), 'tensor')} of other names: {told}"))
    apart = (("only in A", result.only_in_a), ("only in B", result.only_in_b), ("cannot be compared", result.mismatched))
    rows += [(label, first_names(names)) for label, names in apart if names]
    print_grid(rows)
    if tensors:
        print_text()
        columns = [Column("tensor", "name"), Column("dtype", order=3), Column("shape", order=4), Column("elements", "number", 2)]
        shares = [Column("bit-identical", "number"), *(Column(text, "number", 1) for text in tolerances)]
        table: list[list[Cell]] = [
            [
                *(row.name, row.dtype, shape_text(row.shape), f"{row.elements:,}"),
                *(percent_of(n, row.elements) for n in (row.identical, *row.within)),
            ]
            for row in result.tensors
        ]
        print_table([*columns, *shares], table)

"""What ``push`` and ``pull`` did, as text for a person."""

from __future__ import annotations

from ckptdiff.cli.render import cell, console, print_grid, rows_table
from ckptdiff.units import size
from ckptdiff.verbs.pull import PullResult
from ckptdiff.verbs.push import PushResult


def pushed(result: PushResult) -> None:
    """Print every file that was sent, or would be, and where to."""
    out = console()
    table = rows_table("file", "size")
    for path, nbytes in result.files.items():
        table.add_row(cell(path), size(nbytes))
    for path in result.deleted:
        table.add_row(cell(path), "deleted")
    out.print(table)
    out.print()
    if result.commit is None:
        print_grid(out, [("dry run", f"nothing was sent: {size(result.size)} in {len(result.files)} files for {result.repo}")])
        out.print()
        for line in result.card.splitlines():
            out.print(cell(line), soft_wrap=True)
        return
    rows = [("sent", f"{size(result.size)} in {len(result.files)} files"), ("commit", result.commit.url)]
    if result.commit.pull_request:
        rows.append(("pull request", result.commit.pull_request))
    print_grid(out, [*rows, ("rebuild it", f"ckptdiff pull {result.repo} -o OUT")])


def pulled(result: PullResult) -> None:
    """Print what was rebuilt, and from what."""
    rows = [("base", result.base), *(("patch", patch) for patch in result.patches)]
    rows += [
        ("rebuilt", f"{len(result.files)} files, {size(result.size)}, {'SHA-256' if result.verified else 'digests'} as the patch states"),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(console(), rows)

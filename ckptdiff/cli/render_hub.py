"""Results of ``push`` and ``pull`` as text for a person."""

from __future__ import annotations

from ckptdiff.cli.render import console, escaped, plain_table, print_grid
from ckptdiff.units import byte_size
from ckptdiff.verbs.pull import PullResult
from ckptdiff.verbs.push import PushResult


def print_push(result: PushResult) -> None:
    """Print every file that was sent, or would be sent, and where it went."""
    out = console()
    table = plain_table("file", "size")
    for path, nbytes in result.files.items():
        table.add_row(escaped(path), byte_size(nbytes))
    for path in result.deleted:
        table.add_row(escaped(path), "deleted")
    out.print(table)
    out.print()
    if result.commit is None:
        print_grid(out, [("dry run", f"nothing was sent: {byte_size(result.size)} in {len(result.files)} files for {result.repo}")])
        out.print()
        for line in result.card.splitlines():
            out.print(escaped(line), soft_wrap=True)
        return
    rows = [("sent", f"{byte_size(result.size)} in {len(result.files)} files"), ("commit", result.commit.url)]
    if result.commit.pull_request:
        rows.append(("pull request", result.commit.pull_request))
    print_grid(out, [*rows, ("rebuild it", f"ckptdiff pull {result.repo} -o OUT")])


def print_pull(result: PullResult) -> None:
    """Print what was rebuilt, and from which base and patches."""
    rows = [("base", result.base), *(("patch", patch) for patch in result.patches)]
    rows += [
        (
            "rebuilt",
            f"{len(result.files)} files, {byte_size(result.size)}, {'SHA-256' if result.verified else 'digests'} as the patch states",
        ),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(console(), rows)

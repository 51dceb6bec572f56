"""Results of ``push`` and ``pull`` as text for a person."""

from __future__ import annotations

from ckptdiff.cli.render import counted
from ckptdiff.cli.tables import Column, print_grid, print_table, print_text
from ckptdiff.units import byte_size

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command needs its own verb alone
    from ckptdiff.verbs.pull import PullResult
    from ckptdiff.verbs.push import PushResult


def print_push(result: PushResult) -> None:
    """Print every file that was sent, or would be sent, and where it went."""
    files = [(path, byte_size(nbytes)) for path, nbytes in result.files.items()]
    print_table([Column("file", "name"), Column("size", "number")], [*files, *((path, "deleted") for path in result.deleted)])
    print_text()
    size = f"{byte_size(result.size)} in {counted(len(result.files), 'file')}"
    if result.commit is None:
        print_grid([("dry run", f"nothing was sent: {size} for {result.repo}")])
        print_text()
        for line in result.card.splitlines():
            print_text(line)
        return
    rows = [("sent", size), ("commit", result.commit.url)]
    if result.commit.pull_request:
        rows.append(("pull request", result.commit.pull_request))
    print_grid([*rows, ("rebuild it", f"ckptdiff pull {result.repo} -o OUT")])


def print_pull(result: PullResult) -> None:
    """Print what was rebuilt, and from which base and patches."""
    checked = "SHA-256" if result.verified else "digests"
    rows = [("base", result.base), *(("patch", patch) for patch in result.patches)]
    rows += [
        ("rebuilt", f"{counted(len(result.files), 'file')}, {byte_size(result.size)}, {checked} as the patch states"),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(rows)

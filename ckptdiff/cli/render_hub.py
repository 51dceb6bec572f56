"""Results of ``push`` and ``pull`` as text for a person."""

from __future__ import annotations

from ckptdiff.cli.render import counted, traffic_rows
from ckptdiff.cli.tables import Column, print_grid, print_table, print_text
from ckptdiff.units import byte_size

TYPE_CHECKING = False
if TYPE_CHECKING:  # a command needs its own verb alone
    from ckptdiff.verbs.chain_pull import ChainPullResult
    from ckptdiff.verbs.chain_push import ChainPushResult
    from ckptdiff.verbs.pull import PullResult
    from ckptdiff.verbs.push import PushResult

FILE_COLUMNS = (Column("file", "name"), Column("size", "number"))


def print_push(result: PushResult) -> None:
    """Print every file that was sent, or would be sent, and where it went."""
    files = [(path, byte_size(nbytes)) for path, nbytes in result.files.items()]
    print_table(FILE_COLUMNS, [*files, *((path, "deleted") for path in result.deleted)])
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
        *traffic_rows(result.traffic),
        ("time", f"{result.seconds:.2f} s"),
        ("written", str(result.out)),
    ]
    print_grid(rows)


def print_chain_push(result: ChainPushResult) -> None:
    """Print what of a chain was sent, or would be sent, and where it went."""
    if result.files:
        print_table(FILE_COLUMNS, [(path, byte_size(nbytes)) for path, nbytes in result.files.items()])
        print_text()
    size = f"{byte_size(result.size)} in {counted(len(result.files), 'file')}; {counted(result.present, 'file')} there already"
    rows = [("sent" if result.commits else "not sent", size), *(("commit", commit.url) for commit in result.commits)]
    print_grid([*rows, ("fetch it", f"ckptdiff pull {result.repo} -o CHAIN")])


def print_chain_pull(result: ChainPullResult) -> None:
    """Print what of a chain was fetched."""
    print_grid(
        [
            ("chain", f"{counted(result.steps, 'step')} of {result.repo}"),
            ("fetched", f"{counted(result.files, 'file')}, {byte_size(result.size)}; {counted(result.present, 'file')} there already"),
            ("time", f"{result.seconds:.2f} s"),
            ("written", str(result.out)),
        ]
    )

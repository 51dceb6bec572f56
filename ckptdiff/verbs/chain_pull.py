"""``pull`` of a chain on the Hub, or of one of its steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.chain.documents import read_chain
from ckptdiff.chain.history import History, patch_files, read_history
from ckptdiff.chain.hub_store import counting_patches, holds_chain, in_batches, repo_store
from ckptdiff.chain.names import CHAIN, HEAD, PatchName
from ckptdiff.chain.retention import find_step
from ckptdiff.errors import CheckpointError, IntegrityError, OutputError
from ckptdiff.hub.client import use_token
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import Repo, download, open_repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.store import FolderStore
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.patching.output import check_space
from ckptdiff.verbs.chain_parts import find_base, plan_of
from ckptdiff.verbs.verify import verify

FILES_AT_ONCE = 100
"""Files that are fetched at once, unless one patch has more."""


@dataclass(frozen=True, slots=True)
class ChainPullResult:
    """The result of :func:`chain_pull`. Sizes are in bytes."""

    out: Path
    """The chain's folder."""
    repo: str
    """Id of the repo, at its commit."""
    steps: int
    """Number of steps."""
    files: int
    """Number of files that were fetched."""
    size: int
    present: int
    """Number of files that the folder had already."""
    seconds: float
    """Wall time."""


def chain_pull(
    repo_id: str,
    out: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> ChainPullResult:
    """Fetch a chain from the Hugging Face Hub; or what a folder lacks of it. Torn and superseded patches are left there.

    Each patch is verified before it goes into the folder. What the folder has by name and size is not fetched again, and never changed; so
    a run that was stopped is completed by the next one.

    Args:
        repo_id: ``org/name``, ``org/name@revision`` or ``hf://...`` of a chain.
        out: the chain's folder: a new one, or one that was pulled before.
        revision, token: as of :func:`ckptdiff.pull`.
        threads, progress: used while patches are verified.

    Raises:
        HubError: the repo is missing or gated, or cannot be read. CheckpointError: it holds no chain. FormatError, UnsupportedError,
            IntegrityError: the chain is broken, or a patch. OutputError: ``out`` is another chain, not empty, or there is no room.
        StoreError: ``out`` cannot be written.
    """
    watch, local = Stopwatch(), FolderStore(Path(out))
    with use_token(token):
        repo = open_repo(hub_id_of(repo_id, revision))
        history = history_in(repo)
        _check_out(local, history)
        there = local.objects("")
        wanted = {key for key, file in repo.files.items() if there.get(key) != file.size}
        names = counting_patches(history)
        batches = in_batches(history, names, lambda key: key in wanted and key in repo.files and key != HEAD, FILES_AT_ONCE)
        keys = [key for batch in batches for key in batch]
        size = sum(repo.files[key].size for key in keys)
        check_space(local.root, size)
        done = 0
        for batch in batches:
            fetched = download(repo, _with_whole_patches(history, names, batch))
            _put(local, fetched, batch, names, threads)
            done += sum(repo.files[key].size for key in batch)
            progress("fetching the chain", done, max(size, 1))
        if HEAD in repo.files:
            local.replace(HEAD, (download(repo, [HEAD]) / HEAD).read_bytes())
    present = sum(key in there and key not in wanted for name in names for key in patch_files(history, name))
    return ChainPullResult(local.root, str(repo.pinned), len(history.steps), len(keys), size, present, watch.seconds())


def hub_id_of(repo_id: str, revision: str | None) -> HubId:
    """The id that is meant; raises CheckpointError if the text is none."""
    hub_id = parse_id(repo_id)
    if hub_id is None:
        raise CheckpointError(f"{repo_id!r}: expected the id of a repo on the Hub, as org/name; for a patch here: ckptdiff apply")
    return hub_id if revision is None else HubId(hub_id.repo, revision, hub_id.subfolder)


def is_chain_id(repo_id: str, revision: str | None = None, token: str | None = None) -> bool:
    """Whether a repo on the Hub holds a chain.

    Raises:
        HubError: there is no such repo or revision, or it cannot be read.
    """
    with use_token(token):
        return holds_chain(open_repo(hub_id_of(repo_id, revision)))


def history_in(repo: Repo) -> History:
    """The history of the chain in a repo; raises CheckpointError if it has none, and as :func:`~ckptdiff.chain.history.read_history`."""
    if not holds_chain(repo):
        raise CheckpointError(f"{repo.pinned}: holds no chain: it has no {CHAIN}; for a patch leave out --step")
    return read_history(repo_store(repo))


def patches_of_step(
    repo: Repo, step: int, base: str | os.PathLike[str] | None, threads: int | None, progress: Progress
) -> tuple[str, list[str]]:
    """The checkpoint from which a step of the chain in a repo is rebuilt, and the patches that do it, fetched into the Hub's cache.

    Raises:
        CheckpointError: there is no such step, or no base, or the base is that step itself. BaseMismatchError: the base is another one.
        FormatError, UnsupportedError, IntegrityError: the chain is broken. HubError: the repo cannot be read.
    """
    history = history_in(repo)
    at = find_step(history, step)
    known = find_base(history, base, threads, progress, at)
    plan = plan_of(history, at, known.start)
    if not plan:
        raise CheckpointError(f"{known.path}: is that step itself: copy it")
    folder = download(repo, [key for name in plan for key in patch_files(history, name)])
    return known.path, [str(folder / name.key) for name in plan]


def _check_out(local: FolderStore, history: History) -> None:
    """Raise OutputError unless a folder is new, or holds some of this chain."""
    mine, there = read_chain(local), local.objects("")
    if mine is None and there:
        raise OutputError(f"{local.name}: is not a chain, and not empty: it has {next(iter(there))}; choose another place")
    if mine is not None and mine != history.chain:
        raise OutputError(f"{local.name}: holds another chain; choose another place")


def _with_whole_patches(history: History, names: Sequence[PatchName], batch: Sequence[str]) -> list[str]:
    """The objects of a batch, and all others of the patches that they are of, which are fetched to be verified."""
    chosen = set(batch)
    return sorted(chosen.union(*(keys for name in names if not chosen.isdisjoint(keys := patch_files(history, name)))))


def _put(local: FolderStore, fetched: Path, batch: Sequence[str], names: Sequence[PatchName], threads: int | None) -> None:
    """Verify the patches that a batch completes, and put its objects into the chain in order.

    Raises:
        IntegrityError: a patch is broken. OutputError: there is another file of that name. StoreError: it cannot be written.
    """
    for name in names:
        if name.marker in batch:
            problems = verify(fetched / name.key, threads=threads).problems
            if problems:
                raise IntegrityError(f"{name.key}: was fetched, but does not verify: {problems[0].message}")
    for key in batch:
        if not local.put_file(key, (fetched / key).resolve()):
            raise OutputError(f"{local.name}/{key}: is not the file that the Hub has: move it away, and run again")

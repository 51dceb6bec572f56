"""``pull`` rebuilds a model from a patch on the Hub, the base that the patch is pinned to, and all patches in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ckptdiff.chain.hub_store import holds_chain
from ckptdiff.checkpoint.recognition import check_exists
from ckptdiff.errors import CheckpointError
from ckptdiff.hub.client import use_token
from ckptdiff.hub.repo import open_repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.places import Place, place_of
from ckptdiff.io.store_traffic import TRAFFIC, Traffic
from ckptdiff.io.workers import open_workers
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.patching.output import told_of_unfinished
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.provenance import PatchRecord, resolve_chain
from ckptdiff.verbs.apply import Step, apply_steps
from ckptdiff.verbs.chain_pull import hub_id_of, patches_of_step
from ckptdiff.verbs.verify import check_built


@dataclass(frozen=True, slots=True)
class PullResult:
    """The result of :func:`pull`."""

    out: Place
    """The folder or file that was written."""
    base: str
    """The checkpoint that the first patch was applied to."""
    patches: tuple[str, ...]
    """Ids of the patches, in the order in which they were applied."""
    files: tuple[str, ...]
    """Paths of the files in the folder, or the name of the file."""
    size: int
    """Bytes of all files."""
    verified: bool
    """Whether every file has the SHA-256 that the patch states. The digests of tensors were compared in any case."""
    notes: tuple[str, ...]
    """What was unusual, in sentences for people."""
    seconds: float
    """Wall time."""
    traffic: Traffic
    """Requests to stores, and bytes both ways."""


def pull(
    repo_id: str,
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    only: Sequence[str] = (),
    token: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Progress = no_progress,
    listed: Callable[[list[str]], None] = lambda paths: None,
    noted: Callable[[str], None] = lambda text: None,
) -> PullResult:
    """Rebuild a model from a patch on the Hugging Face Hub and the base that it names.

    Everything is found and compared by metadata before anything large is fetched; ``out`` appears only when it is whole and right.

    Args:
        repo_id: ``org/name``, ``org/name@revision`` or ``hf://...`` of a repo with a patch.
        step: the step to rebuild, of a repo that holds a chain (for all of it: :func:`ckptdiff.chain_pull`).
        out: the folder to write, as a path or a URL, or the file if the patch is a lone patch file or ``only`` is given.
        base: a checkpoint, as a path or an id on the Hub, to use instead of the one that the patch names.
        revision: branch, tag or commit of the patch, instead of ``@revision`` in the id.
        only: globs of tensor names; only these tensors are rebuilt, and no other payloads are fetched.
        token: access token for the Hub, instead of ``HF_TOKEN`` or the stored one.
        threads, overwrite, fresh, progress, listed, noted: as in :func:`ckptdiff.apply`.

    Raises:
        HubError: a repo or revision is missing or gated, or has changed. Other errors are those of :func:`ckptdiff.apply`.
    """
    watch, before, place = Stopwatch(), TRAFFIC.total(), place_of(out)
    hub_id = hub_id_of(repo_id, revision)
    with use_token(token), told_of_unfinished(place):
        if base is not None:
            check_exists(base)
        notes: list[str] = []
        repo = open_repo(hub_id)
        if step is not None:
            origin, patches = patches_of_step(repo, step, base, threads, progress)
            with open_patch(patches[-1]) as last:
                states_sha256 = PatchRecord.of(patches[-1], last).states_sha256
        elif holds_chain(repo):
            raise CheckpointError(f"{repo.pinned}: holds a chain: say which step (--step N); ckptdiff.chain_pull fetches all of it")
        else:
            links, named_base = resolve_chain(repo, base is None, notes)
            assert base is not None or named_base is not None
            origin, patches = os.fspath(base) if base is not None else str(named_base), [link.name for link in links]
            states_sha256 = links[-1].states_sha256
        with open_workers(threads, None) as workers:
            work = Step(Stopwatch(), workers, progress, fresh, noted, partial(check_built, threads=threads, progress=progress))
            applied = apply_steps(work, origin, patches, place, only, overwrite, listed)
        verified = not only and states_sha256
        seconds, traffic = watch.seconds(), TRAFFIC.total() - before
        return PullResult(applied.out, origin, tuple(patches), applied.files, applied.size, verified, tuple(notes), seconds, traffic)

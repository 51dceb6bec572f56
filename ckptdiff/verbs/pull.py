"""``pull``: find a patch on the Hub, the base that it is pinned to, and all patches in between; check, fetch, rebuild."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.checkpoint.recognition import check_exists
from ckptdiff.errors import CheckpointError, IntegrityError
from ckptdiff.hub.client import use_token
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import open_repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.patching.provenance import resolve_chain
from ckptdiff.verbs.apply import apply
from ckptdiff.verbs.verify import verify


@dataclass(frozen=True, slots=True)
class PullResult:
    """What :func:`pull` rebuilt: from ``base`` and ``patches`` in the order they were applied. ``notes`` say what was unusual.

    ``verified``: every file has the SHA-256 that the patch states. Digests of what was rebuilt were compared in any case.
    """

    out: Path
    base: str
    patches: tuple[str, ...]
    files: tuple[str, ...]
    size: int
    verified: bool
    notes: tuple[str, ...]
    seconds: float


def pull(
    repo_id: str,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    only: Sequence[str] = (),
    token: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> PullResult:
    """Rebuild a model from a patch on the Hugging Face Hub and the base that it names.

    Everything is resolved and compared by metadata before anything large is fetched; ``out`` appears only when it is whole and right.

    Args:
        repo_id: ``org/name``, ``org/name@revision`` or ``hf://...`` of a repo with a patch.
        out: the folder (or with a lone patch file, or ``only``, the file) to write.
        base: a checkpoint, here or on the Hub, to use instead of the one that the patch names.
        revision: instead of ``@revision``.
        only: globs of tensor names: rebuild just these, fetching no other payloads.
        token: instead of ``HF_TOKEN`` or the stored one.
        threads, overwrite, progress: as of :func:`ckptdiff.apply`.

    Raises:
        HubError: a repo or revision is missing, gated, or another than it was. Others as :func:`ckptdiff.apply`.
    """
    started = time.perf_counter()
    hub_id = parse_id(repo_id)
    if hub_id is None:
        raise CheckpointError(f"{repo_id!r}: expected the id of a repo on the Hub, as org/name; for a patch here: ckptdiff apply")
    if revision is not None:
        hub_id = HubId(hub_id.repo, revision, hub_id.subfolder)
    with use_token(token):
        if base is not None:
            check_exists(base)
        notes: list[str] = []
        links, found = resolve_chain(open_repo(hub_id), base is None, notes)
        origin = os.fspath(base) if base is not None else found
        assert origin is not None
        patches = [link.name for link in links]
        done = apply(origin, patches, out, only=only, threads=threads, overwrite=overwrite, progress=progress)
        if not only:
            _verify(patches[-1], done.out, threads, progress)
        verified = not only and links[-1].states_sha256
        return PullResult(done.out, origin, tuple(patches), done.files, done.size, verified, tuple(notes), time.perf_counter() - started)


def _verify(patch: str, out: Path, threads: int | None, progress: Progress) -> None:
    problems = verify(patch, target=out, threads=threads, progress=progress).problems
    if problems:
        raise IntegrityError(f"{out}: was rebuilt, but is not what the patch states: {problems[0].message}")

"""``pull``: find a patch on the Hub, the base that it is pinned to, and all patches in between; check, fetch, rebuild."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.applier import MAX_CHAIN, apply
from ckptdiff.errors import BaseMismatchError, CheckpointError, HubError, IntegrityError, RevisionError
from ckptdiff.hub import Repo, check_files, open_repo
from ckptdiff.hubclient import using
from ckptdiff.hubid import HubId, parse_id
from ckptdiff.parallel import Progress, no_progress
from ckptdiff.patches import OpenPatch, open_patch
from ckptdiff.recognition import check_there, is_patch_repo
from ckptdiff.verifier import verify


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


@dataclass(frozen=True, slots=True)
class _Link:
    """A patch of the chain: where it is, and what it says of its base."""

    name: str
    base_identity: bytes
    target_identity: bytes
    base_repo: str | None
    base_revision: str | None
    base_sha256: dict[str, str]
    states_sha256: bool

    @classmethod
    def of(cls, name: str, patch: OpenPatch) -> _Link:
        recorded = patch.info
        sha256 = {file.path: file.sha256 for file in patch.base_files}
        states = all(file.metadata.target_sha256 is not None for file in patch.files)
        repo = recorded.get("base_repo"), recorded.get("base_revision")
        return cls(name, patch.base_identity, patch.target_identity, *repo, sha256, states)


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
    with using(token):
        if base is not None:
            check_there(base)
        notes: list[str] = []
        links, found = _resolve(open_repo(hub_id), base is None, notes)
        origin = os.fspath(base) if base is not None else found
        assert origin is not None
        patches = [link.name for link in links]
        done = apply(origin, patches, out, only=only, threads=threads, overwrite=overwrite, progress=progress)
        if not only:
            _verify(patches[-1], done.out, threads, progress)
        verified = not only and links[-1].states_sha256
        return PullResult(done.out, origin, tuple(patches), done.files, done.size, verified, tuple(notes), time.perf_counter() - started)


def recorded_base(patch: str | os.PathLike[str]) -> str:
    """The id, pinned to a commit, of the base that a patch names.

    Raises:
        HubError: it names none, its repo cannot be read, or is itself a patch.
    """
    name = os.fspath(patch)
    with open_patch(patch, by_ranges=True) as opened:
        repo, is_patch = _base_of(_Link.of(name, opened), [])
    if is_patch:
        raise HubError(f"{name}: its base {repo.pinned} is itself a patch: rebuild that with ckptdiff pull, and give it with --base")
    return str(repo.pinned)


def _verify(patch: str, out: Path, threads: int | None, progress: Progress) -> None:
    problems = verify(patch, target=out, threads=threads, progress=progress).problems
    if problems:
        raise IntegrityError(f"{out}: was rebuilt, but is not what the patch states: {problems[0].message}")


def _resolve(repo: Repo, with_base: bool, notes: list[str]) -> tuple[list[_Link], str | None]:
    """The chain of patches that ends in a repo, first one first, and the checkpoint that it begins with (None: not looked for)."""
    links: list[_Link] = []
    seen: set[tuple[str, str]] = set()
    while True:
        if (repo.name, repo.commit) in seen:
            raise HubError(f"{repo.pinned}: is a base of itself: its chain of patches goes round in a circle")
        seen.add((repo.name, repo.commit))
        if len(links) == MAX_CHAIN:
            raise HubError(f"{links[-1].name}: begins with more than {MAX_CHAIN} patches: pull one of them, and give it with --base")
        with open_patch(str(repo.pinned), by_ranges=True) as patch:
            link = _Link.of(str(repo.pinned), patch)
        if links and link.target_identity != links[0].base_identity:
            raise BaseMismatchError(f"{links[0].name}: was not made from what {link.name} gives")
        links.insert(0, link)
        if not with_base:
            return links, None
        repo, is_patch = _base_of(link, notes)
        if not is_patch:
            return links, str(repo.pinned)


def _base_of(link: _Link, notes: list[str]) -> tuple[Repo, bool]:
    """The repo of a patch's base, and whether that is a patch itself; if not, it has the very files that the patch was made from.

    Where the commit is gone (a squashed history) the main branch may still have the same weights.
    """
    if link.base_repo is None:
        raise HubError(f"{link.name}: does not say which repo has its base: give the base with --base")
    wanted, where, gone = HubId(link.base_repo, link.base_revision), f"the base of {link.name}", False
    try:
        repo = open_repo(wanted)
    except RevisionError:
        repo, gone = open_repo(HubId(wanted.repo)), True
        where += f": the commit {wanted.revision} is gone, and on the main branch"
    except HubError as error:
        raise HubError(f"{where}: {error}; or give the base with --base") from None
    if repo.name != wanted.repo:
        notes.append(f"the base {wanted.repo} is called {repo.name} now")
    is_patch = is_patch_repo(repo)
    compared = 0 if is_patch or repo.cache is not None else check_files(repo, link.base_sha256, where)
    if gone:
        same = compared and compared == len(link.base_sha256)
        what = f"{repo.commit} has the same weights, by SHA-256" if same else f"{repo.commit} is taken: digests are compared as it is read"
        notes.append(f"the base's commit {wanted.revision} is gone from {wanted.repo}; {what}")
    return repo, is_patch

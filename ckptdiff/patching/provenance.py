"""``pull``: find a patch on the Hub, the base that it is pinned to, and all patches in between; check, fetch, rebuild."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckptdiff.checkpoint.recognition import is_patch_repo
from ckptdiff.errors import BaseMismatchError, HubError, RevisionError
from ckptdiff.hub.ids import HubId
from ckptdiff.hub.repo import Repo, check_files, open_repo
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import MAX_CHAIN


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """A patch of the chain: where it is, and what it says of its base."""

    name: str
    base_identity: bytes
    target_identity: bytes
    base_repo: str | None
    base_revision: str | None
    base_sha256: dict[str, str]
    states_sha256: bool

    @classmethod
    def of(cls, name: str, patch: OpenPatch) -> PatchRecord:
        recorded = patch.info
        sha256 = {file.path: file.sha256 for file in patch.base_files}
        states = all(file.metadata.target_sha256 is not None for file in patch.files)
        repo = recorded.get("base_repo"), recorded.get("base_revision")
        return cls(name, patch.base_identity, patch.target_identity, *repo, sha256, states)


def recorded_base(patch: str | os.PathLike[str]) -> str:
    """The id, pinned to a commit, of the base that a patch names.

    Raises:
        HubError: it names none, its repo cannot be read, or is itself a patch.
    """
    name = os.fspath(patch)
    with open_patch(patch, by_ranges=True) as opened:
        repo, is_patch = _base_of(PatchRecord.of(name, opened), [])
    if is_patch:
        raise HubError(f"{name}: its base {repo.pinned} is itself a patch: rebuild that with ckptdiff pull, and give it with --base")
    return str(repo.pinned)


def resolve_chain(repo: Repo, with_base: bool, notes: list[str]) -> tuple[list[PatchRecord], str | None]:
    """The chain of patches that ends in a repo, first one first, and the checkpoint that it begins with (None: not looked for)."""
    links: list[PatchRecord] = []
    seen: set[tuple[str, str]] = set()
    while True:
        if (repo.name, repo.commit) in seen:
            raise HubError(f"{repo.pinned}: is a base of itself: its chain of patches goes round in a circle")
        seen.add((repo.name, repo.commit))
        if len(links) == MAX_CHAIN:
            raise HubError(f"{links[-1].name}: begins with more than {MAX_CHAIN} patches: pull one of them, and give it with --base")
        with open_patch(str(repo.pinned), by_ranges=True) as patch:
            link = PatchRecord.of(str(repo.pinned), patch)
        if links and link.target_identity != links[0].base_identity:
            raise BaseMismatchError(f"{links[0].name}: was not made from what {link.name} gives")
        links.insert(0, link)
        if not with_base:
            return links, None
        repo, is_patch = _base_of(link, notes)
        if not is_patch:
            return links, str(repo.pinned)


def _base_of(link: PatchRecord, notes: list[str]) -> tuple[Repo, bool]:
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

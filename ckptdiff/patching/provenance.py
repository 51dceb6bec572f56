"""Where a patch on the Hub comes from: the base that it records, and all patches in between."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ckptdiff.checkpoint.recognition import is_patch_repo
from ckptdiff.errors import BaseMismatchError, CheckpointError, HubError, RevisionError
from ckptdiff.hub.ids import HubId
from ckptdiff.hub.repo import Repo, check_files, open_repo
from ckptdiff.patching.chain import MAX_CHAIN, follows, repo_gives
from ckptdiff.patching.encode_pair import EncodedPair
from ckptdiff.patching.patch import OpenPatch, open_patch


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """What was noted of a patch of a chain while it was open."""

    name: str
    """Its path, or its id on the Hub."""
    base_identity: bytes
    target_identity: bytes
    base_repo: HubId | None
    """The repo and commit of its base, if it records them."""
    base_sha256: dict[str, str]
    """SHA-256 of its base's weight files, by path."""
    states_sha256: bool
    """Whether it states the SHA-256 of all weight files of its target; a target in memory has none."""

    @classmethod
    def of(cls, name: str, patch: OpenPatch) -> PatchRecord:
        sha256 = {file.path: file.sha256 for file in patch.base_files}
        states = all(file.metadata.target_sha256 is not None for file in patch.files)
        return cls(name, patch.base_identity, patch.target_identity, patch.base_repo, sha256, states)


def recorded_facts(pair: EncodedPair, base: Repo | None, target: Repo | None) -> dict[str, Any]:
    """Further facts that a patch records (spec 5.1): other names of tied tensors, and the repos and commits that hold base and target.

    Raises:
        HubError: a repo cannot be read, or lacks a weight file, or has another one of that path.
        CheckpointError: a repo holds a patch that gives another checkpoint.
    """
    facts: dict[str, Any] = {"tied": pair.target.tied} if pair.target.tied else {}
    sides = (("base", base, pair.base, pair.base_identity), ("target", target, pair.target, pair.target_identity))
    for side, repo, checkpoint, identity in sides:
        if repo is None:
            continue
        if not is_patch_repo(repo):
            sha256 = {file.path: digest for file in checkpoint.weights if (digest := pair.sha256(file)) is not None}
            check_files(repo, sha256, str(checkpoint.path))
        elif not repo_gives(repo, identity):
            raise CheckpointError(f"{checkpoint.path}: is not what the patch in {repo.pinned} gives")
        facts |= {f"{side}_repo": repo.name, f"{side}_revision": repo.commit}
    return facts


def recorded_base(patch: str | os.PathLike[str]) -> str:
    """The id, pinned to a commit, of the base that a patch records.

    Raises:
        HubError: it records none, or the base's repo cannot be read, or holds a patch.
    """
    name = os.fspath(patch)
    with open_patch(patch, by_ranges=True) as opened:
        repo, is_patch = _base_of(PatchRecord.of(name, opened), [])
    if is_patch:
        raise HubError(f"{name}: its base {repo.pinned} is itself a patch: rebuild its target with ckptdiff pull, and give it with --base")
    return str(repo.pinned)


def resolve_chain(repo: Repo, with_base: bool, notes: list[str]) -> tuple[list[PatchRecord], str | None]:
    """Follow the bases that patches record, from the patch in a repo to the checkpoint that the chain starts from.

    Args:
        repo: the repo of the last patch.
        with_base: whether to go on to the bases; without, the chain is that one patch.
        notes: what was unusual is added to these.

    Returns:
        The chain, in the order in which its patches apply, and the id of the checkpoint that it starts from (None without ``with_base``).

    Raises:
        HubError: a repo cannot be read, a base is not recorded, or the chain is a circle or too long.
        BaseMismatchError: a patch was not made from what the patch before it gives.
    """
    chain: list[PatchRecord] = []
    seen: set[tuple[str, str]] = set()
    while True:
        if (repo.name, repo.commit) in seen:
            raise HubError(f"{repo.pinned}: is a base of itself: its chain of patches goes round in a circle")
        seen.add((repo.name, repo.commit))
        if len(chain) == MAX_CHAIN:
            raise HubError(f"{chain[-1].name}: begins with more than {MAX_CHAIN} patches: pull one of them, and give it with --base")
        with open_patch(str(repo.pinned), by_ranges=True) as patch:
            record = PatchRecord.of(str(repo.pinned), patch)
        if chain and not follows(chain[0], record):
            raise BaseMismatchError(f"{chain[0].name}: was not made from what {record.name} gives")
        chain.insert(0, record)
        if not with_base:
            return chain, None
        repo, is_patch = _base_of(record, notes)
        if not is_patch:
            return chain, str(repo.pinned)


def _base_of(record: PatchRecord, notes: list[str]) -> tuple[Repo, bool]:
    """The repo of a patch's base, and whether it holds a patch; if not, its files were compared with those the patch was made from.

    Where the commit is gone (a squashed history), the main branch may still have the same weights.
    """
    wanted = record.base_repo
    if wanted is None:
        raise HubError(f"{record.name}: does not say which repo has its base: give the base with --base")
    where, gone = f"the base of {record.name}", False
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
    compared = 0 if is_patch or repo.cache is not None else check_files(repo, record.base_sha256, where)
    if gone:
        same = compared and compared == len(record.base_sha256)
        found = "has the same weights, by SHA-256" if same else "is used instead: digests are compared as it is read"
        notes.append(f"the base's commit {wanted.revision} is gone from {wanted.repo}; {repo.commit} {found}")
    return repo, is_patch

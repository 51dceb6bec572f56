"""What a base is that a patch was not made from: the errors that say so."""

from __future__ import annotations

from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.errors import BaseMismatchError, cut
from ckptdiff.format.canonical import quoted
from ckptdiff.format.entry import Entry
from ckptdiff.io.places import Place
from ckptdiff.patching.patch import OpenPatch


@dataclass(frozen=True, slots=True)
class WantedBase:
    """A checkpoint that was given as the base of a patch."""

    path: Place
    patch: Place
    described: str
    """A sentence that says which base the patch was made from."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, patch: OpenPatch) -> WantedBase:
        """What messages need of a checkpoint and a patch: other processes find wrong bases too."""
        return cls(checkpoint.path, patch.path, describe_base(patch))

    def error(self, why: str) -> BaseMismatchError:
        """The error for a base that the patch was not made from."""
        return BaseMismatchError(f"{self.path}: is not the base of {self.patch}: {why}. {self.described}")

    def mismatch(self, entry: Entry, found: bytes) -> BaseMismatchError:
        """The error for what stands for a target tensor, and has another digest."""
        names = ", ".join(map(cut, entry.base_names[:MOST_NAMES])) + (" and others" if len(entry.base_names) > MOST_NAMES else "")
        what = f"its tensor {names}" if entry.base_names == (entry.name,) else f"what stands for {cut(entry.name)} (from {names})"
        return self.error(f"{what} has the digest {found.hex()}, expected {entry.base_digest.hex()}")


MOST_NAMES = 4
"""Base tensors that a message names."""


def describe_base(patch: OpenPatch) -> str:
    """A sentence that says which base a patch was made from."""
    if patch.base_repo is not None:
        return f"It wants {cut(patch.base_repo.repo)}@{cut(patch.base_repo.revision or 'main')}"
    if patch.base_files:
        file, more = patch.base_files[0], len(patch.base_files) - 1
        return f"It wants {quoted(file.path)} with the SHA-256 {file.sha256}" + (f" and {more} more" if more else "")
    return f"It wants a base with the identity {patch.base_identity.hex()}"

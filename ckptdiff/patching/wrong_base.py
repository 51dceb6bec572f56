"""What a base is that a patch was not made from: the errors that say so."""

from __future__ import annotations

from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.errors import BaseMismatchError, cut
from ckptdiff.format.canonical import quoted
from ckptdiff.patching.patch import OpenPatch


@dataclass(frozen=True, slots=True)
class WantedBase:
    """A checkpoint that was given as the base of a patch."""

    checkpoint: Checkpoint
    patch: OpenPatch

    def error(self, why: str) -> BaseMismatchError:
        """The error for a base that the patch was not made from."""
        return BaseMismatchError(f"{self.checkpoint.path}: is not the base of {self.patch.path}: {why}. {describe_base(self.patch)}")

    def mismatch(self, tensor: Tensor, found: bytes, expected: bytes) -> BaseMismatchError:
        """The error for a tensor of another digest."""
        return self.error(f"its tensor {cut(tensor.name)} has the digest {found.hex()}, expected {expected.hex()}")


def describe_base(patch: OpenPatch) -> str:
    """A sentence that says which base a patch was made from."""
    if patch.base_repo is not None:
        return f"It wants {cut(patch.base_repo.repo)}@{cut(patch.base_repo.revision or 'main')}"
    if patch.base_files:
        file, more = patch.base_files[0], len(patch.base_files) - 1
        return f"It wants {quoted(file.path)} with the SHA-256 {file.sha256}" + (f" and {more} more" if more else "")
    return f"It wants a base with the identity {patch.base_identity.hex()}"

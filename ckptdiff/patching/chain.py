"""Chains of patches: each starts from what the one before it gives (spec section 10, step 2)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ckptdiff.checkpoint.recognition import is_patch
from ckptdiff.errors import BaseMismatchError, FormatError
from ckptdiff.hub.repo import Repo
from ckptdiff.io.places import Place
from ckptdiff.patching.patch import OpenPatch, open_patch

MAX_CHAIN = 64
"""Patches in a chain."""


class HasIdentities(Protocol):
    """A patch, or what was noted of one."""

    @property
    def base_identity(self) -> bytes: ...

    @property
    def target_identity(self) -> bytes: ...


class Placed(HasIdentities, Protocol):
    """A patch of a chain, or what was noted of one."""

    @property
    def path(self) -> Place: ...


def follows(patch: HasIdentities, before: HasIdentities) -> bool:
    """Whether a patch starts from what the patch before it gives."""
    return patch.base_identity == before.target_identity


def repo_gives(repo: Repo, identity: bytes) -> bool:
    """Whether a repo's patch gives the checkpoint of this identity: such a repo stands for that checkpoint."""
    with open_patch(str(repo.pinned), by_ranges=True) as patch:
        return patch.target_identity == identity


def check_length(count: int, most: int = MAX_CHAIN) -> None:
    """Raise FormatError unless so many patches can be a chain."""
    if not 1 <= count <= most:
        raise FormatError(f"a chain has 1 to {most:,} patches, found {count:,}")


@contextmanager
def explained_order(base: str | os.PathLike[str] | None, patches: Sequence[str | os.PathLike[str]]) -> Iterator[None]:
    """Where a base and patches are opened: if one of the patches is none, but the base is one, the error asks whether their order is wrong.

    Raises:
        FormatError: that of the patch, with the question.
    """
    try:
        yield
    except FormatError as error:
        if base is not None and is_patch(base) and not all(map(is_patch, patches)):
            raise FormatError(f"{error}: are base and patch the wrong way round?") from None
        raise


def check_chain(chain: Sequence[OpenPatch]) -> None:
    """Check that each patch follows the one before it.

    Raises:
        FormatError: there are too many patches, or none.
        BaseMismatchError: a patch does not follow.
    """
    check_length(len(chain))
    check_order(chain)


def check_order(chain: Sequence[Placed]) -> None:
    """Raise BaseMismatchError for the first patch that does not follow the one before it."""
    for before, patch in itertools.pairwise(chain):
        if follows(patch, before):
            continue
        if patch.path == before.path:
            raise BaseMismatchError(f"{patch.path}: is listed twice in a row: apply it once")
        sibling = next((other for other in chain if other is not patch and other.base_identity == patch.base_identity), None)
        if sibling is not None:
            raise BaseMismatchError(
                f"{patch.path} and {sibling.path}: both are made from the same base, {patch.base_identity.hex()}, so that neither can "
                "follow the other: apply one of them"
            )
        raise BaseMismatchError(
            f"{patch.path}: was made from a base with the identity {patch.base_identity.hex()}, but {before.path} gives "
            f"{before.target_identity.hex()}: put the patches in the order in which they were made, none left out"
        )

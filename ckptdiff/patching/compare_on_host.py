"""Groups of blocks of a target tensor compared with their base on the host (spec section 8): changes, and leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.digests import leaves_of
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes


@dataclass(slots=True)
class ComparedGroup:
    """A group of blocks of a target tensor, compared with its base. Its arrays may be scratch, which the next comparison overwrites."""

    nbytes: int
    """Bytes of the target tensor in it."""
    changes: list[Changes]
    """The changes of each block; none for a new tensor, which has no base."""
    base_leaves: list[bytes]
    leaves: list[bytes]
    """Leaves (spec 3.2) of the blocks of the adapted base, and of the target's."""
    base: Bytes | None
    target: Bytes | None
    """The bytes of the adapted base and of the target; None where they are not on the host."""


class Comparer(Protocol):
    """Compares units ``first`` to ``stop`` of a target tensor with its base, on the host or on a torch device."""

    def __call__(self, base: AdaptedBase | None, target: Tensor, first: int, stop: int, codec: str | None) -> ComparedGroup:
        """Compare a group.

        Args:
            base: what the target is compared with.
            target: the tensor.
            first, stop: the units.
            codec: the codec that will code the group; None: several will be tried. The base's bytes are given on the host unless this is
                ``sparse``, the target's if it is ``raw``.
        """


def compare_on_host(base: AdaptedBase | None, target: Tensor, first: int, stop: int, codec: str | None = None) -> ComparedGroup:
    """Compare a group; see :class:`Comparer`."""
    dtype = DTYPES[target.dtype]
    new = target.view(first * dtype.carrier, stop * dtype.carrier, "target")
    if base is None:
        return ComparedGroup(len(new), [], [], leaves_of(new), None, new)
    old = base.view(first * dtype.carrier, stop * dtype.carrier)
    found = kernels.changes.compared(old, new, dtype)
    return ComparedGroup(len(new), found.changes.blocks, found.base_leaves, found.leaves, old, new)

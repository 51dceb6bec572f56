"""The closed table of codecs (spec section 7): a codec is a module with the two functions of :class:`Codec`, over one block."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ckptdiff import kernels
from ckptdiff.codecs import context, raw, sparse
from ckptdiff.format.digests import xxh128
from ckptdiff.format.dtypes import BlockChange, Bytes, Dtype, Replacement
from ckptdiff.kernels.block_layout import BlockLayout
from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.codecs import escaped_values as escaped_values
else:
    __getattr__ = submodules(__name__)


class Codec(Protocol):
    """What a codec module offers."""

    def pack(self, base: Bytes | None, change: BlockChange, dtype: Dtype, layout: BlockLayout) -> bytes:
        """Code a block.

        Args:
            base: the block's bytes in the base; None where they are not at hand, as only ``context`` reads them.
            change: what turns them into the target's; for ``raw`` always a :class:`~ckptdiff.format.dtypes.Replacement`, which the other
                codecs never get.
            dtype: of the target.
            layout: how the block lies in its tensor.
        """

    def unpack(self, coded: memoryview, base: Bytes | None, size: int, dtype: Dtype) -> BlockChange:
        """Decode a block.

        Args:
            coded: the coded bytes.
            base: the block's bytes in the base; None where they are not at hand, as only ``context`` reads them.
            size: bytes of the block.
            dtype: of the target.

        Returns:
            What turns base into target. The changes of ``context`` are scratch, which the thread's next call overwrites.

        Raises:
            ValueError: with one line that says which rule of the spec the coded bytes break.
        """


CODECS: dict[str, Codec] = {"raw": raw, "sparse": sparse, "context": context}


def apply_change(change: BlockChange, base: Bytes, dtype: Dtype) -> tuple[Bytes, int, bytes | None]:
    """Turn a block of the base into the target's.

    Args:
        change: as :meth:`Codec.unpack` gives it.
        base: the block's bytes in the base. They may be changed in place: a copy of each block would cost more than the rest of ``sparse``.
        dtype: of the target.

    Returns:
        The target's bytes; how many units changed; and the leaf (spec 3.2) of the target's bytes, or None if it is that of the base.
    """
    if isinstance(change, Replacement):
        differing = np.count_nonzero(change.target.view(dtype.unit) != base.view(dtype.unit))
        return change.target, int(differing), xxh128(change.target)
    positions, zigzags = change
    if len(positions) == 0:
        return base, 0, None
    (leaf,) = kernels.moves.move_run(base, positions, zigzags, dtype, False, True)
    return base, len(positions), leaf

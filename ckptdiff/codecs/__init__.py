"""The closed table of codecs (spec section 7): a codec is a module with the two functions of :class:`Codec`, over one block."""

from __future__ import annotations

from typing import Protocol

from ckptdiff.codecs import context, raw, sparse
from ckptdiff.format.dtypes import Bytes, Changes, Dtype
from ckptdiff.kernels.block_layout import BlockLayout
from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.codecs import escaped_values as escaped_values
else:
    __getattr__ = submodules(__name__)


class Codec(Protocol):
    """What a codec module offers."""

    def encode(self, base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout, changes: Changes | None) -> tuple[bytes, int]:
        """Code a block.

        Args:
            base, target: its bytes on both sides: as many, and whole units.
            dtype: of the target.
            layout: how the block lies in its tensor.
            changes: those of the block, if they are known already.

        Returns:
            The coded bytes, and how many units changed.
        """

    def decode(self, coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]:
        """Decode a block.

        Args:
            coded: the coded bytes.
            base: the block's bytes in the base. They may be turned into the target in place: a copy of each block would cost more
                than the rest of ``sparse``.
            size: bytes of the block.
            dtype: of the target.

        Returns:
            The target's bytes, and how many units changed.

        Raises:
            ValueError: with one line that says which rule of the spec the coded bytes break.
        """


CODECS: dict[str, Codec] = {"raw": raw, "sparse": sparse, "context": context}

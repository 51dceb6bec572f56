"""The ``raw`` codec: byte planes, without the base (spec section 7.3)."""

from __future__ import annotations

import numpy as np

from ckptdiff.codecs.planes import Reader, join, split, write_plane
from ckptdiff.format.dtypes import BlockChange, Bytes, Dtype, Replacement
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout


def pack(base: Bytes | None, change: BlockChange, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS) -> bytes:
    """Code a block; see :class:`ckptdiff.codecs.Codec`."""
    assert isinstance(change, Replacement)
    return b"".join(map(write_plane, split(change.target.view(dtype.unit), dtype.carrier)))


def unpack(coded: memoryview, base: Bytes | None, size: int, dtype: Dtype) -> Replacement:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    reader, count = Reader(coded), size // dtype.carrier
    planes = [reader.plane(count) for _ in range(dtype.carrier)]
    reader.end()
    return Replacement(join(planes, count, dtype.unit).view(np.uint8))

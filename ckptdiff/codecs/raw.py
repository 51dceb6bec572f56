"""The ``raw`` codec: byte planes, without the base (spec section 7.3)."""

from __future__ import annotations

import numpy as np

from ckptdiff.codecs.planes import Reader, join, split, write_plane
from ckptdiff.format.dtypes import Bytes, Changes, Dtype
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout


def encode(
    base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS, changes: Changes | None = None
) -> tuple[bytes, int]:
    """Code a block; see :class:`ckptdiff.codecs.Codec`."""
    units = target.view(dtype.unit)
    coded = b"".join(map(write_plane, split(units, dtype.carrier)))
    return coded, len(changes[0]) if changes else int(np.count_nonzero(units != base.view(dtype.unit)))


def decode(coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    reader, count = Reader(coded), size // dtype.carrier
    planes = [reader.plane(count) for _ in range(dtype.carrier)]
    reader.end()
    units = join(planes, count, dtype.unit)
    return units.view(np.uint8), int(np.count_nonzero(units != base.view(dtype.unit)))

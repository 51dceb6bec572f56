"""Base tensors adapted to their targets (spec section 8)."""

from __future__ import annotations

import numpy as np

from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes, cast


def adapt(data: Bytes, source: str, target: str, size: int) -> Bytes:
    """Cast base bytes, then cut or extend them with zeros to ``size`` bytes (spec section 8)."""
    data = cast(data, source, target)
    if len(data) >= size:
        return data[:size]
    return np.concatenate([data, np.zeros(size - len(data), np.uint8)])


def units_per_group(*dtypes: str) -> int:
    """Units in a group: the shortest range that consists of whole blocks in each of these dtypes."""
    return BLOCK // min(DTYPES[dtype].carrier for dtype in dtypes)

"""Keys that find a tensor's content under another name, in another dtype and at another place.

A key is the signs of 64 neighbouring units: training hardly ever turns a sign, and every cast keeps it. Of integers it is their lowest
bits. Windows whose signs are all the same say nothing, and have no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.samples import Array, sample_of
from ckptdiff.format.dtypes import DTYPES

KEY_UNITS = 64
"""Units of a key."""
KEYS = 16
"""Keys of a sample."""
NO_KEYS = 0, (1 << KEY_UNITS) - 1
"""Keys of windows whose signs are all the same."""
MOST_ALIKE = 64
"""Base tensors of one key that are looked at."""

Keys: TypeAlias = npt.NDArray[np.uint64]


def keys_of(windows: Array, dtype: str) -> Keys:
    """The keys of windows of units, [n, 64]."""
    row = DTYPES[dtype]
    bits = windows >> (8 * row.carrier - 1) if row.is_float else windows & 1
    return np.packbits(bits.astype(np.uint8), axis=-1).view(">u8").astype(np.uint64)[..., 0]


def sample_keys(sample: Array, dtype: str) -> list[int]:
    """The keys of a sample, at places that follow from its length; empty for a short one."""
    if len(sample) < KEY_UNITS:
        return []
    starts = sorted({min(k * len(sample) // KEYS, len(sample) - KEY_UNITS) for k in range(KEYS)})
    windows: Any = sample[np.add.outer(starts, np.arange(KEY_UNITS))]
    return [int(key) for key in keys_of(windows, dtype)]


class SampleIndex:
    """Base tensors by the keys of their samples."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._known: dict[tuple[int, int, int], list[Tensor]] = {}
        for tensor in tensors:
            for place, key in enumerate(sample_keys(sample_of(tensor), tensor.dtype)):
                if key not in NO_KEYS:
                    self._known.setdefault((tensor.units, place, key), []).append(tensor)

    def find(self, units: int, keys: Sequence[int]) -> list[Tensor]:
        """The tensors of so many units that share a key at the same place; those that share the most first."""
        votes: dict[int, int] = {}
        found: dict[int, Tensor] = {}
        for place, key in enumerate(keys):
            for tensor in self._known.get((units, place, key), ())[:MOST_ALIKE]:
                votes[id(tensor)] = votes.get(id(tensor), 0) + 1
                found[id(tensor)] = tensor
        return sorted(found.values(), key=lambda tensor: -votes[id(tensor)])

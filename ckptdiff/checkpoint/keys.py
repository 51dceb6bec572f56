"""Keys that find a tensor's content under another name, in another dtype and at another place.

A key is the signs of 64 neighbouring units: training seldom turns a sign, and every cast keeps it. Of integers it is their lowest bits.
Windows whose signs are all the same say nothing, and have no key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.names import numbers
from ckptdiff.checkpoint.samples import Array, sample_of
from ckptdiff.format.dtypes import DTYPES

KEY_UNITS = 64
"""Units of a key."""
KEYS = 16
"""Keys of a sample."""
NO_KEYS = np.array([0, (1 << KEY_UNITS) - 1], np.uint64)
"""Keys of windows whose signs are all the same."""
MOST_ALIKE = 64
"""Owners of one key that are looked at."""
MOST_COMPARED = 8
"""Candidates for one tensor, or for one part, whose units are compared."""

Keys: TypeAlias = npt.NDArray[np.uint64]


def keys_of(windows: Array, dtype: str) -> Keys:
    """The keys of windows of units, [..., 64]."""
    row = DTYPES[dtype]
    bits = windows >> (8 * row.carrier - 1) if row.is_float else windows & 1
    packed = np.packbits(np.ascontiguousarray(bits, np.uint8), axis=-1)
    return np.ascontiguousarray(packed).view(">u8")[..., 0].astype(np.uint64)


def keys_along(units: Array, dtype: str, count: int = KEYS) -> Keys:
    """Keys at places that follow from the number of units alone; none of fewer units than a key has."""
    if len(units) < KEY_UNITS:
        return np.zeros(0, np.uint64)
    starts = sorted({min(k * len(units) // count, len(units) - KEY_UNITS) for k in range(count)})
    windows: Any = units[np.add.outer(starts, np.arange(KEY_UNITS))]
    return keys_of(windows, dtype)


def says_something(keys: Keys) -> bool:
    """Whether any of some windows has a key."""
    return not np.isin(keys, NO_KEYS).all()


class KeyTable:
    """Finds the owners of keys, which are given by number; a key counts at one place of its owner only."""

    def __init__(self, rows: Sequence[Keys]) -> None:
        """``rows``: the keys of each owner, place by place."""
        self._places: list[tuple[Keys, npt.NDArray[np.int64]]] = []
        for place in range(max(map(len, rows), default=0)):
            owners = np.array([owner for owner, keys in enumerate(rows) if place < len(keys)], np.int64)
            keys = np.array([row[place] for row in rows if place < len(row)], np.uint64)
            order = np.argsort(keys, kind="stable")
            self._places.append((keys[order], owners[order]))

    def owners(self, place: int, key: Any) -> list[int]:
        """The owners of a key at a place, in order, but not more than :data:`MOST_ALIKE`."""
        if place >= len(self._places) or key in NO_KEYS:
            return []
        keys, owners = self._places[place]
        first = int(np.searchsorted(keys, key))
        found = owners[first : first + MOST_ALIKE]
        return [int(owner) for owner in found[keys[first : first + MOST_ALIKE] == key]]

    def votes(self, keys: Keys) -> Counter[int]:
        """How many keys each owner shares at the same place."""
        return Counter(owner for place, key in enumerate(keys) for owner in self.owners(place, key))


class SampleIndex:
    """Base tensors by the keys of their samples."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._table = KeyTable([keys_along(sample_of(tensor), tensor.dtype) for tensor in tensors])
        self._by_name: dict[tuple[int, str, tuple[int, ...]], list[Tensor]] = {}
        for tensor in tensors:
            self._by_name.setdefault(_name_key(tensor), []).append(tensor)

    def find(self, tensor: Tensor, keys: Keys) -> list[Tensor]:
        """The tensors of as many units that share a key at the same place; those that share the most first.

        Where too many do, as all have the same content, those with a name like the tensor's are looked at too.
        """
        votes = self._table.votes(keys)
        found = [self._tensors[owner] for owner in sorted(votes, key=lambda owner: (-votes[owner], owner))]
        alike = self._by_name.get(_name_key(tensor), [])[:MOST_ALIKE] if len(found) >= MOST_ALIKE else []
        return [base for base in (*found, *alike) if base.units == tensor.units]


def _name_key(tensor: Tensor) -> tuple[int, str, tuple[int, ...]]:
    """Units, last part of the name, and the numbers in it."""
    return tensor.units, tensor.name.rpartition(".")[2], numbers(tensor.name)

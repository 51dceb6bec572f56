"""Tables whose rows were moved, cut or added, such as the embeddings of a vocabulary: which row of the base each row of the target is.

Each row has keys (:mod:`ckptdiff.checkpoint.keys`). A row whose keys only one row of the base has is found by them. Rows in between, such
as those of tokens that were never trained and are all alike, or that training changed very much, continue the run before or behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.keys import KEY_UNITS, NO_KEYS, Keys, keys_of
from ckptdiff.checkpoint.parts import row_units
from ckptdiff.checkpoint.samples import read_units
from ckptdiff.format.entry import Piece

ROW_KEYS = 4
"""Keys of a row, or fewer of a short one."""
ROWS_AT_ONCE = 1 << 21
"""Units that are read at a time."""
SAMPLED_ROWS = 32
"""Rows of a table that are looked up in another one, to find out whether they have rows in common."""

Rows: TypeAlias = npt.NDArray[np.int64]


def is_table(tensor: Tensor) -> bool:
    """Whether a tensor has rows that are long enough for keys."""
    return len(tensor.shape) > 1 and row_units(tensor) >= KEY_UNITS


def row_count(tensor: Tensor) -> int:
    """Rows of a table."""
    return math.prod(tensor.shape[:-1])


def row_keys(tensor: Tensor, rows: Sequence[int] | None = None) -> Keys:
    """Keys of all rows, or of some: [rows, n], the same n for all tables whose rows are equally long."""
    width = row_units(tensor)
    starts = sorted({k * (width - KEY_UNITS) // (ROW_KEYS - 1) for k in range(ROW_KEYS)})
    columns = np.add.outer(starts, np.arange(KEY_UNITS))
    keys = list[Keys]()
    if rows is not None:
        for row in rows:
            keys.append(keys_of(read_units(tensor, row * width, (row + 1) * width)[columns], tensor.dtype)[None])
    else:
        step = max(ROWS_AT_ONCE // width, 1)
        for first in range(0, row_count(tensor), step):
            units = read_units(tensor, first * width, min(first + step, row_count(tensor)) * width).reshape(-1, width)
            keys.append(keys_of(units[:, columns], tensor.dtype))
    return np.concatenate(keys) if keys else np.zeros((0, len(starts)), np.uint64)


def sampled_rows(tensor: Tensor) -> list[int]:
    """Some rows of a table, evenly spaced."""
    count = row_count(tensor)
    return sorted({k * count // SAMPLED_ROWS for k in range(SAMPLED_ROWS)} if count else ())


class RowIndex:
    """The rows of a table by their keys."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.keys = tensor, row_keys(tensor)
        self._sorted = [_unique(self.keys[:, k]) for k in range(self.keys.shape[1])]

    def find(self, keys: Keys) -> Rows:
        """The only row that has one of the keys of each of some other rows; -1 where there is none."""
        found = np.full(len(keys), -1, np.int64)
        for k, (known, rows) in enumerate(self._sorted):
            if len(known):
                at = np.minimum(np.searchsorted(known, keys[:, k]), len(known) - 1)
                hit = (found < 0) & (known[at] == keys[:, k])
                found[hit] = rows[at[hit]]
        return found

    def align(self, keys: Keys) -> Rows:
        """The row for each of the rows of another table, with runs continued; -1 where there is none."""
        found = self.find(keys)
        self._continue(found, keys, 1)
        self._continue(found, keys, -1)
        return _close_gaps(found)

    def _continue(self, found: Rows, keys: Keys, step: int) -> None:
        """Take the next row of the base for a row that no key tells of, behind (or before) one that is known, if they share a key."""
        for row in np.flatnonzero(found < 0)[::step].tolist():
            before = row - step
            if 0 <= before < len(found) and found[before] >= 0 and 0 <= found[before] + step < len(self.keys):
                if (self.keys[found[before] + step] == keys[row]).any():
                    found[row] = found[before] + step


def _unique(keys: Keys) -> tuple[Keys, Rows]:
    """The keys that one row alone has, sorted, and these rows."""
    known, first, counts = np.unique(keys, return_index=True, return_counts=True)
    single = (counts == 1) & ~np.isin(known, np.array(NO_KEYS, np.uint64))
    return known[single], first[single].astype(np.int64)


def _close_gaps(found: Rows) -> Rows:
    """Runs put together where the rows between two are as many as between their rows of the base, or the first begins with both tables."""
    known = np.flatnonzero(found >= 0)
    if not len(known):
        return found
    offsets = found[known] - known
    if offsets[0] == 0:
        found[: known[0]] = np.arange(known[0])
    for k in np.flatnonzero((offsets[1:] == offsets[:-1]) & (np.diff(known) > 1)):
        found[known[k] : known[k + 1]] = np.arange(found[known[k]], found[known[k + 1]])
    return found


def pieces_of_rows(found: Rows, base: Tensor) -> Iterator[Piece]:
    """Runs of rows as pieces of a table of the base, and zeros for rows that it does not have."""
    width: Any = row_units(base)
    breaks = np.flatnonzero((np.diff(found) != 1) & ((found[1:] >= 0) | (found[:-1] >= 0))) + 1
    for first, stop in zip([0, *breaks], [*breaks, len(found)], strict=True):
        if found[first] >= 0:
            yield Piece(base.name, int(found[first]) * width, int(stop - first) * width)
        elif stop > first:
            yield Piece(None, 0, int(stop - first) * width)

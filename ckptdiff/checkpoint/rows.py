"""Tables whose rows were moved, cut or added, such as the embeddings of a vocabulary: which row of the base each row of the target is.

Each row has keys (:mod:`ckptdiff.checkpoint.keys`). A row is found by a key that only one row of the base has. Other rows, such as those of
tokens that were never trained and are all alike, or that training changed very much, are looked for between those that their neighbours
were found as.
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
UNITS_AT_ONCE = 1 << 21
"""Units that are read at a time."""
SAMPLED_ROWS = 32
"""Rows of a table that are looked up in others, to find out whether they have rows in common."""
MOST_TURNED = 4
"""Rows are alike if at most one in so many of their signs differ; of unrelated ones every other does."""
NEAR_ROWS = 64
"""Rows of the base behind one that is known, and before the next, that are looked at for each row of the target in between."""

Rows: TypeAlias = npt.NDArray[np.int64]
MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63], np.uint64)
"""Odd factors that make one number of all keys of a row."""


def is_table(tensor: Tensor) -> bool:
    """Whether a tensor has rows that are long enough for keys."""
    return len(tensor.shape) > 1 and row_units(tensor) >= KEY_UNITS


def row_count(tensor: Tensor) -> int:
    """Rows of a table."""
    return math.prod(tensor.shape[:-1])


def row_keys(tensor: Tensor) -> Keys:
    """Keys of all rows: [rows, n], the same n for all tables whose rows are equally long."""
    width, count, columns = row_units(tensor), row_count(tensor), _columns(tensor)
    keys, step = np.zeros((count, len(columns)), np.uint64), max(UNITS_AT_ONCE // width, 1)
    for first in range(0, count, step):
        units = read_units(tensor, first * width, min(first + step, count) * width).reshape(-1, width)
        keys[first : first + step] = keys_of(units[:, columns], tensor.dtype)
    return keys


def sampled_keys(tensor: Tensor) -> Keys:
    """Keys of some rows, evenly spaced."""
    width, count, columns = row_units(tensor), row_count(tensor), _columns(tensor)
    rows = sorted({k * count // SAMPLED_ROWS for k in range(SAMPLED_ROWS)}) if count else []
    keys = [keys_of(read_units(tensor, row * width, (row + 1) * width)[columns], tensor.dtype) for row in rows]
    return np.array(keys, np.uint64).reshape(len(rows), len(columns))


def _columns(tensor: Tensor) -> npt.NDArray[np.int64]:
    """The columns of each window of a row."""
    width = row_units(tensor)
    starts = sorted({k * (width - KEY_UNITS) // (ROW_KEYS - 1) for k in range(ROW_KEYS)})
    return np.add.outer(starts, np.arange(KEY_UNITS))


class RowIndex:
    """Rows by their keys, each of which only one row has."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._sorted: dict[bool, list[tuple[Keys, Rows]]] = {}

    def candidates(self, keys: Keys, halves: bool = False) -> Rows:
        """By each of several ways the row that some other rows are, [ways, rows]; -1 where there is none.

        ``halves``: by halves of keys, of which training leaves more as they were, but which unrelated rows may share.
        """
        if halves not in self._sorted:
            self._sorted[halves] = [_unique(column) for column in _ways(self.keys, halves)]
        found = []
        for (known, rows), wanted in zip(self._sorted[halves], _ways(keys, halves), strict=True):
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            found.append(np.where(known[at] == wanted, rows[at], -1) if len(known) else np.full(len(wanted), -1, np.int64))
        return np.array(found, np.int64)

    def align(self, keys: Keys) -> Rows:
        """The row for each of the rows of another table; -1 where there is none."""
        found = np.full(len(keys), -1, np.int64)
        for halves in (False, True):
            left = np.flatnonzero(found < 0)
            found[left] = self._nearest(keys[left], self.candidates(keys[left], halves))
        self._fill(found, keys)
        return found

    def _nearest(self, keys: Keys, candidates: Rows) -> Rows:
        """Of some candidates for each row that one of whose signs the fewest differ, if they are alike; else -1."""
        found, nearest = np.full(len(keys), -1, np.int64), np.full(len(keys), self._most_turned() + 1, np.int64)
        for rows in candidates:
            turned = np.where(rows >= 0, _turned(self.keys[rows], keys), nearest)
            found, nearest = np.where(turned < nearest, rows, found), np.minimum(turned, nearest)
        return found

    def distances(self, found: Rows, keys: Keys) -> Rows:
        """How many signs differ between rows and those that were found for them; more than there are where none was."""
        return np.where(found >= 0, _turned(self.keys[found], keys), self.keys.shape[1] * KEY_UNITS + 1)

    def _most_turned(self) -> int:
        """Up to so many signs may differ between rows that are alike."""
        return self.keys.shape[1] * KEY_UNITS // MOST_TURNED

    def _fill(self, found: Rows, keys: Keys) -> None:
        """Look for the rows that no key tells of, in order, between those that the rows around them are."""
        known = np.flatnonzero(found >= 0).tolist()
        for before, after in zip([-1, *known], [*known, len(found)], strict=True) if known else ():
            run = range(before + 1, after)
            last = int(found[after]) if after < len(found) else int(found[before]) + 1 + len(run) + NEAR_ROWS
            first = int(found[before]) + 1 if before >= 0 else last - len(run) - NEAR_ROWS
            self._fill_run(found, keys, run, max(first, 0), min(last, len(self.keys)))

    def _fill_run(self, found: Rows, keys: Keys, run: range, first: int, last: int) -> None:
        """Give each row of a run the nearest of the base's rows from ``first`` to ``last`` that are left, if it is alike."""
        if len(run) == last - first:  # as many rows as there: also those that have become quite different
            found[run.start : run.stop] = np.arange(first, last)
            return
        for row in run:
            if first >= last:
                return
            split = max(min(first + NEAR_ROWS, last), last - NEAR_ROWS)
            near = np.r_[first : min(first + NEAR_ROWS, last), split:last]
            turned = _turned(self.keys[near], keys[row])
            best = int(np.argmin(turned))
            if turned[best] <= self._most_turned():
                found[row] = near[best]
                first = int(near[best]) + 1


def _ways(keys: Keys, halves: bool) -> list[Keys]:
    """The numbers by which a row is found: each of its keys, and all of them together; or each half of its keys."""
    if halves:
        return [*(keys >> np.uint64(32)).T, *(keys & np.uint64(0xFFFFFFFF)).T]
    return [*keys.T, (keys * MIX[: keys.shape[1]]).sum(axis=1, dtype=np.uint64)]


def _turned(a: Keys, b: Keys) -> Rows:
    """How many signs of rows differ."""
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64)


def _unique(keys: Keys) -> tuple[Keys, Rows]:
    """The keys that one row alone has, sorted, and these rows."""
    known, first, counts = np.unique(keys, return_index=True, return_counts=True)
    single = (counts == 1) & ~np.isin(known, NO_KEYS) & (known != np.uint64(0xFFFFFFFF))
    return known[single], first[single].astype(np.int64)


def pieces_of_rows(found: Rows, which: Rows, tables: Sequence[Tensor]) -> Iterator[Piece]:
    """Runs of rows as pieces of tables of the base, and zeros for rows that none has; ``which``: the number of each row's table."""
    width: Any = row_units(tables[0])
    known = found >= 0
    breaks = np.flatnonzero((known[1:] != known[:-1]) | (known[1:] & ((np.diff(found) != 1) | (which[1:] != which[:-1])))) + 1
    for first, stop in zip([0, *breaks], [*breaks, len(found)], strict=True):
        if found[first] >= 0:
            yield Piece(tables[which[first]].name, int(found[first]) * width, int(stop - first) * width)
        elif stop > first:
            yield Piece(None, 0, int(stop - first) * width)


class RowTables:
    """Which tables of a base have rows of a target's: by some rows of each, which are read once."""

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.tables = tables
        keys = [sampled_keys(table) for table in tables]
        self._owners = np.repeat(np.arange(len(tables)), [len(row) for row in keys])
        self._index = RowIndex(np.concatenate(keys)) if keys else None

    def votes(self, keys: Keys) -> Rows:
        """How many of the rows that were read of each table are among some rows, given by their keys."""
        if self._index is None:
            return np.zeros(0, np.int64)
        found = np.unique(self._index.candidates(keys))
        return np.bincount(self._owners[found[found >= 0]], minlength=len(self.tables))

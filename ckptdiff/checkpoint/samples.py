"""Samples of tensors, and whether a sample of a base shows that a target was made from it.

Weights that training has moved are a few ulps from where they were, while two unrelated tensors of one distribution are as far apart as
a tensor is from itself when it is rotated. So the sample itself says how far apart unrelated units would be. All is counted in whole
bits, so that every machine decides alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.gather import gather, within
from ckptdiff.format.dtypes import DTYPES

Array: TypeAlias = npt.NDArray[Any]

WINDOWS = 8
"""Windows of a sample."""
WINDOW_UNITS = 512
"""Units of a window."""
BYTES_TOGETHER = 1 << 19
"""Bytes of windows of either side that are read and compared at once."""
LEAST_UNITS = 64
"""Units from which a sample can show that two tensors have nothing to do with each other."""


@dataclass(frozen=True, slots=True)
class Relation:
    """How far apart a sample of a base and one of a target are, in bits: the sum of the lengths of the ulp distances (spec 7.2)."""

    bits: int
    """Between the units at the same places."""
    rotated: int
    """Between the target's units and the base's rotated."""
    related: bool | None
    """Whether the target was made from the base; None where a sample cannot tell, as it is short, or one side of it constant."""
    everywhere: bool
    """Whether no window of the sample shows the contrary."""


def windows_of(units: int, count: int, size: int) -> list[tuple[int, int]]:
    """First and last unit, exclusively, of each window of a tensor of so many units: all of a short one, else evenly spaced windows."""
    if units <= count * size:
        return [(0, units)]
    starts = [k * (units - size) // (count - 1) for k in range(count)] if count > 1 else [(units - size) // 2]
    return [(start, start + size) for start in starts]


def read_units(tensor: Tensor | AdaptedBase, first: int, stop: int) -> Array:
    """Units ``first`` to ``stop`` of a tensor, as unsigned integers; the memory is the caller's own."""
    carrier = DTYPES[tensor.dtype].carrier
    return tensor.read(first * carrier, stop * carrier, "sample").view(f"<u{carrier}").copy()


def cast_units(units: Array, source: str, target: str) -> Array:
    """Units cast as spec section 8 says."""
    return units if source == target else kernels.casts.cast(units.view(np.uint8), source, target).view(f"<u{DTYPES[target].carrier}")


def sample_of(tensor: Tensor | AdaptedBase) -> Array:
    """The units of all windows of a sample."""
    return np.concatenate([read_units(tensor, *window) for window in windows_of(tensor.units, WINDOWS, WINDOW_UNITS)])


def relation(base: Array, target: Array, dtype: str) -> Relation:
    """Compare samples of one length, of units of one dtype."""
    if len(base) == 0 or np.array_equal(base, target):
        return Relation(0, 0, True, True)
    places, turn = len(base), _turn(base)
    rows = np.concatenate((base, base[-turn:], base[:-turn], target)).reshape(
        3, places
    )  # at once: of small samples NumPy's calls take the time
    ordered = _ordered(rows, dtype)
    bits = _bits(ordered[:2], ordered[2])
    if places < LEAST_UNITS or _is_constant(ordered[0]) or _is_constant(ordered[2]):
        return Relation(int(bits[0].sum()), int(bits[1].sum()), None, True)
    by_window = places % WINDOW_UNITS == 0  # else the sample is a short tensor, which is one window
    windows = bits.reshape(2, -1, WINDOW_UNITS if by_window else places).sum(axis=2, dtype=np.int64)
    total, rotated_total = windows.sum(axis=1).tolist()
    return Relation(total, rotated_total, 4 * total <= 3 * rotated_total, bool((4 * windows[0] <= 3 * windows[1]).all()))


def compare(base: AdaptedBase, target: Tensor) -> Relation:
    """Compare the samples of a target, and of a base that was adapted to it."""
    return relation(sample_of(base), sample_of(target), target.dtype)


def agree(base: AdaptedBase, target: Tensor, windows: Sequence[tuple[int, int]]) -> bool:
    """Whether no window of a pair shows that it is unrelated; a window that cannot tell does not."""
    pairs = ((read_units(base, *window), read_units(target, *window)) for window in windows)
    return all(is_close(old, new) or relation(old, new, target.dtype).related is not False for old, new in pairs)


class WindowPair(NamedTuple):
    """A window of a pair, whose base is one whole tensor."""

    pair: int
    """Number of the pair."""
    base: Tensor
    target: Tensor
    start: int
    nbytes: int
    """Where in both tensors it begins, and its size, in bytes."""


def all_agree(pairs: Sequence[tuple[AdaptedBase, Tensor, Sequence[tuple[int, int]]]]) -> list[bool]:
    """:func:`agree` of pairs and their windows. Those whose base is one whole tensor are read and compared at once."""
    found, windows = list[bool](), defaultdict[str, list[WindowPair]](list)
    for k, (base, target, places) in enumerate(pairs):
        if base.whole is None:
            found.append(agree(base, target, places))
            continue
        found.append(True)
        width = DTYPES[target.dtype].carrier
        windows[target.dtype] += [WindowPair(k, base.whole, target, a * width, (b - a) * width) for a, b in places if b > a]
    for dtype, rows in windows.items():
        sizes = [row.nbytes for row in rows]
        for numbers in within(range(len(rows)), sizes.__getitem__, BYTES_TOGETHER):
            for k in _unrelated_of([rows[k] for k in numbers], dtype):
                found[rows[numbers[k]].pair] = False
    return found


def _unrelated_of(windows: Sequence[WindowPair], dtype: str) -> list[int]:
    """The numbers of those windows that show that their pair is unrelated."""
    bounds, starts, unit = [0, *accumulate(row.nbytes for row in windows)], [row.start for row in windows], f"<u{DTYPES[dtype].carrier}"
    old = gather([row.base for row in windows], bounds, "base", starts).view(unit)
    new = gather([row.target for row in windows], bounds, "target", starts).view(unit)
    sizes = np.array([row.nbytes for row in windows], np.int64) // old.itemsize
    doubtful = np.flatnonzero(~are_close(old, new, sizes) & (sizes >= LEAST_UNITS))
    if not len(doubtful):
        return []
    kept = np.repeat(np.isin(np.arange(len(sizes)), doubtful), sizes)
    unrelated: list[int] = doubtful[are_unrelated(old[kept], new[kept], sizes[doubtful], dtype)].tolist()
    return unrelated


def _rotated(units: Array, sizes: Array, starts: Array) -> Array:
    """Samples that lie one behind the other, each rotated."""
    places = np.arange(len(units)) - np.repeat(sizes * 3 // 8 | 1, sizes)  # as _turn
    places += np.where(places < np.repeat(starts, sizes), np.repeat(sizes, sizes), 0)
    rotated: Array = units[places]
    return rotated


def are_close(base: Array, target: Array, sizes: Array) -> Array:
    """:func:`is_close` of samples that lie one behind the other, given the units of each: int64, none 0."""
    starts = np.cumsum(sizes) - sizes
    apart, rotated = (np.add.reduceat(old != target, starts, dtype=np.int64) for old in (base, _rotated(base, sizes, starts)))
    close: Array = 4 * (8 * base.itemsize + 1) * apart <= 3 * rotated
    return close


def are_unrelated(base: Array, target: Array, sizes: Array, dtype: str) -> Array:
    """Whether :func:`relation` finds samples that lie one behind the other unrelated, given the units of each: none too few for that."""
    starts = np.cumsum(sizes) - sizes
    old, new = _ordered(base, dtype), _ordered(target, dtype)
    total, rotated = (np.add.reduceat(_bits(units, new), starts, dtype=np.int64) for units in (old, _rotated(old, sizes, starts)))
    constant = [np.minimum.reduceat(units, starts) == np.maximum.reduceat(units, starts) for units in (old, new)]
    unrelated: Array = (4 * total > 3 * rotated) & ~constant[0] & ~constant[1]
    return unrelated


def is_close(base: Array, target: Array) -> bool:
    """Whether samples differ at so few places that :func:`relation` cannot find them unrelated, which is seen in a tenth of its time.

    A distance has at most one bit more than a unit, as it is rounded to a float, and at least one where units differ.
    """
    turn = _turn(base)
    rotated = np.count_nonzero(np.concatenate((base[-turn:], base[:-turn])) != target)
    return bool(4 * (8 * base.itemsize + 1) * np.count_nonzero(base != target) <= 3 * rotated)


def _turn(base: Array) -> int:
    """By how many units a sample is rotated."""
    return len(base) * 3 // 8 | 1


def _is_constant(units: Array) -> bool:
    return bool((units == units[0]).all())


def _ordered(units: Array, dtype: str) -> Array:
    """Units as integers in the order of spec 7.2."""
    row = DTYPES[dtype]
    if not row.is_float:
        return units
    top = units.dtype.type(1 << (8 * row.carrier - 1))
    return np.where(units & top, ~units, units | top)


def _bits(old: Array, new: Array) -> Array:
    """The lengths in bits of the distances of ordered units."""
    distance = np.maximum(old, new) - np.minimum(old, new)
    return np.frexp(distance.astype(np.float64))[1]

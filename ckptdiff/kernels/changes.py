"""Kernels over the units of a block: their classes, which changed, by how many ulps and to which side (spec section 7.5.1)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.jit import ONE, ZERO, below, jit, prefetch, unequal, zeros_below
from ckptdiff.kernels.leaves import PIECE, add_steps, as_leaves, begin, finish

Array = npt.NDArray[Any]


LARGE, RARE = 1 << 18, 1 << 11
"""From so many units on a part of them is counted where that only guides a choice; a class of fewer is rare."""


@jit
def fill_classes(units, shift, mask, classes):
    for i in range(len(units)):
        classes[i] = np.uint8((np.uint64(units[i]) >> shift) & mask)


@jit
def fill_positions(units, others, positions):
    """Positions of the units that differ from ``others``: as many units, or 64 for every 64. Returns how many there are."""
    n, whole, every = 0, len(units) - len(units) % 64, len(others) == len(units)
    for i in range(0, whole, 64):
        found = unequal(units, i, others, i if every else 0)
        while found != ZERO:
            positions[n] = np.int32(i + np.int64(zeros_below(found)))
            found &= found - ONE
            n += 1
    for i in range(whole, len(units)):
        if units[i] != others[i if every else 0]:
            positions[n] = np.int32(i)
            n += 1
    return n


@jit
def ordered(unit, top, is_float):
    """The ordered integer of a unit (spec 7.2)."""
    flip = ZERO
    if is_float:
        flip = (ZERO - (unit >> top)) | (ONE << top)
    return unit ^ flip


@jit
def step(old, new, top, is_float):
    """Distance of two units, and whether it is downwards; ``top`` is the place of a unit's highest bit."""
    most = (((ONE << top) - ONE) << ONE) + ONE
    up = (ordered(new, top, is_float) - ordered(old, top, is_float)) & most
    down = up >> top
    return ((up ^ (ZERO - down)) + down) & most, down


@jit
def zigzag_of(old, new, top, is_float):
    """Zigzag of the ulp distance between two units (spec 7.2)."""
    most = (((ONE << top) - ONE) << ONE) + ONE
    up = (ordered(new, top, is_float) - ordered(old, top, is_float)) & most
    return ((up << ONE) ^ (ZERO - (up >> top))) & most


@jit
def count(values, each, sums):
    """Count values, or of a sample of one in ``each``, in two rows that take turns: an adder that waits for itself takes longer.

    The sample moves on by one every 16, so that it does not keep to the same columns of a matrix; :func:`scaled` takes it to all.
    """
    even, odd = sums[0], sums[1]
    if each > 1:
        for start in range(0, len(values) - 16 * each, 16 * each + 1):
            for k in range(0, 16 * each, 2 * each):
                even[values[np.uint64(start + k)]] += np.int32(1)
                odd[values[np.uint64(start + k + each)]] += np.int32(1)
        return
    for i in range(0, len(values) - 1, 2):
        even[values[i]] += np.int32(1)
        odd[values[i + 1]] += np.int32(1)
    if len(values) & 1:
        even[values[len(values) - 1]] += np.int32(1)


@jit
def scaled(sums, c, each):
    """About how many there are of a value that :func:`count` counted."""
    found = np.int64(sums[0, c]) + np.int64(sums[1, c])
    return found if each == 1 else found * (16 * each + 1) // 16


@jit
def fill_units(classes, each, sums, limit, units):
    """How many units there are of each class, by a sample of one in ``each``, but exactly of rare classes at the low end."""
    count(classes, each, sums)
    for c in range(256):
        units[c] = scaled(sums, c, each)
    if each == 1:
        return
    first = 0
    while first < 255 and units[first] < RARE:
        units[first] = 0
        first += 1
    limit[:] = np.uint8(first)
    whole = len(classes) - len(classes) % 64
    for i in range(0, whole, 64):
        found = below(classes, i, limit, 0)
        while found != ZERO:
            units[classes[i + np.int64(zeros_below(found))]] += 1
            found &= found - ONE
    for i in range(whole, len(classes)):
        if classes[i] < limit[0]:
            units[classes[i]] += 1


@jit
def fill_changes(old, new, first, top, is_float, n, positions, zigzags):
    """Behind ``n`` changes those of some units more, the first of which is number ``first``. Returns how many there are then."""
    whole, ahead = len(old) - len(old) % 64, PIECE // old.itemsize
    for i in range(0, whole, 64):
        prefetch(old, i + ahead)
        prefetch(new, i + ahead)
        found = unequal(old, i, new, i)
        while found != ZERO:
            at = i + np.int64(zeros_below(found))
            positions[n] = np.int32(first + at)
            zigzags[n] = zigzag_of(np.uint64(old[at]), np.uint64(new[at]), top, is_float)
            found &= found - ONE
            n += 1
    for at in range(whole, len(old)):
        if old[at] != new[at]:
            positions[n] = np.int32(first + at)
            zigzags[n] = zigzag_of(np.uint64(old[at]), np.uint64(new[at]), top, is_float)
            n += 1
    return n


@jit
def fill_compared(base, target, old, new, top, is_float, positions, zigzags, ends, sums, leaves):
    """Changes of each block, and its leaves: piece by piece, so that what is hashed is in the cache."""
    n, width = 0, len(base) // max(len(old), 1)
    for k in range(len(ends) - 1):
        block, size = k * BLOCK, min(BLOCK, len(base) - k * BLOCK)
        begin(sums[0])
        begin(sums[1])
        for at in range(0, size, PIECE):
            stop = min(at + PIECE, size)
            first, last = (block + at) // width, (block + stop) // width
            n = fill_changes(old[first:last], new[first:last], at // width, top, is_float, n, positions, zigzags)
            add_steps(sums[0], base, block, size, at, stop)
            add_steps(sums[1], target, block, size, at, stop)
        finish(sums[0], base, block, size, leaves[0, k])
        finish(sums[1], target, block, size, leaves[1, k])
        ends[k + 1] = n


@jit
def measure_zigzags(old, positions, zigzags, top, is_float, distances, signs):
    for x in range(len(positions)):
        zigzag = np.uint64(zigzags[x])
        down = zigzag & ONE
        distances[x] = (zigzag >> ONE) + down
        signs[x] = np.uint8(down ^ (np.uint64(old[positions[x]]) >> top)) if is_float else np.uint8(down)


@jit
def fill_from_distances(units, positions, distances, signs, top, is_float, zigzags):
    most = (((ONE << top) - ONE) << ONE) + ONE
    for x in range(len(positions)):
        down, distance = np.uint64(signs[x]), distances[x]
        if is_float:
            down ^= np.uint64(units[positions[x]]) >> top
        if distance > (ONE << top) - ONE + down:
            return False
        zigzags[x] = (((distance - down) << ONE) | down) & most
    return True


@jit
def moved(unit, zigzag, top, is_float, back):
    """A unit moved by the zigzag of an ulp distance, or back."""
    most = (((ONE << top) - ONE) << ONE) + ONE
    up = (zigzag >> ONE) ^ (ZERO - (zigzag & ONE))
    if back:
        up = ZERO - up
    value = (ordered(unit, top, is_float) + up) & most
    flip = ZERO
    if is_float:
        flip = ((value >> top) - ONE) | (ONE << top)
    return (value ^ flip) & most


@jit
def shift(units, positions, zigzags, top, is_float, back):
    for x in range(len(positions)):
        units[positions[x]] = moved(np.uint64(units[positions[x]]), np.uint64(zigzags[x]), top, is_float, back)


@jit
def shift_and_hash(data, units, positions, zigzags, top, is_float, back, sums, leaves):
    """As :func:`shift` of a run of blocks, of all its units without positions; and its leaves, if there is place for them."""
    x, width, every = 0, len(data) // len(units), len(positions) == 0
    for block in range(0, len(data), BLOCK):
        size = min(BLOCK, len(data) - block)
        begin(sums)
        for at in range(0, size, PIECE):
            stop = min(at + PIECE, size)
            last = (block + stop) // width
            while x < len(zigzags) and (x if every else positions[x]) < last:
                here = x if every else np.int64(positions[x])
                units[here] = moved(np.uint64(units[here]), np.uint64(zigzags[x]), top, is_float, back)
                x += 1
            if len(leaves):
                add_steps(sums, data, block, size, at, stop)
        if len(leaves):
            finish(sums, data, block, size, leaves[block // BLOCK])


class _Memory:
    """Read-only memory, shown to NumPy as any other."""

    def __init__(self, array: Array) -> None:
        self.owner, interface = array, array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def readable(array: Array) -> Array:
    """An array for a kernel that does not write to it: a read-only one would be of a kind of its own, for which all is compiled again."""
    return array if array.flags.writeable else np.asarray(_Memory(array))


def classes_of(units: Units, dtype: Dtype) -> Bytes:
    """Class of each unit: where its exponent, or what is most like one, stands. Scratch."""
    classes = scratch("classes", len(units), np.uint8)
    fill_classes(readable(units), np.uint64(dtype.class_shift), np.uint64(dtype.class_mask), classes)
    return classes


def units_of(classes: Bytes, exact: bool = False) -> Array:
    """How many units there are of each class: of a large block about so many, good enough to choose by, unless ``exact``."""
    units, each = np.zeros(256, np.int64), 4 if len(classes) >= LARGE and not exact else 1
    fill_units(classes, each, np.zeros((2, 256), np.int32), np.empty(64, np.uint8), units)
    return units


def _check(units: Array, positions: Array, *values: Array) -> None:
    """Kernels index without looking: there must be as many values as positions, and these, which rise, must be those of units."""
    if any(len(row) != len(positions) for row in values) or (len(positions) and not 0 <= positions[0] <= positions[-1] < len(units)):
        raise ValueError(f"changes of {len(units)} units have {len(positions)} positions that do not lie in them, or other values")


def _check_lengths(units: Array, others: Array) -> None:
    if len(units) != len(others):
        raise ValueError(f"{len(units)} units cannot be compared with {len(others)}")


def differing(units: Array, others: Array | int) -> Array:
    """Positions of the units that differ from ``others``. Scratch."""
    if not isinstance(others, int):
        _check_lengths(units, others)
    positions = scratch("positions", len(units) + 1, np.int32)
    return positions[: fill_positions(units, np.full(64, others, units.dtype) if isinstance(others, int) else others, positions)]


def changes_of(base: Bytes, target: Bytes, dtype: Dtype) -> Changes:
    """Positions of the units of a block that differ, and the zigzag of their ulp distances. Scratch."""
    old, new, top = readable(base).view(dtype.unit), readable(target).view(dtype.unit), np.uint64(8 * dtype.carrier - 1)
    _check_lengths(old, new)
    positions, zigzags = scratch("positions", len(old), np.int32), scratch("zigzags", len(old), dtype.unit)
    count = fill_changes(old, new, 0, top, dtype.is_float, 0, positions, zigzags)
    return positions[:count], zigzags[:count]


def compared(base: Bytes, target: Bytes, dtype: Dtype) -> tuple[list[Changes], list[bytes], list[bytes]]:
    """Changes of each block of a run (scratch), and the leaves of base and target, by reading memory once."""
    base, target = readable(base), readable(target)
    old, new, blocks = base.view(dtype.unit), target.view(dtype.unit), block_count(len(base))
    _check_lengths(old, new)
    positions, zigzags = scratch("positions", len(old), np.int32), scratch("zigzags", len(old), dtype.unit)
    ends, leaves = np.zeros(blocks + 1, np.int64), np.empty((2, blocks, 2), np.uint64)
    top, sums = np.uint64(8 * dtype.carrier - 1), np.empty((2, 8), np.uint64)
    fill_compared(base, target, old, new, top, dtype.is_float, positions, zigzags, ends, sums, leaves)
    found = [(positions[i:j], zigzags[i:j]) for i, j in itertools.pairwise(ends.tolist())]
    return found, as_leaves(leaves[0], base), as_leaves(leaves[1], target)


def distances_of(old: Units, positions: Array, zigzags: Units, dtype: Dtype) -> tuple[Array, Bytes]:
    """Distance and side of each change: 1 for down, and of floats for towards zero. Scratch."""
    _check(old, positions, zigzags)
    distances, signs = scratch("distances", len(positions), np.uint64), scratch("signs", len(positions), np.uint8)
    measure_zigzags(readable(old), positions, zigzags, np.uint64(8 * dtype.carrier - 1), dtype.is_float, distances, signs)
    return distances, signs


def zigzags_of_distances(units: Units, positions: Array, distances: Array, signs: Bytes, dtype: Dtype, zigzags: Units) -> bool:
    """Inverse of :func:`distances_of`; returns whether each unit can move that far."""
    _check(units, positions, distances, signs, zigzags)
    top = np.uint64(8 * dtype.carrier - 1)
    return bool(fill_from_distances(readable(units), positions, distances, signs, top, dtype.is_float, zigzags))


def shift_units(units: Units, positions: Array, zigzags: Units, dtype: Dtype, back: bool) -> None:
    """Move units in place by the zigzag of ulp distances, or back."""
    _check(units, positions, zigzags)
    shift(units, positions, zigzags, np.uint64(8 * dtype.carrier - 1), dtype.is_float, back)


def move_run(run: Bytes, positions: Array | None, zigzags: Units, dtype: Dtype, back: bool, hashed: bool) -> list[bytes]:
    """Move units of a run of blocks in place, those at ``positions`` or all; its leaves afterwards, if it shall be hashed."""
    units, where = run.view(dtype.unit), np.empty(0, np.int32) if positions is None else positions
    if positions is None:
        _check_lengths(units, zigzags)
    else:
        _check(units, positions, zigzags)
    leaves, top = np.empty((block_count(len(run)) if hashed else 0, 2), np.uint64), np.uint64(8 * dtype.carrier - 1)
    shift_and_hash(run, units, where, zigzags, top, dtype.is_float, back, np.empty(8, np.uint64), leaves)
    return as_leaves(leaves, run) if hashed else []

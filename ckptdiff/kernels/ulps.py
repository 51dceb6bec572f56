"""Kernels: units as ordered integers, and how far apart two of them are (spec section 7.2)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.arrays import check_positions, readable
from ckptdiff.kernels.jit import ONE, ZERO, jit

Array = npt.NDArray[Any]


class UnitOrder(NamedTuple):
    """How the units of a dtype order, for kernels; they hold units in uint64."""

    top: np.uint64
    """Number of a unit's highest bit: 7, 15, 31 or 63."""
    is_float: bool
    """Whether units order as floats of sign and magnitude; else as unsigned integers."""


@lru_cache
def order_of(dtype: Dtype) -> UnitOrder:
    """The order of a dtype's units."""
    return UnitOrder(np.uint64(8 * dtype.carrier - 1), dtype.is_float)


class SizedChanges(NamedTuple):
    """The changes of a block, as the ``context`` codec codes them (spec 7.5.1): three arrays of one length."""

    positions: Array
    """Number in the block of each unit that changed, rising: int32."""
    distances: Array
    """How many ulps it moved, at least 1: uint64."""
    sides: Array
    """1 where an integer moved down, and where a float moved towards zero; else 0: uint8."""

    @classmethod
    def scratch(cls, count: int, positions: Array) -> SizedChanges:
        """Distances and sides to fill, in scratch memory, beside positions."""
        return cls(positions, scratch("distances", count, np.uint64), scratch("sides", count, np.uint8))


@jit
def max_unit(order):
    """The largest unit."""
    return (((ONE << order.top) - ONE) << ONE) + ONE


@jit
def ordered(unit, order):
    """The ordered integer of a unit."""
    flip = ZERO
    if order.is_float:
        flip = (ZERO - (unit >> order.top)) | (ONE << order.top)
    return unit ^ flip


@jit
def distance_between(old, new, order):
    """The distance of two units in ulps, and whether it is downwards: both uint64."""
    up = (ordered(new, order) - ordered(old, order)) & max_unit(order)
    down = up >> order.top
    return ((up ^ (ZERO - down)) + down) & max_unit(order), down


@jit
def zigzag_between(old, new, order):
    """The zigzag of the ulp distance between two units."""
    up = (ordered(new, order) - ordered(old, order)) & max_unit(order)
    return ((up << ONE) ^ (ZERO - (up >> order.top))) & max_unit(order)


@jit
def moved_unit(unit, zigzag, order, back):
    """A unit moved by the zigzag of an ulp distance, or ``back`` by it."""
    up = (zigzag >> ONE) ^ (ZERO - (zigzag & ONE))
    if back:
        up = ZERO - up
    value = (ordered(unit, order) + up) & max_unit(order)
    flip = ZERO
    if order.is_float:
        flip = ((value >> order.top) - ONE) | (ONE << order.top)
    return (value ^ flip) & max_unit(order)


@jit
def fill_sized(old, zigzags, order, changes):
    """Fill the distances and sides of changes whose zigzags and base units are known."""
    positions, distances, sides = changes
    for x in range(len(positions)):
        zigzag = np.uint64(zigzags[x])
        down = zigzag & ONE
        distances[x] = (zigzag >> ONE) + down
        sides[x] = np.uint8(down ^ (np.uint64(old[positions[x]]) >> order.top)) if order.is_float else np.uint8(down)


@jit
def fill_zigzags(units, changes, order, zigzags):
    """Inverse of :func:`fill_sized`; returns False where a distance is larger than there are units on its side."""
    positions, distances, sides = changes
    for x in range(len(positions)):
        down, distance = np.uint64(sides[x]), distances[x]
        if order.is_float:
            down ^= np.uint64(units[positions[x]]) >> order.top
        if distance > (ONE << order.top) - ONE + down:
            return False
        zigzags[x] = (((distance - down) << ONE) | down) & max_unit(order)
    return True


def sized_changes(old: Units, positions: Array, zigzags: Units, dtype: Dtype) -> SizedChanges:
    """Changes with the distance and side of each, given the base's units and the zigzags. Scratch.

    Raises:
        ValueError: positions do not lie in the block, or are not as many as zigzags.
    """
    check_positions(old, positions, zigzags)
    changes = SizedChanges.scratch(len(positions), positions)
    fill_sized(readable(old), zigzags, order_of(dtype), changes)
    return changes


def zigzags_of(units: Units, changes: SizedChanges, dtype: Dtype, zigzags: Units) -> bool:
    """Inverse of :func:`sized_changes`: fills ``zigzags``, and returns whether each unit can move that far.

    Raises:
        ValueError: positions do not lie in the block, or are not as many as the values.
    """
    check_positions(units, changes.positions, changes.distances, changes.sides, zigzags)
    return bool(fill_zigzags(readable(units), changes, order_of(dtype), zigzags))

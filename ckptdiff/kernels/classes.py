"""Kernels: the class of each unit of a block, and how many units there are of each class (spec section 7.5.1)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Bytes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.arrays import readable
from ckptdiff.kernels.jit import ONE, ZERO, below, jit, zeros_below

Array = npt.NDArray[Any]

SAMPLED_FROM = 1 << 18
"""From so many units on, a block is counted by a sample where the counts only guide a choice."""
SAMPLE_STEP = 4
"""One unit of so many is in the sample of classes."""
RARE = 1 << 11
"""A class of fewer units is rare: of so few a sample says little."""


@jit
def fill_classes(units, shift, mask, classes):
    """Fill the class of each unit (uint8): ``(unit >> shift) & mask``, in uint64."""
    for i in range(len(units)):
        classes[i] = np.uint8((np.uint64(units[i]) >> shift) & mask)


@jit
def count_sample(values, each, sums):
    """Count values, or of a sample of one in ``each``, in two rows that take turns: an adder that waits for itself takes longer.

    The sample moves on by one every 16, so that it does not keep to the same columns of a matrix; :func:`estimated` takes it to all.

    Args:
        values: unsigned integers below the length of a row.
        each: 1 for all values, else an even number.
        sums: int32 of at least two rows, the first two of which are added to.
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
def estimated(sums, value, each):
    """About how many there are of a value that :func:`count_sample` counted; exactly if ``each`` is 1."""
    counted = np.int64(sums[0, value]) + np.int64(sums[1, value])
    return counted if each == 1 else counted * (16 * each + 1) // 16


@jit
def fill_units(classes, each, sums, limit, units):
    """Fill how many units there are of each class, by a sample of one in ``each``, but exactly for rare classes at the low end.

    Args:
        classes: uint8.
        each: as for :func:`count_sample`.
        sums: memory to work in, int32[2, 256].
        limit: memory to work in, uint8[64].
        units: int64[256], to fill.
    """
    for c in range(256):
        sums[0, c] = sums[1, c] = np.int32(0)
    count_sample(classes, each, sums)
    for c in range(256):
        units[c] = estimated(sums, c, each)
    if each == 1:
        return
    first = 0
    while first < 255 and units[first] < RARE:
        units[first] = 0
        first += 1
    limit[:] = np.uint8(first)
    whole = len(classes) - len(classes) % 64
    for i in range(0, whole, 64):
        rare = below(classes, i, limit, 0)
        while rare != ZERO:
            units[classes[i + np.int64(zeros_below(rare))]] += 1
            rare &= rare - ONE
    for i in range(whole, len(classes)):
        if classes[i] < limit[0]:
            units[classes[i]] += 1


class ClassBits(NamedTuple):
    """Which bits of a dtype's units are their class, for kernels: ``(unit >> shift) & mask``."""

    shift: np.uint64
    mask: np.uint64


@lru_cache
def bits_of(dtype: Dtype) -> ClassBits:
    """The class bits of a dtype's units: of a float its exponent, of other units the highest byte."""
    return ClassBits(np.uint64(dtype.class_shift), np.uint64(dtype.class_mask))


def classes_of(units: Units, dtype: Dtype) -> Bytes:
    """Class of each unit. Scratch."""
    classes = scratch("classes", len(units), np.uint8)
    fill_classes(readable(units), *bits_of(dtype), classes)
    return classes


def sample_step(units: int, exact: bool) -> int:
    """The ``each`` of :func:`fill_units` for a block of so many units."""
    return SAMPLE_STEP if units >= SAMPLED_FROM and not exact else 1


def units_of(classes: Bytes) -> Array:
    """How many units there are of each class. For a large block the counts are estimates to choose by."""
    units = np.empty(256, np.int64)
    fill_units(classes, sample_step(len(classes), False), np.empty((2, 256), np.int32), np.empty(64, np.uint8), units)
    return units

"""Kernels over the units of a block: their classes, which changed, by how many ulps and to which side (spec section 7.5.1)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.jit import ONE, ZERO, jit, zeros_below
from ckptdiff.dtypes import Bytes, Dtype, Units
from ckptdiff.scratch import scratch

Array = npt.NDArray[Any]


@jit
def fill_classes(units, shift, mask, classes):
    for i in range(len(units)):
        classes[i] = np.uint8((np.uint64(units[i]) >> shift) & mask)


@jit
def fill_positions(flags, positions):
    """Positions of the bytes that are 1; ``flags`` holds eight a word, the first lowest, and 64 times n. Returns how many there are."""
    n = 0
    for w in range(0, len(flags), 8):
        ones = ZERO
        for k in range(8):  # a bit from each byte: the product's highest byte
            ones |= ((flags[w + k] * np.uint64(0x0102040810204080)) >> np.uint64(56)) << np.uint64(8 * k)
        while ones != ZERO:
            positions[n] = np.int32(8 * w + np.int64(zeros_below(ones)))
            ones &= ones - ONE
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
    """Distance of two units, and whether it is downwards."""
    most = (((ONE << top) - ONE) << ONE) + ONE
    up = (ordered(new, top, is_float) - ordered(old, top, is_float)) & most
    down = up >> top
    return ((up ^ (ZERO - down)) + down) & most, down


@jit
def measure(old, new, positions, top, is_float, distances, signs):
    """``top`` is the place of a unit's highest bit."""
    for x in range(len(positions)):
        unit = np.uint64(old[positions[x]])
        distances[x], down = step(unit, np.uint64(new[positions[x]]), top, is_float)
        signs[x] = np.uint8(down ^ (unit >> top)) if is_float else np.uint8(down)


@jit
def count(values, each, sums):
    """Count each so-manieth value in two rows that take turns: an adder that waits for itself takes longer."""
    even, odd = sums[0], sums[1]
    i = 0
    while i + each < len(values):
        even[values[i]] += np.int32(1)
        odd[values[i + each]] += np.int32(1)
        i += 2 * each
    if i < len(values):
        even[values[i]] += np.int32(1)


@jit
def fill_zigzags(old, new, positions, top, is_float, zigzags):
    most = (((ONE << top) - ONE) << ONE) + ONE
    for x in range(len(positions)):
        a, b = np.uint64(old[positions[x]]), np.uint64(new[positions[x]])
        up = (ordered(b, top, is_float) - ordered(a, top, is_float)) & most
        zigzags[x] = ((up << ONE) ^ (ZERO - (up >> top))) & most


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
def shift(units, positions, zigzags, top, is_float, back):
    most = (((ONE << top) - ONE) << ONE) + ONE
    for x in range(len(positions)):
        zigzag = np.uint64(zigzags[x])
        up = (zigzag >> ONE) ^ (ZERO - (zigzag & ONE))
        if back:
            up = ZERO - up
        value = (ordered(np.uint64(units[positions[x]]), top, is_float) + up) & most
        flip = ZERO
        if is_float:
            flip = ((value >> top) - ONE) | (ONE << top)
        units[positions[x]] = (value ^ flip) & most


def classes_of(units: Units, dtype: Dtype) -> Bytes:
    """Class of each unit: where its exponent, or what is most like one, stands. Scratch."""
    classes = scratch("classes", len(units), np.uint8)
    fill_classes(units, np.uint64(dtype.class_shift), np.uint64(dtype.class_mask), classes)
    return classes


def differing(units: Array, others: Array | int) -> Array:
    """Positions of the units that differ from ``others``. Scratch."""
    n = len(units)
    flags, positions = scratch("flags", n + -n % 64, np.uint8), scratch("positions", n + 1, np.int32)
    flags[n:] = 0
    np.not_equal(units, others, out=flags[:n].view(np.bool_))
    return positions[: fill_positions(flags.view(np.uint64), positions)]


def distances_of(old: Units, new: Units, positions: Array, dtype: Dtype) -> tuple[Array, Bytes]:
    """Distance and side of each change. Scratch."""
    distances, signs = scratch("distances", len(positions), np.uint64), scratch("signs", len(positions), np.uint8)
    measure(old, new, positions, np.uint64(8 * dtype.carrier - 1), dtype.is_float, distances, signs)
    return distances, signs


def zigzags_of(old: Units, new: Units, positions: Array, dtype: Dtype) -> Units:
    """Zigzag of the ulp distance of each change, modulo 2^m (spec 7.2)."""
    zigzags = np.empty(len(positions), dtype.unit)
    fill_zigzags(old, new, positions, np.uint64(8 * dtype.carrier - 1), dtype.is_float, zigzags)
    return zigzags


def distances_of_zigzags(old: Units, positions: Array, zigzags: Units, dtype: Dtype) -> tuple[Array, Bytes]:
    """What :func:`distances_of` gives. Scratch."""
    distances, signs = scratch("distances", len(positions), np.uint64), scratch("signs", len(positions), np.uint8)
    measure_zigzags(old, positions, zigzags, np.uint64(8 * dtype.carrier - 1), dtype.is_float, distances, signs)
    return distances, signs


def zigzags_of_distances(units: Units, positions: Array, distances: Array, signs: Bytes, dtype: Dtype, zigzags: Units) -> bool:
    """Inverse of :func:`distances_of_zigzags`; returns whether each unit can move that far."""
    top = np.uint64(8 * dtype.carrier - 1)
    return bool(fill_from_distances(units, positions, distances, signs, top, dtype.is_float, zigzags))


def shift_units(units: Units, positions: Array, zigzags: Units, dtype: Dtype, back: bool) -> None:
    """Move units in place by the zigzag of ulp distances, or back."""
    shift(units, positions, zigzags, np.uint64(8 * dtype.carrier - 1), dtype.is_float, back)

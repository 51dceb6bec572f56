"""Kernels: a block coded and decoded by the adaptive form of ``context`` (spec section 7.5.2), and what is wrong with one."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Changes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.adaptive import CONTEXTS_PER_BIT, decode_changes, encode_changes, new_contexts
from ckptdiff.kernels.arrays import readable
from ckptdiff.kernels.classes import bits_of, fill_classes, fill_units
from ckptdiff.kernels.jit import ZERO, jit
from ckptdiff.kernels.pace import RATES, WEIGHTS, choose_rates, put_rates, take_rates
from ckptdiff.kernels.raw_bits import BitWriter
from ckptdiff.kernels.ulps import SizedChanges, fill_sized, fill_zigzags, order_of

Array = npt.NDArray[Any]


class Counts(NamedTuple):
    """What a block's rates are chosen by, and the rates: memory that kernels work in, a value for each class."""

    changed: Array
    """int64[256]: how many units of each class changed."""
    units: Array
    """int64[256]: how many units there are, or about so many."""
    sums: Array
    """int32[2, 256]."""
    limit: Array
    """uint8[64]."""
    rates: Array
    """uint8[256]."""
    weights: Array
    """uint32[256], in 2^-24 octaves."""

    @classmethod
    def new(cls) -> Counts:
        """Memory with arbitrary contents."""
        changed, units = np.empty((2, 256), np.int64)
        rates, weights = np.empty(256, np.uint8), np.empty(256, np.uint32)
        return cls(changed, units, np.empty((2, 256), np.int32), np.empty(64, np.uint8), rates, weights)


class _ThreadMemory(threading.local):
    """What each thread uses for block after block."""

    def __init__(self) -> None:
        self.counts, self.met = Counts.new(), np.empty(256, np.uint8)


thread_memory = _ThreadMemory()


@jit
def encode_units(old, classes, bits, changes, zigzags, order, each, counts, contexts, met, raw, words):
    """Code a block.

    Args:
        old: units of the base.
        classes: memory to work in, uint8, one for each unit.
        bits: :class:`~ckptdiff.kernels.classes.ClassBits`.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` of which the positions are known, at least one.
        zigzags: one for each.
        order: :class:`~ckptdiff.kernels.ulps.UnitOrder`.
        each: as of :func:`~ckptdiff.kernels.classes.fill_units`.
        counts: :class:`Counts`.
        contexts, met: memory for :class:`~ckptdiff.kernels.adaptive.ClassContexts` of all classes.
        raw: uint32, for the raw bits.
        words: uint16, for the range coder.

    Returns:
        As of :func:`~ckptdiff.kernels.adaptive.encode_changes`.
    """
    fill_classes(old, bits.shift, bits.mask, classes)
    fill_sized(old, zigzags, order, changes)
    for c in range(256):
        counts.changed[c], counts.rates[c] = 0, np.uint8(0)
    for x in range(len(changes.positions)):
        counts.changed[classes[changes.positions[x]]] += 1
    lo, hi = 0, 255
    while counts.changed[lo] == 0:
        lo += 1
    while counts.changed[hi] == 0:
        hi -= 1
    fill_units(classes, each, counts.sums, counts.limit, counts.units)
    for c in range(256):
        counts.units[c] = max(counts.units[c], counts.changed[c])
    choose_rates(counts.units, counts.changed, lo, hi, counts.rates)
    for c in range(256):
        counts.weights[c] = WEIGHTS[counts.rates[c]]
    writer = put_rates(counts.rates, lo, hi, raw, BitWriter(ZERO, 0, 0))
    learned = new_contexts(lo, hi, np.int64(order.top) + 1, contexts, met)
    return encode_changes(classes, changes, counts.weights, learned, raw, writer, words)


class Decoded(NamedTuple):
    """What :func:`decode_units` found."""

    lo: int
    hi: int
    """The lowest and the highest class that changes; a ``lo`` of -1 says that a rate is not one."""
    changed: int
    """How many units changed; -1 where the code leaves the range."""
    words: int
    """How many words were taken."""
    bits: int
    """How many raw bits were taken."""
    fits: bool
    """Whether each unit can move as far as it is said to."""


@jit
def decode_units(units, classes, bits, order, weights, contexts, met, raw, words, changes, zigzags):
    """Inverse of :func:`encode_units`; returns :class:`Decoded`.

    Args:
        units: of the base.
        classes, bits, order, contexts, met, raw: as there.
        weights: memory to work in, uint32[256].
        words: as of :func:`~ckptdiff.kernels.adaptive.decode_changes`.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` with room for one of each unit, to fill.
        zigzags: as many, as units are, to fill.
    """
    for c in range(256):
        weights[c] = np.uint32(0)
    lo, hi, position = take_rates(raw, weights)
    if lo < 0 or lo > hi:
        return Decoded(lo, hi, 0, 0, position, True)
    fill_classes(units, bits.shift, bits.mask, classes)
    learned = new_contexts(lo, hi, np.int64(order.top) + 1, contexts, met)
    count, at, position = decode_changes(classes, weights, learned, raw, position, words, changes)
    found = SizedChanges(changes.positions[:count], changes.distances[:count], changes.sides[:count])
    return Decoded(lo, hi, count, at, position, count > 0 and fill_zigzags(units, found, order, zigzags))


def decode_named(units: Units, coded: memoryview | bytes, raw: Array, dtype: Dtype) -> tuple[Changes, int]:
    """The changes of a block (scratch), and how many raw bits were taken. There are no zigzags where a unit cannot move that far.

    It does what :func:`~ckptdiff.kernels.adaptive_blocks.decode` does of one block, and says what is wrong.

    Args:
        units: of the base.
        coded: the range coded bytes.
        raw: the raw words, and two zeros.
        dtype: of the units.

    Raises:
        ValueError: with one line that says which rule of spec 7.5.2 the block breaks.
    """
    if len(coded) and coded[-1] == 0:
        raise ValueError("its range coded bytes end with a zero")
    n, size = len(units), len(coded)
    flat = scratch("words", 2 * ((size + 1) // 2 + 4), np.uint8)
    flat[:size], flat[size:] = np.frombuffer(coded, np.uint8), 0
    words = flat.view(">u2").astype(np.uint16)
    changes = SizedChanges.scratch(n, scratch("positions", n, np.int32))
    zigzags, classes = scratch("zigzags", n, dtype.unit), scratch("classes", n, np.uint8)
    contexts = scratch("contexts", 256 * CONTEXTS_PER_BIT * 8 * dtype.carrier, np.uint32)
    memory = thread_memory.counts.weights, contexts, thread_memory.met, raw, words, changes, zigzags
    lo, hi, count, at, bits, fits = decode_units(readable(units), classes, bits_of(dtype), order_of(dtype), *memory)
    if lo < 0 or lo > hi:
        raise ValueError(f"a rate is below 0 or above {RATES - 1}" if lo < 0 else f"its lowest class is {lo}, its highest {hi}")
    if count < 0:
        raise ValueError("its range coded bytes leave the range")
    if 2 * at < size:
        raise ValueError(f"{size - 2 * at} range coded bytes are left over")
    return (changes.positions[:count], zigzags[: count if fits else 0]), bits

"""Kernels: the adaptive form of ``context``, for sparse and for small blocks (spec section 7.5.2).

Units that stay as they are cost one addition each: the probability that no unit of a run changes is two to the minus sum of their weights,
so the range coder is told of a run at once, at the next change.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Changes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.arrays import check_positions, readable
from ckptdiff.kernels.classes import bits_of, fill_classes, fill_units, sample_step
from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.pace import (
    MAX_RUN,
    RATES,
    WEIGHTS,
    WHOLE_SHARE,
    choose_rates,
    next_pace,
    next_stop,
    put_rates,
    run_limit,
    share,
    take_rates,
)
from ckptdiff.kernels.range_coder import (
    FULL_SPAN,
    NEW_CONTEXT,
    S16,
    RangeDecoder,
    RangeEncoder,
    carry,
    decode_bit,
    encode_bit,
    finish_range,
    put_distance,
    refill,
    renormalise,
    take_distance,
)
from ckptdiff.kernels.raw_bits import S32, BitWriter, close_raw, put_raw, take_raw
from ckptdiff.kernels.ulps import SizedChanges, fill_sized, fill_zigzags, order_of

Array = npt.NDArray[Any]

RAW_SIDE_OCTAVES = 3
"""Below this octave the side of a distance is a raw bit."""
CONTEXTS_PER_BIT = 10
"""Contexts of a class, for each bit of a unit: 1 for the octave, 8 for bits below the leading one, 1 for the side."""
SIDE_CONTEXTS = 9
"""Where those of the side begin, for each bit of a unit."""


class ClassContexts(NamedTuple):
    """What the coder learns of each class of units in a block."""

    lo: int
    """The lowest class that changes."""
    hi: int
    """The highest class that changes."""
    m: int
    """Bits of a unit."""
    contexts: Array
    """uint32, :data:`CONTEXTS_PER_BIT` * m for each class from lo to hi."""
    met: Array
    """uint8[256], by class less lo: 1 where a change of it was coded already."""


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


_memory = _ThreadMemory()


@jit
def new_contexts(lo, hi, m, contexts, met):
    """:class:`ClassContexts` that have seen nothing, in memory that has room for them."""
    for k in range((hi - lo + 1) * CONTEXTS_PER_BIT * m):
        contexts[k] = NEW_CONTEXT
    for c in range(256):
        met[c] = np.uint8(0)
    return ClassContexts(lo, hi, m, contexts, met)


@jit
def meet(learned, c):
    """Start the contexts of a class at its first change: as those of the nearest class met before, whose count becomes 1 at most."""
    contexts, met, stride, span = learned.contexts, learned.met, CONTEXTS_PER_BIT * learned.m, learned.hi - learned.lo + 1
    met[c] = 1
    for d in range(1, span):
        for other in (c - d, c + d):
            if 0 <= other and other < span and met[other] == 1:
                for q in range(stride):
                    state = np.int64(contexts[other * stride + q])
                    contexts[c * stride + q] = np.uint32(((state >> 10) << 10) | min(state & 1023, 1))
                return


@jit
def weigh_eight(classes, i, weights):
    """Weights of eight units, as sums that need not wait for each other."""
    left = (weights[classes[i]] + weights[classes[i + 1]]) + (weights[classes[i + 2]] + weights[classes[i + 3]])
    return left + ((weights[classes[i + 4]] + weights[classes[i + 5]]) + (weights[classes[i + 6]] + weights[classes[i + 7]]))


@jit
def put_run(classes, start, stop, weights, pace, coder, words):
    """Code that units from ``start`` to ``stop`` stayed as they are, but for the last run of them, which the next change ends.

    Returns:
        The weight of that last run, the weight of all these units, and the encoder.
    """
    i, total, done, most = start, ZERO, ZERO, run_limit(pace)
    while i < stop:
        if i + 8 <= stop:
            eight = weigh_eight(classes, i, weights)
            if total + eight < most:
                total += eight
                i += 8
                continue
        total += np.uint64(weights[classes[i]])
        i += 1
        if total >= most:
            low, span, at = coder
            coder = renormalise(RangeEncoder(low, (span >> S32) * share((total * pace) >> S16), at), words)
            done += total
            total = ZERO
    return total, done + total, coder


@jit
def encode_changes(classes, changes, weights, learned, raw, writer, words):
    """Code the changes of a block.

    Args:
        classes: of all its units: uint8.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges`.
        weights: by class, in 2^-24 octaves: uint32[256].
        learned: :class:`ClassContexts` that have seen nothing.
        raw, writer: the raw bits, which have the head already.
        words: uint16, for the range coder.

    Returns:
        How many raw bits there are, and how many range coded bytes: more than ``words`` has if it is too small.
    """
    positions, distances, sides = changes
    coder, start = RangeEncoder(ZERO, FULL_SPAN, 0), 0
    observed, expected, pace = ZERO, ZERO, ONE << S16
    for x in range(len(positions)):
        stop = np.int64(positions[x])
        total, stayed, coder = put_run(classes, start, stop, weights, pace, coder, words)
        weight = np.uint64(weights[classes[stop]])
        low, span, at = coder
        bound = (span >> S32) * share(((total + weight) * pace) >> S16)
        span = (span >> S32) * share((total * pace) >> S16) - bound
        low += bound
        if low < bound:
            carry(words, at)
        coder = renormalise(RangeEncoder(low, span, at), words)
        observed, expected, pace = next_pace(observed, expected, weight, stayed)
        c = np.int64(classes[stop]) - learned.lo
        if learned.met[c] == 0:
            meet(learned, c)
        first = c * CONTEXTS_PER_BIT * learned.m
        coder, writer, octave = put_distance(learned.contexts, first, learned.m, distances[x], coder, words, raw, writer)
        if octave < RAW_SIDE_OCTAVES:
            writer = put_raw(np.uint64(sides[x]), 1, raw, writer)
        else:
            coder = encode_bit(learned.contexts, first + SIDE_CONTEXTS * learned.m + octave, sides[x] == 1, coder, words)
        start = stop + 1
    total, stayed, coder = put_run(classes, start, len(classes), weights, pace, coder, words)
    low, span, at = coder
    size = finish_range(RangeEncoder(low, (span >> S32) * share((total * pace) >> S16), at), words)
    return close_raw(raw, writer), size


@jit
def first_code(words):
    """A range decoder that has read its first four words."""
    code = ZERO
    for k in range(4):
        code = (code << S16) | np.uint64(words[k])
    return RangeDecoder(False, code, FULL_SPAN, 4)


@jit
def decode_changes(classes, weights, learned, raw, position, words, changes):
    """Inverse of :func:`encode_changes`.

    Args:
        classes, weights, learned: as there.
        raw, position: the raw bits, and where they go on behind the head.
        words: uint16, with eight bytes of zeros behind the coded ones.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` with room for one of each unit, to fill.

    Returns:
        How many units changed, or -1 where the code leaves the range; how many words, and how many raw bits, were taken.
    """
    positions, distances, sides = changes
    coder, x, i = first_code(words), 0, 0
    total, stayed, observed, expected, pace = ZERO, ZERO, ZERO, ZERO, ONE << S16
    stop, most = next_stop(coder, pace)
    while i < len(classes) and most < WHOLE_SHARE:
        if i + 8 <= len(classes):
            eight = weigh_eight(classes, i, weights)
            if total + eight < stop:
                total += eight
                i += 8
                continue
        weight = np.uint64(weights[classes[i]])
        total += weight
        i += 1
        if total < stop:
            continue
        scaled = (total * pace) >> S16
        left = share(scaled)
        _, code, span, at = coder
        if left > most:  # the unit did not change
            if scaled < MAX_RUN:
                continue
            coder = refill(RangeDecoder(False, code, (span >> S32) * left, at), words)
            stayed += total
        else:
            rest = total - weight
            room = share((rest * pace) >> S16) - left
            c = np.int64(classes[i - 1]) - learned.lo
            if room == ZERO or c < 0 or c > learned.hi - learned.lo or x >= len(positions):  # a unit of no weight cannot change
                return -1, at, position
            coder = refill(RangeDecoder(False, code - (span >> S32) * left, (span >> S32) * room, at), words)
            observed, expected, pace = next_pace(observed, expected, weight, stayed + rest)
            if learned.met[c] == 0:
                meet(learned, c)
            first = c * CONTEXTS_PER_BIT * learned.m
            distance, octave, coder, position = take_distance(learned.contexts, first, learned.m, coder, words, raw, position)
            if octave < RAW_SIDE_OCTAVES:
                part, position = take_raw(1, raw, position)
                side = part == ONE
            else:
                coder = decode_bit(learned.contexts, first + SIDE_CONTEXTS * learned.m + octave, coder, words)
                side = coder.bit
            positions[x], distances[x], sides[x] = np.int32(i - 1), distance, 1 if side else 0
            x += 1
            stayed = ZERO
        total = ZERO
        stop, most = next_stop(coder, pace)
    return -1 if most >= WHOLE_SHARE else x, coder.at, position


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
        contexts, met: memory for :class:`ClassContexts` of all classes.
        raw: uint32, for the raw bits.
        words: uint16, for the range coder.

    Returns:
        As of :func:`encode_changes`.
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


def encode(old: Units, positions: Array, zigzags: Units, dtype: Dtype) -> tuple[bytes, Array, int]:
    """Code a block.

    Args:
        old: units of the base.
        positions, zigzags: the changes, at least one.
        dtype: of the units.

    Returns:
        The range coded bytes; the raw words, which hold the rates too (scratch); and how many bits of them count.

    Raises:
        ValueError: positions do not lie in the block, or are not as many as zigzags.
    """
    check_positions(old, positions, zigzags)
    m, n = 8 * dtype.carrier, len(positions)
    room, changes = n * (dtype.carrier + 6) + 1024, SizedChanges.scratch(n, positions)
    raw, classes = scratch("raw", room, np.uint32), scratch("classes", len(old), np.uint8)
    memory = _memory.counts, scratch("contexts", 256 * CONTEXTS_PER_BIT * m, np.uint32), _memory.met, raw
    for exact in (False, True):  # rates by counts that are far off take more words than changes do, but never two a unit
        words, each = scratch("words", 2 * room + (2 * len(old) if exact else 0), np.uint16), sample_step(len(old), exact)
        bits, size = encode_units(readable(old), classes, bits_of(dtype), changes, zigzags, order_of(dtype), each, *memory, words)
        if size <= 2 * len(words):
            break
    return words[: size // 2 + 1].astype(">u2").tobytes()[:size].rstrip(b"\0"), raw, bits


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
        words: as of :func:`decode_changes`.
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


def decode(units: Units, coded: memoryview, raw: Array, dtype: Dtype) -> tuple[Changes, int]:
    """The changes of a block (scratch), and how many raw bits were taken. There are no zigzags where a unit cannot move that far.

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
    memory = _memory.counts.weights, contexts, _memory.met, raw, words, changes, zigzags
    lo, hi, count, at, bits, fits = decode_units(readable(units), classes, bits_of(dtype), order_of(dtype), *memory)
    if lo < 0 or lo > hi:
        raise ValueError(f"a rate is below 0 or above {RATES - 1}" if lo < 0 else f"its lowest class is {lo}, its highest {hi}")
    if count < 0:
        raise ValueError("its range coded bytes leave the range")
    if 2 * at < size:
        raise ValueError(f"{size - 2 * at} range coded bytes are left over")
    return (changes.positions[:count], zigzags[: count if fits else 0]), bits

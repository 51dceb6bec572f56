"""Kernels: the adaptive form of ``context``, for sparse and for small blocks (spec section 7.5.2).

Units that stay as they are cost one addition each: the probability that no unit of a run changes is two to the minus sum of their weights,
so the range coder is told of a run at once, at the next change.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.classes import units_of
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
from ckptdiff.kernels.raw_bits import S32, close_raw, for_kernels, new_writer, put_raw, take_raw
from ckptdiff.kernels.ulps import SizedChanges

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

    @classmethod
    def new(cls, lo: int, hi: int, m: int) -> ClassContexts:
        """Contexts that have seen nothing."""
        contexts = np.full((hi - lo + 1) * CONTEXTS_PER_BIT * m, NEW_CONTEXT, np.uint32)
        return cls(lo, hi, m, contexts, np.zeros(256, np.uint8))


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


def encode(classes: Array, changes: SizedChanges, m: int) -> tuple[bytes, Array, int]:
    """Code a block of units of ``m`` bits.

    Returns:
        The range coded bytes; the raw words, which hold the rates too (scratch); and how many bits of them count.
    """
    changed, room = np.bincount(classes[changes.positions], minlength=256), len(changes.positions) * (m // 8 + 6) + 1024
    lo, hi = (int(c) for c in np.flatnonzero(changed)[[0, -1]])
    raw = scratch("raw", room, np.uint32)
    for exact in (False, True):  # rates by counts that are far off take more words than changes do, but never two a unit
        words = scratch("words", 2 * room + (2 * len(classes) if exact else 0), np.uint16)
        rates = np.zeros(256, np.uint8)
        choose_rates(np.maximum(units_of(classes, exact), changed), changed, lo, hi, rates)
        writer = for_kernels(put_rates(rates, lo, hi, raw, new_writer()))
        bits, size = encode_changes(classes, changes, WEIGHTS[rates], ClassContexts.new(lo, hi, m), raw, writer, words)
        if size <= 2 * len(words):
            break
    return words[: size // 2 + 1].astype(">u2").tobytes()[:size].rstrip(b"\0"), raw, bits


def decode(classes: Array, coded: bytes, raw: Array, m: int) -> tuple[SizedChanges, int]:
    """The changes of a block (scratch), and how many raw bits were taken.

    Raises:
        ValueError: with one line that says which rule of spec 7.5.2 the block breaks.
    """
    weights = np.zeros(256, np.uint32)
    lo, hi, position = take_rates(raw, weights)
    if lo < 0 or lo > hi:
        raise ValueError(f"a rate is below 0 or above {RATES - 1}" if lo < 0 else f"its lowest class is {lo}, its highest {hi}")
    if coded.endswith(b"\0"):
        raise ValueError("its range coded bytes end with a zero")
    words = np.frombuffer(coded + bytes(-len(coded) % 2 + 8), ">u2").astype("<u2")
    changes = SizedChanges.scratch(len(classes), scratch("positions", len(classes), np.int32))
    count, at, position = decode_changes(classes, weights, ClassContexts.new(lo, hi, m), raw, position, words, changes)
    if count < 0:
        raise ValueError("its range coded bytes leave the range")
    if 2 * at < len(coded):
        raise ValueError(f"{len(coded) - 2 * at} range coded bytes are left over")
    return SizedChanges(*(values[:count] for values in changes)), position

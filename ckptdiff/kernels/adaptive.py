"""Kernels: the adaptive form of ``context``, for sparse and for small blocks (spec section 7.5.2).

Units that stay as they are cost one addition each: the probability that no unit of a run changes is two to the minus sum of their weights,
so the range coder is told of a run at once, at the next change.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.pace import (
    MAX_RUN,
    WHOLE_SHARE,
    next_pace,
    next_stop,
    run_limit,
    share,
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
from ckptdiff.kernels.raw_bits import S32, close_raw, put_raw, take_raw

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

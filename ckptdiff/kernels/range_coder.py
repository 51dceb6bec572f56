"""Kernels: the adaptive binary range coder, and distances coded by it and by raw bits (spec section 7.5.2).

A range coder narrows a range of numbers bit by bit, by the probability of each bit; a number in the last range tells them all. Source:
Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979. The coder's state is a small tuple that
travels by value through every call, so that LLVM keeps its members in registers. Reads past the end of ``words`` give its last word,
which is zero; callers check at the end.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.raw_bits import LOW_32, S32, put_raw, take_raw

CERTAIN = np.int64(1 << 22)
"""A probability of one; a context holds probabilities in 22 bits."""
MAX_SEEN = 255
"""Up to which a context counts the bits that it has seen."""
ADAPTATION = np.array([655360 // (10 * n + 16) for n in range(MAX_SEEN + 1)], np.int64)
"""By how many bits a context has seen: how far the next one moves its probability, in 1/65536 of the way."""
NEW_CONTEXT = np.uint32(1 << 31)
"""A context that has seen nothing: 22 bits of probability one half, 10 bits of count zero."""

MODELLED_BITS = 3
"""How many bits of a distance, below its leading one, have contexts; the others are raw."""

FULL_SPAN = np.uint64(0xFFFFFFFFFFFFFFFF)
MIN_SPAN = np.uint64(1 << 48)
"""A range below this takes 16 bits more."""
S16, S48 = np.uint64(16), np.uint64(48)
ALL_ONES = np.uint16(0xFFFF)
WORD_ONE = np.uint16(1)


class RangeEncoder(NamedTuple):
    """The state of a range encoder: the numbers from ``low`` on, ``span`` of them."""

    low: np.uint64
    span: np.uint64
    at: int
    """How many 16-bit words are written. Where ``words`` is full, this goes on alone: see :func:`finish_range`."""


class RangeDecoder(NamedTuple):
    """The state of a range decoder: ``code`` is the number that was written, less the low end of the range."""

    bit: bool
    """The bit that was read last. It is a member since a function that returns it beside this tuple takes 5 % longer (measured)."""
    code: np.uint64
    span: np.uint64
    at: int
    """How many 16-bit words are read."""


@jit
def carry(words, at):
    """Add one to the number that the words before ``at`` spell."""
    k = min(at, len(words)) - 1
    while k > 0 and words[k] == ALL_ONES:
        words[k] = np.uint16(0)
        k -= 1
    words[k] += WORD_ONE


@jit
def renormalise(coder, words):
    """Write words until the range of an encoder is wide enough again."""
    low, span, at = coder
    while span < MIN_SPAN:
        words[min(at, len(words) - 1)] = np.uint16(low >> S48)
        at += 1
        low = low << S16
        span = span << S16
    return RangeEncoder(low, span, at)


@jit
def refill(coder, words):
    """Read words until the range of a decoder is wide enough again."""
    bit, code, span, at = coder
    while span < MIN_SPAN:
        code, span, at = (code << S16) | np.uint64(words[min(at, len(words) - 1)]), span << S16, at + 1
    return RangeDecoder(bit, code, span, at)


@jit
def learned(state, bit):
    """A context after it has seen a bit."""
    p, n = state >> 10, state & 1023
    p += (((CERTAIN if bit else np.int64(0)) - p) * ADAPTATION[n]) >> 16
    return np.uint32((p << 10) | min(n + 1, MAX_SEEN))


@jit
def encode_bit(contexts, i, bit, coder, words):
    """Code a bit by the context ``contexts[i]``, which learns it. After one bit a range needs one word at most."""
    low, span, at = coder
    state = np.int64(contexts[i])
    bound = (span >> S16) * np.uint64(max(state >> 16, 1))
    skipped = ZERO if bit else bound
    span = bound if bit else span - bound
    low += skipped
    contexts[i] = learned(state, bit)
    if low < skipped:
        carry(words, at)
    if span < MIN_SPAN:
        words[min(at, len(words) - 1)] = np.uint16(low >> S48)
        at += 1
        low = low << S16
        span = span << S16
    return RangeEncoder(low, span, at)


@jit
def decode_bit(contexts, i, coder, words):
    """Inverse of :func:`encode_bit`; the decoder that it returns has the bit."""
    _, code, span, at = coder
    state = np.int64(contexts[i])
    bound = (span >> S16) * np.uint64(max(state >> 16, 1))
    bit = code < bound
    code = code if bit else code - bound
    span = bound if bit else span - bound
    contexts[i] = learned(state, bit)
    if span < MIN_SPAN:
        code = (code << S16) | np.uint64(words[min(at, len(words) - 1)])
        at += 1
        span = span << S16
    return RangeDecoder(bit, code, span, at)


@jit
def finish_range(coder, words):
    """Write as few bytes as tell the range; returns how many bytes of ``words`` count: more than it has if they did not suffice."""
    low, span, at = coder
    if at + 4 > len(words):
        return 2 * at + 8
    for n in range(9):
        keep = ZERO
        if n > 0:
            keep = FULL_SPAN << np.uint64(64 - 8 * n)
        value = (low + (FULL_SPAN ^ keep)) & keep
        if value - low < span:
            if value < low:
                carry(words, at)
            for k in range(4):
                words[at + k] = np.uint16(value >> np.uint64(48 - 16 * k))
            return 2 * at + n
    return 2 * at + 8


@jit
def put_distance(contexts, first, m, value, coder, words, raw, writer):
    """Code a distance: its octave in unary, :data:`MODELLED_BITS` bits below the leading one by contexts, the rest as raw bits.

    Args:
        contexts: uint32; those of the octave begin at ``first``, those of the bits below the leading one ``m`` behind them.
        first: where the contexts of the unit's class begin.
        m: bits of a unit.
        value: the distance in ulps, at least 1: uint64.
        coder, words: the range encoder and its uint16 words.
        raw, writer: the raw bits.

    Returns:
        The encoder and the writer behind the distance, and its octave.
    """
    octave = 0
    while (value >> np.uint64(octave)) > ONE:
        coder = encode_bit(contexts, first + octave, True, coder, words)
        octave += 1
    if octave < m - 1:
        coder = encode_bit(contexts, first + octave, False, coder, words)
    node, left, base = 1, octave, first + m + (octave << MODELLED_BITS)
    stop = max(octave - MODELLED_BITS, 0)
    while left > stop:
        left -= 1
        bit = np.int64((value >> np.uint64(left)) & ONE)
        coder = encode_bit(contexts, base + node, bit == 1, coder, words)
        node = 2 * node + bit
    rest = value & ((ONE << np.uint64(left)) - ONE)
    if left > 32:
        writer = put_raw(rest & LOW_32, 32, raw, writer)
        rest = rest >> S32
        left -= 32
    return coder, put_raw(rest, left, raw, writer), octave


@jit
def take_distance(contexts, first, m, coder, words, raw, position):
    """Inverse of :func:`put_distance`; returns the distance, its octave, the decoder, and the position in ``raw`` behind it."""
    octave = 0
    while octave < m - 1:
        coder = decode_bit(contexts, first + octave, coder, words)
        if not coder.bit:
            break
        octave += 1
    node, left, base = 1, octave, first + m + (octave << MODELLED_BITS)
    stop = max(octave - MODELLED_BITS, 0)
    while left > stop:
        left -= 1
        coder = decode_bit(contexts, base + node, coder, words)
        node = 2 * node + (1 if coder.bit else 0)
    value = np.uint64(node) << np.uint64(left)
    if left > 32:
        part, position = take_raw(32, raw, position)
        value |= part
        part, position = take_raw(left - 32, raw, position)
        value |= part << S32
    else:
        part, position = take_raw(left, raw, position)
        value |= part
    return value, octave, coder, position

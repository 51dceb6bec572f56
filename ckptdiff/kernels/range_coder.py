"""Kernels: the adaptive binary range coder, raw bits beside it, and distances in both (spec section 7.5).

A coder's state travels through every call as plain numbers, which LLVM keeps in registers:

- writing: ``low, span, at`` of the range coder, whose 16-bit ``words`` hold what is done (where they end, ``at`` goes on alone: see
  :func:`finish`), and ``held, count, filled`` of the raw bits: ``count`` bits wait in ``held``, ``filled`` words of ``raw`` are done;
- reading: ``code, span, at``, and the position ``bits`` in ``raw``. Reads past the end give zeros; callers check at the end.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import numpy as np

from ckptdiff.kernels.jit import ONE, ZERO, jit

CERTAIN = np.int64(1 << 22)
LIMIT = 255
RATES = np.array([655360 // (10 * n + 16) for n in range(LIMIT + 1)], np.int64)
START = np.uint32(1 << 31)
"""A context that has seen nothing: 22 bits of probability one half, 10 bits of count zero."""

LEAD = 3
"""Bits of a distance below its leading one that have contexts."""

FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
LOW = np.uint64(0xFFFFFFFF)
TOP = np.uint64(1 << 48)
S16, S32, S48 = np.uint64(16), np.uint64(32), np.uint64(48)
WORD = np.uint16(0xFFFF)
WORD_ONE = np.uint16(1)


@jit
def carry(words, at):
    """Add one to the number that the words before ``at`` spell."""
    k = min(at, len(words)) - 1
    while k > 0 and words[k] == WORD:
        words[k] = np.uint16(0)
        k -= 1
    words[k] += WORD_ONE


@jit
def encode_bit(contexts, i, bit, low, span, words, at):
    state = np.int64(contexts[i])
    p, n = state >> 10, state & 1023
    bound = (span >> S16) * np.uint64(max(p >> 6, 1))
    skip = ZERO if bit else bound
    span = bound if bit else span - bound
    low += skip
    p += (((CERTAIN if bit else np.int64(0)) - p) * RATES[n]) >> 16
    contexts[i] = np.uint32((p << 10) | min(n + 1, LIMIT))
    if low < skip:
        carry(words, at)
    if span < TOP:
        words[min(at, len(words) - 1)] = np.uint16(low >> S48)
        at += 1
        low = low << S16
        span = span << S16
    return low, span, at


@jit
def decode_bit(contexts, i, code, span, words, at):
    state = np.int64(contexts[i])
    p, n = state >> 10, state & 1023
    bound = (span >> S16) * np.uint64(max(p >> 6, 1))
    bit = code < bound
    code = code if bit else code - bound
    span = bound if bit else span - bound
    p += (((CERTAIN if bit else np.int64(0)) - p) * RATES[n]) >> 16
    contexts[i] = np.uint32((p << 10) | min(n + 1, LIMIT))
    if span < TOP:
        code = (code << S16) | np.uint64(words[min(at, len(words) - 1)])
        at += 1
        span = span << S16
    return bit, code, span, at


@jit
def finish(low, span, words, at):
    """Write as few bytes as tell the range; returns how many bytes of ``words`` count: more than it has if they did not suffice."""
    if at + 4 > len(words):
        return 2 * at + 8
    for n in range(9):
        keep = ZERO
        if n > 0:
            keep = FULL << np.uint64(64 - 8 * n)
        value = (low + (FULL ^ keep)) & keep
        if value - low < span:
            if value < low:
                carry(words, at)
            for k in range(4):
                words[at + k] = np.uint16(value >> np.uint64(48 - 16 * k))
            return 2 * at + n
    return 2 * at + 8


@jit
def put_raw(value, size, raw, held, count, filled):
    """Append the low ``size`` bits, at most 32, of a value that has no others."""
    held |= value << np.uint64(count)
    count += size
    if count >= 32:
        raw[filled] = np.uint32(held & LOW)
        filled += 1
        held = held >> S32
        count -= 32
    return held, count, filled


@jit
def take_raw(size, raw, bits):
    """The next ``size`` bits, at most 32; ``raw`` ends with two words of zeros."""
    i = min(bits >> 5, len(raw) - 2)
    value = (np.uint64(raw[i]) | (np.uint64(raw[i + 1]) << S32)) >> np.uint64(bits & 31)
    return value & ((ONE << np.uint64(size)) - ONE), bits + size


@jit
def put_distance(contexts, first, m, value, low, span, words, at, raw, held, count, filled):
    """Code a distance of units of ``m`` bits: its octave in unary, ``LEAD`` bits below the leading one in contexts, the rest raw.

    The unary contexts begin at ``first``, those of the leading bits ``m`` after.
    """
    octave = 0
    while (value >> np.uint64(octave)) > ONE:
        low, span, at = encode_bit(contexts, first + octave, True, low, span, words, at)
        octave += 1
    if octave < m - 1:
        low, span, at = encode_bit(contexts, first + octave, False, low, span, words, at)
    node, left, base = 1, octave, first + m + (octave << LEAD)
    stop = max(octave - LEAD, 0)
    while left > stop:
        left -= 1
        bit = np.int64((value >> np.uint64(left)) & ONE)
        low, span, at = encode_bit(contexts, base + node, bit == 1, low, span, words, at)
        node = 2 * node + bit
    rest = value & ((ONE << np.uint64(left)) - ONE)
    if left > 32:
        held, count, filled = put_raw(rest & LOW, 32, raw, held, count, filled)
        rest = rest >> S32
        left -= 32
    held, count, filled = put_raw(rest, left, raw, held, count, filled)
    return low, span, at, held, count, filled, octave


@jit
def take_distance(contexts, first, m, code, span, words, at, raw, bits):
    """Inverse of :func:`put_distance`; also returns the octave."""
    octave, bit = 0, True
    while octave < m - 1:
        bit, code, span, at = decode_bit(contexts, first + octave, code, span, words, at)
        if not bit:
            break
        octave += 1
    node, left, base = 1, octave, first + m + (octave << LEAD)
    stop = max(octave - LEAD, 0)
    while left > stop:
        left -= 1
        bit, code, span, at = decode_bit(contexts, base + node, code, span, words, at)
        node = 2 * node + (1 if bit else 0)
    value = np.uint64(node) << np.uint64(left)
    if left > 32:
        part, bits = take_raw(32, raw, bits)
        value |= part
        part, bits = take_raw(left - 32, raw, bits)
        value |= part << S32
    else:
        part, bits = take_raw(left, raw, bits)
        value |= part
    return value, octave, code, span, at, bits

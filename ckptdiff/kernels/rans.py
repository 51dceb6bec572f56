"""Kernels: rANS over tokens, and its tables (spec section 7.5.3). After Duda, arXiv 1311.2540; four states take turns."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.range_coder import put_raw, take_raw

PRECISION = 14
TOTAL = 1 << PRECISION
LOOKUP = 10
"""Bits of a slot by which its token is first looked up."""

SLOT_BITS, WORD_BITS, REST_BITS = np.uint32(PRECISION), np.uint32(16), np.uint32(32 - PRECISION)
WORD = np.uint32(0xFFFF)
SLOT = np.uint32(TOTAL - 1)
QUOTIENT = np.uint64(46)
TWO, THREE, FOUR = np.uint64(2), np.uint64(3), np.uint64(4)
FLOOR = np.uint32(1 << 16)
"""Where a state begins and ends, and below which it takes another word."""


@jit
def size_of(value):
    """Bits of a value."""
    size = 0
    while value >> size > 0:
        size += 1
    return size


@jit
def rounded(value):
    """A value with its four highest bits only, rounded to nearest."""
    size = size_of(value)
    if size > 4:
        value = (value + (1 << (size - 5))) >> (size - 4) << (size - 4)
    return value


@jit
def normalise(counts, frequencies):
    """Frequencies of four significant bits each; that of the commonest token, which is returned, makes up TOTAL."""
    total, common = np.int64(0), 0
    for x in range(len(counts)):
        total += np.int64(counts[x])
        if counts[x] > counts[common]:
            common = x
    rest = np.int64(TOTAL)
    for x in range(len(counts)):
        frequencies[x] = np.uint32(0)
        if counts[x] > 0 and x != common:
            frequencies[x] = np.uint32(rounded(max((np.int64(counts[x]) * TOTAL + total // 2) // total, np.int64(1))))
            rest -= np.int64(frequencies[x])
    while rest < 1:  # take from the commonest of the others
        most = -1
        for x in range(len(counts)):
            if x != common and frequencies[x] > 1 and (most < 0 or frequencies[x] > frequencies[most]):
                most = x
        less = np.int64(frequencies[most]) - 1
        size = size_of(less)
        less = less >> max(size - 4, 0) << max(size - 4, 0)
        rest += np.int64(frequencies[most]) - less
        frequencies[most] = np.uint32(less)
    frequencies[common] = np.uint32(rest)
    return common


@jit
def put_table(frequencies, common, raw, held, count, filled):
    last = 0
    for x in range(len(frequencies)):
        if frequencies[x] > 0:
            last = x
    held, count, filled = put_raw(np.uint64(last), 8, raw, held, count, filled)
    held, count, filled = put_raw(np.uint64(common), 8, raw, held, count, filled)
    for x in range(last + 1):
        if x != common:
            value = np.int64(frequencies[x])
            size = size_of(value)
            held, count, filled = put_raw(np.uint64(size), 4, raw, held, count, filled)
            if size > 1:
                below = min(size - 1, 3)
                part = np.uint64(value >> (size - 1 - below)) & ((ONE << np.uint64(below)) - ONE)
                held, count, filled = put_raw(part, below, raw, held, count, filled)
    return held, count, filled


@jit
def take_table(frequencies, tokens, raw, bits):
    """Fill a table; returns whether it is one, and the position behind it."""
    part, bits = take_raw(8, raw, bits)
    last = np.int64(part)
    part, bits = take_raw(8, raw, bits)
    common, rest = np.int64(part), np.int64(TOTAL)
    if last >= tokens or common > last:
        return False, bits
    for x in range(last + 1):
        if x != common:
            part, bits = take_raw(4, raw, bits)
            size = np.int64(part)
            if size > 0:
                below = min(size - 1, 3)
                part, bits = take_raw(below, raw, bits)
                value = (np.int64(part) | (1 << below)) << (size - 1 - below)
                frequencies[x] = np.uint32(value)
                rest -= value
    frequencies[common] = np.uint32(max(rest, 0))
    return rest > 0 and (last == common or frequencies[last] > 0), bits


def reciprocals(frequencies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """floor(2^46 / f) + 1. With it s / f is (s * reciprocal) >> 46 exactly, and that product below 2^64, for each state s
    that :func:`push` divides: s < 2^18 f and f <= 2^14, so the error, at most s / 2^46, is less than 1 / f.
    """
    return np.uint64(1 << 46) // np.maximum(frequencies, 1).astype(np.uint64) + np.uint64(1)


@jit
def push(s, code, reciprocal, words, at):
    frequency = np.uint32(code & WORD)
    if np.uint32(s >> REST_BITS) >= frequency:
        at -= ONE
        words[at] = np.uint16(s & WORD)
        s = np.uint32(s >> WORD_BITS)
    q = np.uint32((np.uint64(s) * reciprocal) >> QUOTIENT)
    return np.uint32(s + q * np.uint32(np.uint32(TOTAL) - frequency) + (code >> WORD_BITS)), at


@jit
def encode_kernel(contexts, tables, tokens, codes, reciprocals, words):
    """rANS, from the last unit to the first and from the end of ``words``; unit i goes to state i mod 4.

    ``tables``: where in ``codes`` and ``reciprocals`` the table of each context begins. Indices are unsigned: Numba looks at a signed
    one's sign, which took a quarter of the time.
    """
    at, left = np.uint64(len(words)), np.uint64(len(contexts))
    s0 = s1 = s2 = s3 = FLOOR
    while left & THREE != ZERO:
        left -= ONE
        d = np.uint64(tables[contexts[left]]) + np.uint64(tokens[left])
        if left & THREE == ZERO:
            s0, at = push(s0, codes[d], reciprocals[d], words, at)
        elif left & THREE == ONE:
            s1, at = push(s1, codes[d], reciprocals[d], words, at)
        else:
            s2, at = push(s2, codes[d], reciprocals[d], words, at)
    while left != ZERO:
        left -= FOUR
        a = np.uint64(tables[contexts[left]]) + np.uint64(tokens[left])
        b = np.uint64(tables[contexts[left + ONE]]) + np.uint64(tokens[left + ONE])
        c = np.uint64(tables[contexts[left + TWO]]) + np.uint64(tokens[left + TWO])
        d = np.uint64(tables[contexts[left + THREE]]) + np.uint64(tokens[left + THREE])
        s3, at = push(s3, codes[d], reciprocals[d], words, at)
        s2, at = push(s2, codes[c], reciprocals[c], words, at)
        s1, at = push(s1, codes[b], reciprocals[b], words, at)
        s0, at = push(s0, codes[a], reciprocals[a], words, at)
    return np.int64(at), s0, s1, s2, s3


@jit
def fill_lookup(codes, n, lookup):
    for g in range(n):
        x = 0
        for q in range(1 << LOOKUP):
            slot = q << (PRECISION - LOOKUP)
            while np.int64(codes[(g << 8) + x] >> WORD_BITS) + np.int64(codes[(g << 8) + x] & WORD) <= slot:
                x += 1
            lookup[(g << LOOKUP) + q] = np.uint8(x)


@jit
def pop(s, group, codes, lookup, words, at):
    """The next token of a state, the state after it, filled up with a word if it needs one, and the position in ``words``."""
    slot = np.uint32(s & SLOT)
    token = np.int64(lookup[(group << LOOKUP) | np.int64(slot >> np.uint32(PRECISION - LOOKUP))])
    code = codes[(group << 8) | token]
    while np.uint32(slot - (code >> WORD_BITS)) >= np.uint32(code & WORD):
        token += 1
        code = codes[(group << 8) | token]
    s = np.uint32(np.uint32(code & WORD) * np.uint32(s >> SLOT_BITS) + slot - np.uint32(code >> WORD_BITS))
    if s < FLOOR:
        s = np.uint32((s << WORD_BITS) | np.uint32(words[at]))
        at += 1
    return np.uint8(token), s, at


@jit
def decode_kernel(contexts, groups, codes, lookup, words, states, tokens):
    """Fill ``tokens``; ``words`` end with four zeros. Returns how many words were taken and the states at the end."""
    n, at, end = len(contexts), 0, len(words) - 4
    s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
    i = 0
    while i + 4 <= n and at <= end:
        tokens[i], s0, at = pop(s0, np.int64(groups[contexts[i]]), codes, lookup, words, at)
        tokens[i + 1], s1, at = pop(s1, np.int64(groups[contexts[i + 1]]), codes, lookup, words, at)
        tokens[i + 2], s2, at = pop(s2, np.int64(groups[contexts[i + 2]]), codes, lookup, words, at)
        tokens[i + 3], s3, at = pop(s3, np.int64(groups[contexts[i + 3]]), codes, lookup, words, at)
        i += 4
    if i < n and at <= end:  # one to three units are left
        tokens[i], s0, at = pop(s0, np.int64(groups[contexts[i]]), codes, lookup, words, at)
        if i + 1 < n:
            tokens[i + 1], s1, at = pop(s1, np.int64(groups[contexts[i + 1]]), codes, lookup, words, at)
        if i + 2 < n:
            tokens[i + 2], s2, at = pop(s2, np.int64(groups[contexts[i + 2]]), codes, lookup, words, at)
    return at, s0, s1, s2, s3

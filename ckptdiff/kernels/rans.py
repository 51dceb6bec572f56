"""Kernels: rANS over tokens, and its tables (spec section 7.5.3).

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540. A state x, a token of frequency f and start c, of 2^14 in all: coding it gives
(x div f) * 2^14 + c + x mod f. Four states take turns, so that the processor need not wait for one to take the next. A token's ``code`` is
its start in the upper 16 bits and its frequency in the lower.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.raw_bits import bit_length, put_raw, take_raw

FREQUENCY_BITS = 14
FREQUENCY_SUM = 1 << FREQUENCY_BITS
"""The sum of the frequencies of a table."""
LOOKUP_BITS = 10
"""How many bits of a slot, the highest, a token is first looked up by."""
MAX_TOKENS = 256
"""Columns of a table while it is decoded."""

SLOT_BITS, WORD_BITS, REST_BITS = np.uint32(FREQUENCY_BITS), np.uint32(16), np.uint32(32 - FREQUENCY_BITS)
WORD_MASK = np.uint32(0xFFFF)
SLOT_MASK = np.uint32(FREQUENCY_SUM - 1)
RECIPROCAL_BITS = np.uint64(46)
TWO, THREE, FOUR = np.uint64(2), np.uint64(3), np.uint64(4)
MIN_STATE = np.uint32(1 << 16)
"""The state before the first token and after the last; a decoder's state below this takes another word."""


@jit
def rounded(value):
    """A number with its four highest bits only, rounded to nearest."""
    size = bit_length(value)
    if size > 4:
        value = (value + (1 << (size - 5))) >> (size - 4) << (size - 4)
    return value


@jit
def normalise(counts, frequencies):
    """Fill frequencies that a table can hold: four significant bits each, but for the commonest token, which gets what is left of the sum.

    Args:
        counts: how often each token occurs: uint32.
        frequencies: uint32, to fill.

    Returns:
        The commonest token.
    """
    total, common = np.int64(0), 0
    for x in range(len(counts)):
        total += np.int64(counts[x])
        if counts[x] > counts[common]:
            common = x
    rest = np.int64(FREQUENCY_SUM)
    for x in range(len(counts)):
        frequencies[x] = np.uint32(0)
        if counts[x] > 0 and x != common:
            frequencies[x] = np.uint32(rounded(max((np.int64(counts[x]) * FREQUENCY_SUM + total // 2) // total, np.int64(1))))
            rest -= np.int64(frequencies[x])
    while rest < 1:  # the others take too much: lower the commonest of them
        most = -1
        for x in range(len(counts)):
            if x != common and frequencies[x] > 1 and (most < 0 or frequencies[x] > frequencies[most]):
                most = x
        less = np.int64(frequencies[most]) - 1
        size = bit_length(less)
        less = less >> max(size - 4, 0) << max(size - 4, 0)
        rest += np.int64(frequencies[most]) - less
        frequencies[most] = np.uint32(less)
    frequencies[common] = np.uint32(rest)
    return common


@jit
def put_table(frequencies, common, raw, writer):
    """Append a table to the raw bits; ``common`` is the token whose frequency is not stored."""
    last = 0
    for x in range(len(frequencies)):
        if frequencies[x] > 0:
            last = x
    writer = put_raw(np.uint64(last), 8, raw, writer)
    writer = put_raw(np.uint64(common), 8, raw, writer)
    for x in range(last + 1):
        if x != common:
            value = np.int64(frequencies[x])
            size = bit_length(value)
            writer = put_raw(np.uint64(size), 4, raw, writer)
            if size > 1:
                below = min(size - 1, 3)
                part = np.uint64(value >> (size - 1 - below)) & ((ONE << np.uint64(below)) - ONE)
                writer = put_raw(part, below, raw, writer)
    return writer


@jit
def put_tables(counts, frequencies, raw, writer):
    """Append the table of each group, given its token counts, and fill its frequencies: uint32[groups, tokens] both."""
    for g in range(len(counts)):
        common = normalise(counts[g], frequencies[g])
        writer = put_table(frequencies[g], common, raw, writer)
    return writer


@jit
def take_table(frequencies, tokens, raw, position):
    """Read a table of at most ``tokens`` tokens, and fill its frequencies.

    Returns:
        Whether the table keeps the rules, and the position behind it.
    """
    part, position = take_raw(8, raw, position)
    last = np.int64(part)
    part, position = take_raw(8, raw, position)
    common, rest = np.int64(part), np.int64(FREQUENCY_SUM)
    if last >= tokens or common > last:
        return False, position
    for x in range(last + 1):
        if x != common:
            part, position = take_raw(4, raw, position)
            size = np.int64(part)
            if size > 0:
                below = min(size - 1, 3)
                part, position = take_raw(below, raw, position)
                value = (np.int64(part) | (1 << below)) << (size - 1 - below)
                frequencies[x] = np.uint32(value)
                rest -= value
    frequencies[common] = np.uint32(max(rest, 0))
    return rest > 0 and (last == common or frequencies[last] > 0), position


def codes_of(frequencies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The code of each token of several tables, one in a row: its start above its frequency."""
    return frequencies | (np.cumsum(frequencies, 1, dtype=np.uint32) - frequencies) << WORD_BITS


def reciprocals(frequencies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """floor(2^46 / f) + 1 of each frequency f, to divide by it without a division.

    s div f is (s * reciprocal) >> 46 exactly, and that product is below 2^64, for each state s that :func:`encode_token` divides:
    s < 2^18 f and f <= 2^14, so the error, at most s / 2^46, is less than 1 / f.
    """
    return np.uint64(1 << 46) // np.maximum(frequencies, 1).astype(np.uint64) + np.uint64(1)


@jit
def encode_token(s, code, reciprocal, words, at):
    """The state after a token, and the position of the last word written; words are written from the end of ``words`` to its begin."""
    frequency = np.uint32(code & WORD_MASK)
    if np.uint32(s >> REST_BITS) >= frequency:
        at -= ONE
        words[at] = np.uint16(s & WORD_MASK)
        s = np.uint32(s >> WORD_BITS)
    q = np.uint32((np.uint64(s) * reciprocal) >> RECIPROCAL_BITS)
    return np.uint32(s + q * np.uint32(np.uint32(FREQUENCY_SUM) - frequency) + (code >> WORD_BITS)), at


@jit
def encode_tokens(contexts, tables, tokens, codes, reciprocals, words):
    """Code the tokens of a block, from the last unit to the first; unit i goes to state i mod 4.

    Indices are unsigned: Numba checks the sign of a signed one, which took a quarter of the time.

    Args:
        contexts, tokens: of each unit: uint16 and uint8.
        tables: where in ``codes`` and ``reciprocals`` the table of each context begins: uint16.
        codes, reciprocals: uint32 and uint64.
        words: uint16, as many as units at least; filled from the end.

    Returns:
        Where the words begin, and the four states.
    """
    at, left = np.uint64(len(words)), np.uint64(len(contexts))
    s0 = s1 = s2 = s3 = MIN_STATE
    while left & THREE != ZERO:
        left -= ONE
        d = np.uint64(tables[contexts[left]]) + np.uint64(tokens[left])
        if left & THREE == ZERO:
            s0, at = encode_token(s0, codes[d], reciprocals[d], words, at)
        elif left & THREE == ONE:
            s1, at = encode_token(s1, codes[d], reciprocals[d], words, at)
        else:
            s2, at = encode_token(s2, codes[d], reciprocals[d], words, at)
    while left != ZERO:
        left -= FOUR
        a = np.uint64(tables[contexts[left]]) + np.uint64(tokens[left])
        b = np.uint64(tables[contexts[left + ONE]]) + np.uint64(tokens[left + ONE])
        c = np.uint64(tables[contexts[left + TWO]]) + np.uint64(tokens[left + TWO])
        d = np.uint64(tables[contexts[left + THREE]]) + np.uint64(tokens[left + THREE])
        s3, at = encode_token(s3, codes[d], reciprocals[d], words, at)
        s2, at = encode_token(s2, codes[c], reciprocals[c], words, at)
        s1, at = encode_token(s1, codes[b], reciprocals[b], words, at)
        s0, at = encode_token(s0, codes[a], reciprocals[a], words, at)
    return np.int64(at), s0, s1, s2, s3


@jit
def fill_lookup(codes, n, lookup):
    """Fill, for each of ``n`` tables and each beginning of a slot, the first token that such a slot may have: uint8."""
    for g in range(n):
        x = 0
        for q in range(1 << LOOKUP_BITS):
            slot = q << (FREQUENCY_BITS - LOOKUP_BITS)
            while np.int64(codes[(g << 8) + x] >> WORD_BITS) + np.int64(codes[(g << 8) + x] & WORD_MASK) <= slot:
                x += 1
            lookup[(g << LOOKUP_BITS) + q] = np.uint8(x)


@jit
def decode_token(s, group, codes, lookup, words, at):
    """The next token of a state, the state after it, filled up with a word if it needs one, and the position in ``words``."""
    slot = np.uint32(s & SLOT_MASK)
    token = np.int64(lookup[(group << LOOKUP_BITS) | np.int64(slot >> np.uint32(FREQUENCY_BITS - LOOKUP_BITS))])
    code = codes[(group << 8) | token]
    while np.uint32(slot - (code >> WORD_BITS)) >= np.uint32(code & WORD_MASK):
        token += 1
        code = codes[(group << 8) | token]
    s = np.uint32(np.uint32(code & WORD_MASK) * np.uint32(s >> SLOT_BITS) + slot - np.uint32(code >> WORD_BITS))
    if s < MIN_STATE:
        s = np.uint32((s << WORD_BITS) | np.uint32(words[at]))
        at += 1
    return np.uint8(token), s, at


@jit
def decode_tokens(contexts, groups, codes, lookup, words, states, tokens):
    """Inverse of :func:`encode_tokens`.

    Args:
        contexts: of each unit: uint16.
        groups: of each context: uint8.
        codes: of each group's tokens, :data:`MAX_TOKENS` in a row: uint32.
        lookup: as :func:`fill_lookup` fills it.
        words: uint16, with four zeros behind the last.
        states: uint32[4].
        tokens: uint8, to fill.

    Returns:
        How many words were taken, and the states at the end.
    """
    n, at, end = len(contexts), 0, len(words) - 4
    s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
    i = 0
    while i + 4 <= n and at <= end:
        tokens[i], s0, at = decode_token(s0, np.int64(groups[contexts[i]]), codes, lookup, words, at)
        tokens[i + 1], s1, at = decode_token(s1, np.int64(groups[contexts[i + 1]]), codes, lookup, words, at)
        tokens[i + 2], s2, at = decode_token(s2, np.int64(groups[contexts[i + 2]]), codes, lookup, words, at)
        tokens[i + 3], s3, at = decode_token(s3, np.int64(groups[contexts[i + 3]]), codes, lookup, words, at)
        i += 4
    if i < n and at <= end:  # one to three units are left
        tokens[i], s0, at = decode_token(s0, np.int64(groups[contexts[i]]), codes, lookup, words, at)
        if i + 1 < n:
            tokens[i + 1], s1, at = decode_token(s1, np.int64(groups[contexts[i + 1]]), codes, lookup, words, at)
        if i + 2 < n:
            tokens[i + 2], s2, at = decode_token(s2, np.int64(groups[contexts[i + 2]]), codes, lookup, words, at)
    return at, s0, s1, s2, s3

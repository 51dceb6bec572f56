"""Kernels: the adaptive form of ``context``, for sparse and for small blocks (spec section 7.5.2).

Units that stay as they are cost one addition: the chance that none of a run changes is two to the minus sum of their weights, so the
range coder is told of a run at once, at the next change.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.changes import units_of
from ckptdiff.kernels.context_groups import put_number, take_number
from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.range_coder import (
    FULL,
    S16,
    S32,
    S48,
    START,
    TOP,
    carry,
    decode_bit,
    encode_bit,
    finish,
    put_distance,
    put_raw,
    take_distance,
    take_raw,
)
from ckptdiff.kernels.rans import size_of

Array = npt.NDArray[Any]

RAW_SIGN = 3
"""Below this octave a distance's sign is raw."""

RATES = 51
WEIGHTS = np.array([0] + [(2 + (r - 1) % 2) << (2 + ((r - 1) >> 1)) for r in range(1, RATES)], np.uint32)
"""By rate: by how many 2^-24 octaves a unit lowers the chance that none of a run changes."""
RUN = np.uint64(1 << 26)
"""A run of units ends where their weights, at its pace, sum up to this."""
SHARES = np.array([math.floor(2.0 ** (32 - k / 256)) for k in range(257)], np.uint64)
STILL = np.uint64(24 << 16)
"""Octaves, in 2^-16, for which the pace waits before it follows what it sees."""
LONGEST = np.uint64(1 << 19)
"""What one run tells of the pace, at most."""
SLOWEST = 1 << 13
"""A pace below which a change could be given no room at all; see :func:`next_pace`."""
ALL = np.uint64(1 << 32)
S4, S8, S24 = np.uint64(4), np.uint64(8), np.uint64(24)
Q24, Q16 = np.uint64((1 << 24) - 1), np.uint64((1 << 16) - 1)

# Costs in 1/65536 bits, by rate: of a unit that stays as it is, and of one that changes.
STAYS = (WEIGHTS >> np.uint32(8)).astype(np.int64)
CHANGES = np.array([1 << 40] + [round(-math.log2(-math.expm1(-math.log(2) * int(w) / 2**24)) * 65536) for w in WEIGHTS[1:]], np.int64)


@jit
def share(total):
    """How much of the range is left, in 1/2^32, where none of a run of units of this total weight changed."""
    part = total & Q24
    k = part >> S16
    high = SHARES[k]
    return (high - (((high - SHARES[k + ONE]) * (part & Q16)) >> S16)) >> (total >> S24)


@jit
def next_pace(told, expected, weight, stayed):
    """What changes told so far, what was expected of the runs between them, and the pace that follows from both, in 1/65536.

    ``expected`` stays below 16 LONGEST + 16, so the pace is at least SLOWEST: the least weight there is, 8, still is one in shares.
    """
    left = share(weight)
    told = told - (told >> S4) + ((weight * left // (ALL - left)) >> S8)
    expected = expected - (expected >> S4) + min(stayed >> S8, LONGEST)
    return told, expected, ((told + STILL) << S16) // (expected + STILL)


@jit
def choose_rates(units, changed, lo, hi, rates):
    """The rates of classes that cost least, given how many units of each there are, and how many of them changed."""
    before = 0
    for c in range(lo, hi + 1):
        best = np.int64(1) << 62
        stay = np.int64(units[c]) - np.int64(changed[c])
        for r in range(RATES):
            cost = np.int64(changed[c]) * CHANGES[r] + stay * STAYS[r]
            if c > lo:
                cost += np.int64(2 * size_of(_step(before, r) + 1) - 1) << 16
            if cost < best:
                best, rates[c] = cost, np.uint8(r)
        before = np.int64(rates[c])


@jit
def _step(before, rate):
    """How the step from a class's rate to the next one's is numbered."""
    step = rate - max(before - 1, 0)
    return 2 * step if step >= 0 else -2 * step - 1


@jit
def put_rates(rates, lo, hi, raw, held, count, filled):
    for value, size in ((lo, 8), (hi, 8), (np.int64(rates[lo]), 6)):
        held, count, filled = put_raw(np.uint64(value), size, raw, held, count, filled)
    for c in range(lo + 1, hi + 1):
        held, count, filled = put_number(_step(np.int64(rates[c - 1]), np.int64(rates[c])), raw, held, count, filled)
    return held, count, filled


@jit
def take_rates(raw, weights):
    """Fill the weights of classes; returns lo, hi and the raw bits taken, or -1 for lo where a rate is too large."""
    first, bits = take_raw(8, raw, 0)
    last, bits = take_raw(8, raw, bits)
    lo, hi, before = np.int64(first), np.int64(last), np.int64(0)
    for c in range(lo, hi + 1):
        if c == lo:
            part, bits = take_raw(6, raw, bits)
            rate = np.int64(part)
        else:
            code, bits = take_number(raw, bits)
            rate = max(before - 1, 0) + (-((code + 1) >> 1) if code & 1 else code >> 1)
        if rate < 0 or rate >= RATES:
            return -1, hi, bits
        weights[c], before = WEIGHTS[rate], rate
    return lo, hi, bits


@jit
def meet(c, contexts, stride, met, span):
    """Start the contexts of a class from those of the nearest class that was met before, seen once at most."""
    met[c] = 1
    for d in range(1, span):
        for other in (c - d, c + d):
            if 0 <= other and other < span and met[other] == 1:
                for q in range(stride):
                    state = np.int64(contexts[other * stride + q])
                    contexts[c * stride + q] = np.uint32(((state >> 10) << 10) | min(state & 1023, 1))
                return


@jit
def put_words(low, span, words, at):
    """Renormalise."""
    while span < TOP:
        words[min(at, len(words) - 1)] = np.uint16(low >> S48)
        at += 1
        low = low << S16
        span = span << S16
    return low, span, at


@jit
def weigh_eight(classes, i, weights):
    """Weights of eight units, as sums that need not wait for each other."""
    left = (weights[classes[i]] + weights[classes[i + 1]]) + (weights[classes[i + 2]] + weights[classes[i + 3]])
    return left + ((weights[classes[i + 4]] + weights[classes[i + 5]]) + (weights[classes[i + 6]] + weights[classes[i + 7]]))


@jit
def longest(pace):
    """The sum of weights at which a run ends."""
    return ((RUN << S16) + pace - ONE) // pace


@jit
def put_run(classes, start, stop, weights, pace, low, span, words, at):
    """Code that units from ``start`` to ``stop`` did not change, but for the last of them, whose weights are returned, and those of all."""
    i, total, done, most = start, ZERO, ZERO, longest(pace)
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
            low, span, at = put_words(low, (span >> S32) * share((total * pace) >> S16), words, at)
            done += total
            total = ZERO
    return total, done + total, low, span, at


@jit
def encode_kernel(classes, positions, distances, signs, weights, lo, hi, m, contexts, met, raw, held, count, filled, words):
    """Returns sizes in bits and bytes."""
    low, span, at, start = ZERO, FULL, 0, 0
    told, expected, pace = ZERO, ZERO, ONE << S16
    for x in range(len(positions)):
        stop = np.int64(positions[x])
        total, stayed, low, span, at = put_run(classes, start, stop, weights, pace, low, span, words, at)
        weight = np.uint64(weights[classes[stop]])
        bound = (span >> S32) * share(((total + weight) * pace) >> S16)
        span = (span >> S32) * share((total * pace) >> S16) - bound
        low += bound
        if low < bound:
            carry(words, at)
        low, span, at = put_words(low, span, words, at)
        told, expected, pace = next_pace(told, expected, weight, stayed)
        c = np.int64(classes[stop]) - lo
        if met[c] == 0:
            meet(c, contexts, 10 * m, met, hi - lo + 1)
        here = c * 10 * m
        low, span, at, held, count, filled, octave = put_distance(
            contexts, here, m, distances[x], low, span, words, at, raw, held, count, filled
        )
        if octave < RAW_SIGN:
            held, count, filled = put_raw(np.uint64(signs[x]), 1, raw, held, count, filled)
        else:
            low, span, at = encode_bit(contexts, here + 9 * m + octave, signs[x] == 1, low, span, words, at)
        start = stop + 1
    total, stayed, low, span, at = put_run(classes, start, len(classes), weights, pace, low, span, words, at)
    raw[filled] = np.uint32(held)
    return 32 * filled + count, finish(low, (span >> S32) * share((total * pace) >> S16), words, at)


@jit
def take_words(code, span, words, at):
    """Renormalise."""
    while span < TOP:
        code, span, at = (code << S16) | np.uint64(words[min(at, len(words) - 1)]), span << S16, at + 1
    return code, span, at


@jit
def next_stop(code, span, pace):
    """Up to which sum of weights no unit can have changed, and the share at which one has; the latter is 2^32 if code is too large."""
    most = code // (span >> S32)
    if most >= ALL:
        return ZERO, ALL
    octaves = 32.0 - math.log2(np.float64(most) + 2.0)  # only to skip what cannot be: what follows looks closely
    return min((np.uint64(max(octaves * 16777216.0 - 64.0, 0.0)) << S16) // pace, longest(pace)), most


@jit
def decode_kernel(classes, weights, lo, hi, m, contexts, met, raw, bits, words, positions, distances, signs):
    """Fill the last three; returns how many units change, or -1, the words taken and the raw bits taken."""
    code, span, at, x, i = ZERO, FULL, 4, 0, 0
    for k in range(4):
        code = (code << S16) | np.uint64(words[k])
    total, stayed, told, expected, pace = ZERO, ZERO, ZERO, ZERO, ONE << S16
    stop, most = next_stop(code, span, pace)
    while i < len(classes) and most < ALL:
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
        if left > most:  # it did not change
            if scaled < RUN:
                continue
            code, span, at = take_words(code, (span >> S32) * left, words, at)
            stayed += total
        else:
            rest = total - weight
            room = share((rest * pace) >> S16) - left
            c = np.int64(classes[i - 1]) - lo
            if room == ZERO or c < 0 or c > hi - lo or x >= len(positions):  # only units of a weight change, classes beyond have none
                return -1, at, bits
            code, span, at = take_words(code - (span >> S32) * left, (span >> S32) * room, words, at)
            told, expected, pace = next_pace(told, expected, weight, stayed + rest)
            if met[c] == 0:
                meet(c, contexts, 10 * m, met, hi - lo + 1)
            here = c * 10 * m
            distance, octave, code, span, at, bits = take_distance(contexts, here, m, code, span, words, at, raw, bits)
            if octave < RAW_SIGN:
                part, bits = take_raw(1, raw, bits)
                sign = part == ONE
            else:
                sign, code, span, at = decode_bit(contexts, here + 9 * m + octave, code, span, words, at)
            positions[x], distances[x], signs[x] = np.int32(i - 1), distance, 1 if sign else 0
            x += 1
            stayed = ZERO
        total = ZERO
        stop, most = next_stop(code, span, pace)
    return -1 if most >= ALL else x, at, bits


def _contexts(lo: int, hi: int, m: int) -> Array:
    return np.full((hi - lo + 1) * 10 * m, START, np.uint32)


def encode(classes: Array, positions: Array, distances: Array, signs: Array, m: int) -> tuple[bytes, Array, int]:
    """The range coded bytes; the raw words, which hold the rates too, and how many bits of them count."""
    changed, room = np.bincount(classes[positions], minlength=256), len(positions) * (m // 8 + 6) + 1024
    lo, hi = (int(c) for c in np.flatnonzero(changed)[[0, -1]])
    raw = scratch("raw", room, np.uint32)
    for exact in (False, True):  # rates by counts that are far off take more words than changes do, but never two a unit
        words = scratch("words", 2 * room + (2 * len(classes) if exact else 0), np.uint16)
        rates = np.zeros(256, np.uint8)
        choose_rates(np.maximum(units_of(classes, exact), changed), changed, lo, hi, rates)
        held, waiting, filled = put_rates(rates, lo, hi, raw, ZERO, 0, 0)
        state = _contexts(lo, hi, m), np.zeros(256, np.uint8), raw, np.uint64(held), waiting, filled, words
        bits, size = encode_kernel(classes, positions, distances, signs, WEIGHTS[rates], lo, hi, m, *state)
        if size <= 2 * len(words):
            break
    return words[: size // 2 + 1].astype(">u2").tobytes()[:size].rstrip(b"\0"), raw, bits


def decode(classes: Array, coded: bytes, raw: Array, m: int) -> tuple[Array, Array, Array, int]:
    """Positions, distances and signs of the changed units, and how many raw bits were taken; raises ValueError."""
    weights = np.zeros(256, np.uint32)
    lo, hi, bits = take_rates(raw, weights)
    if lo < 0 or lo > hi:
        raise ValueError(f"a rate is below 0 or above {RATES - 1}" if lo < 0 else f"its lowest class is {lo}, its highest {hi}")
    if coded.endswith(b"\0"):
        raise ValueError("its range coded bytes end with a zero")
    words = np.frombuffer(coded + bytes(-len(coded) % 2 + 8), ">u2").astype("<u2")
    positions, distances, signs = (
        scratch(name, len(classes), kind) for name, kind in (("positions", np.int32), ("distances", np.uint64), ("signs", np.uint8))
    )
    contexts, met = _contexts(lo, hi, m), np.zeros(256, np.uint8)
    found, at, bits = decode_kernel(classes, weights, lo, hi, m, contexts, met, raw, bits, words, positions, distances, signs)
    if found < 0:
        raise ValueError("its range coded bytes leave the range")
    if 2 * at < len(coded):
        raise ValueError(f"{len(coded) - 2 * at} range coded bytes are left over")
    return positions[:found], distances[:found], signs[:found], bits

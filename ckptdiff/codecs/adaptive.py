"""Kernels: the adaptive form of ``context``, for sparse and for small blocks (spec section 7.5.2)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.jit import ONE, ZERO, jit
from ckptdiff.codecs.rangecoder import (
    FULL,
    S32,
    START,
    decode_bit,
    encode_bit,
    finish,
    put_magnitude,
    put_raw,
    take_magnitude,
    take_raw,
)
from ckptdiff.scratch import scratch

Array = npt.NDArray[Any]

GAP_OCTAVE, GAP_LEAD, GAP_LEADS, GAP_CONTEXTS = 21, 1, 32, 80
"""Highest octave of a gap, bits of it in contexts, and where in a class's contexts what stands."""

LEAD = 3
RAW_SIGN = 3
"""Below this octave a distance's sign is raw."""

NEVER = np.int32(0x7FFFFFFF)


@jit
def find_gaps(classes, positions, gaps, first, counts, last, last_rank):
    """Gaps, in ranks within its class, from each change to the next of its class; returns the lowest and highest class."""
    c0, c1, c2, c3 = counts[0], counts[1], counts[2], counts[3]  # four counters: a class often follows itself
    lo, hi, i = np.int64(255), np.int64(0), 0
    for x in range(len(positions) + 1):
        stop = np.int64(positions[x]) if x < len(positions) else len(classes)
        while i + 4 <= stop:
            c0[classes[i]] += np.int32(1)
            c1[classes[i + 1]] += np.int32(1)
            c2[classes[i + 2]] += np.int32(1)
            c3[classes[i + 3]] += np.int32(1)
            i += 4
        while i < stop:
            c0[classes[i]] += np.int32(1)
            i += 1
        if x < len(positions):
            c = np.int64(classes[stop])
            rank = c0[c] + c1[c] + c2[c] + c3[c]
            if last[c] < 0:
                first[c] = rank
                lo, hi = min(lo, c), max(hi, c)
            else:
                gaps[last[c]] = rank - last_rank[c] - 1
            last[c], last_rank[c] = np.int32(x), np.int32(rank)
    for c in range(256):
        rank = c0[c] + c1[c] + c2[c] + c3[c]
        if last[c] < 0:
            first[c] = rank
        else:
            gaps[last[c]] = rank - last_rank[c] - 1
    return lo, hi


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
def encode_kernel(classes, gaps, first, distances, signs, lo, hi, m, contexts, met, raw, words):
    """``classes``, ``gaps``, ``distances`` and ``signs`` are those of the changed units. Returns sizes in bits and bytes."""
    stride, n = GAP_CONTEXTS + 10 * m, hi - lo + 1
    low, span, at, held, count, filled = ZERO, FULL, 0, ZERO, 0, 0
    for c in range(lo, hi + 1):
        low, span, at, held, count, filled, octave = put_magnitude(
            contexts, n * stride, GAP_LEADS, GAP_OCTAVE, GAP_LEAD, np.uint64(first[c]) + ONE, low, span, words, at, raw, held, count, filled
        )
    for x in range(len(gaps)):
        c = np.int64(classes[x]) - lo
        if met[c] == 0:
            meet(c, contexts, stride, met, n)
        here = c * stride + GAP_CONTEXTS
        low, span, at, held, count, filled, octave = put_magnitude(
            contexts, here, m, m - 1, LEAD, distances[x], low, span, words, at, raw, held, count, filled
        )
        if octave < RAW_SIGN:
            held, count, filled = put_raw(np.uint64(signs[x]), 1, raw, held, count, filled)
        else:
            low, span, at = encode_bit(contexts, here + 9 * m + octave, signs[x] == 1, low, span, words, at)
        low, span, at, held, count, filled, octave = put_magnitude(
            contexts, c * stride, GAP_LEADS, GAP_OCTAVE, GAP_LEAD, np.uint64(gaps[x]) + ONE, low, span, words, at, raw, held, count, filled
        )
    raw[filled] = np.uint32(held)
    return 32 * filled + count, finish(low, span, words, at)


@jit
def decode_kernel(classes, lo, hi, m, left, contexts, met, raw, words, positions, distances, signs):
    """Fill the last three; returns how many units change, or -1, the words taken and the raw bits taken."""
    stride, n = GAP_CONTEXTS + 10 * m, hi - lo + 1
    code, span, at, bits = (np.uint64(words[0]) << S32) | np.uint64(words[1]), FULL, 2, 0
    for c in range(lo, hi + 1):
        gap, octave, code, span, at, bits = take_magnitude(
            contexts, n * stride, GAP_LEADS, GAP_OCTAVE, GAP_LEAD, code, span, words, at, raw, bits
        )
        left[c] = np.int32(gap - ONE)
    x = 0
    for i in range(len(classes)):
        class_ = np.int64(classes[i])
        gap_left = left[class_]
        if gap_left != 0:
            left[class_] = gap_left - np.int32(1)
            continue
        c = class_ - lo
        if met[c] == 0:
            meet(c, contexts, stride, met, n)
        here = c * stride + GAP_CONTEXTS
        distance, octave, code, span, at, bits = take_magnitude(contexts, here, m, m - 1, LEAD, code, span, words, at, raw, bits)
        if octave < RAW_SIGN:
            part, bits = take_raw(1, raw, bits)
            sign = part == ONE
        else:
            sign, code, span, at = decode_bit(contexts, here + 9 * m + octave, code, span, words, at)
        positions[x], distances[x], signs[x] = np.int32(i), distance, 1 if sign else 0
        x += 1
        gap, octave, code, span, at, bits = take_magnitude(
            contexts, c * stride, GAP_LEADS, GAP_OCTAVE, GAP_LEAD, code, span, words, at, raw, bits
        )
        left[class_] = np.int32(gap - ONE)
    for c in range(lo, hi + 1):
        if left[c] != 0:
            return -1, at, bits
    return x, at, bits


def _contexts(lo: int, hi: int, m: int) -> Array:
    return np.full((hi - lo + 1) * (GAP_CONTEXTS + 10 * m) + GAP_CONTEXTS, START, np.uint32)


def encode(classes: Array, positions: Array, distances: Array, signs: Array, m: int) -> tuple[bytes, Array, int]:
    """The lowest and highest class and the range coded bytes; the raw words and how many bits of them count."""
    count = len(positions)
    work = np.zeros((7, 256), np.int32)
    work[5:] = -1
    gaps, first = scratch("gaps", count, np.int32), work[4]
    lo, hi = find_gaps(classes, positions, gaps, first, work[:4], work[5], work[6])
    room = count * (m // 8 + 6) + 1024
    raw, words = scratch("raw", room, np.uint32), scratch("words", room, np.uint32)
    met = np.zeros(256, np.uint8)
    bits, size = encode_kernel(classes[positions], gaps, first, distances, signs, lo, hi, m, _contexts(lo, hi, m), met, raw, words)
    coded = words[: size // 4 + 2].astype(">u4").tobytes()[:size].rstrip(b"\0")
    return bytes([lo, hi]) + coded, raw, bits


def decode(classes: Array, head: bytes, coded: bytes, raw: Array, m: int) -> tuple[Array, Array, Array, int]:
    """Positions, distances and signs of the changed units, and how many raw bits were taken; raises ValueError."""
    lo, hi = head
    if lo > hi:
        raise ValueError(f"its lowest class is {lo}, its highest {hi}")
    if coded.endswith(b"\0"):
        raise ValueError("its range coded bytes end with a zero")
    words = np.frombuffer(coded + bytes(-len(coded) % 4 + 8), ">u4").astype("<u4")
    left = np.full(256, NEVER, np.int32)
    positions, distances, signs = (
        scratch(name, len(classes), kind) for name, kind in (("positions", np.int32), ("distances", np.uint64), ("signs", np.uint8))
    )
    met = np.zeros(256, np.uint8)
    count, at, bits = decode_kernel(classes, lo, hi, m, left, _contexts(lo, hi, m), met, raw, words, positions, distances, signs)
    if count < 0:
        raise ValueError("a change lies past the end of its class")
    if 4 * at < len(coded):
        raise ValueError(f"{len(coded) - 4 * at} range coded bytes are left over")
    return positions[:count], distances[:count], signs[:count], bits

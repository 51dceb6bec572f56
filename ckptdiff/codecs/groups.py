"""Kernels: contexts that share a table (spec section 7.5.3): which do, and the map that says so."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.jit import ONE, ZERO, jit
from ckptdiff.codecs.rangecoder import put_raw, take_raw
from ckptdiff.codecs.rans import size_of

Array = npt.NDArray[Any]

MAX_GROUPS = 32
FINE = 96
"""Runs of contexts, by how active they are, from which groups are merged."""
LOG2 = np.array([0] + [round(math.log2(i) * 65536) for i in range(1, 4097)], np.int64)


def group(counts: Array, activity: Array) -> tuple[Array, Array, int]:
    """Group contexts that are about as active, by the ``activity`` of each token; returns the group of each context, the groups'
    counts, and about how many bits tokens, tables and map take.
    """
    totals = counts.sum(1, dtype=np.int64)
    used = np.flatnonzero(totals)
    mean = (counts[used] @ (4096 * activity)) // totals[used]
    used = used[np.argsort(mean, kind="stable")]
    sums = np.cumsum(totals[used])
    ends = np.unique(np.minimum(np.searchsorted(sums, np.arange(1, FINE + 1) * sums[-1] // FINE) + 1, len(used)))
    merged = np.add.reduceat(counts[used], np.concatenate([[0], ends[:-1]]), axis=0, dtype=np.uint32)
    cost, save = np.zeros(len(ends), np.int64), np.zeros(len(ends), np.int64)
    n = merge_groups(merged, ends, len(ends), cost, save, np.zeros(counts.shape[1], np.uint32))
    groups = np.full(len(counts), -1, np.int64)
    for g, (start, end) in enumerate(zip([0, *ends[: n - 1]], ends[:n], strict=True)):
        groups[used[start:end]] = g
    groups = _without_gaps(groups)
    return groups, merged[:n], int(cost[:n].sum()) + 2 * int(np.count_nonzero(np.diff(groups))) + len(groups)


def _without_gaps(groups: Array) -> Array:
    """Contexts that do not occur take the group before them, which costs a bit each."""
    known = np.maximum.accumulate(np.where(groups >= 0, np.arange(len(groups)), 0))
    return np.maximum(groups[known], 0).astype(np.uint8)


@jit
def cost_of(counts):
    """About how many bits the tokens of a table and the table itself take."""
    total, gain, last, seen = np.int64(0), np.int64(0), 0, 0
    for x in range(len(counts)):
        n = np.int64(counts[x])
        if n > 0:
            total += n
            gain += n * log2(n)
            last = x
            seen += 1
    return ((total * log2(total) - gain) >> 16) + 16 + 4 * last + 3 * seen


@jit
def log2(n):
    """In 1/65536 bits, by integers, so that every machine merges the same groups."""
    shift = 0
    while n > 4096:
        n = n >> 1
        shift += 1
    return LOG2[n] + (np.int64(shift) << 16)


@jit
def merge_groups(counts, ends, n, cost, save, both):
    """Merge neighbouring rows of ``counts`` while that saves bits, and down to MAX_GROUPS; returns how many are left."""
    for i in range(n):
        cost[i] = cost_of(counts[i])
    for i in range(n - 1):
        for x in range(len(both)):
            both[x] = counts[i, x] + counts[i + 1, x]
        save[i] = cost[i] + cost[i + 1] - cost_of(both)
    while n > 1:
        at = 0
        for i in range(1, n - 1):
            if save[i] > save[at]:
                at = i
        if save[at] <= 0 and n <= MAX_GROUPS:
            break
        cost[at] += cost[at + 1] - save[at]
        for x in range(len(both)):
            counts[at, x] += counts[at + 1, x]
        ends[at] = ends[at + 1]
        for i in range(at + 1, n - 1):
            for x in range(len(both)):
                counts[i, x] = counts[i + 1, x]
            ends[i], cost[i], save[i] = ends[i + 1], cost[i + 1], save[i + 1]
        n -= 1
        for i in (at - 1, at):
            if 0 <= i and i < n - 1:
                for x in range(len(both)):
                    both[x] = counts[i, x] + counts[i + 1, x]
                save[i] = cost[i] + cost[i + 1] - cost_of(both)
    return n


@jit
def put_number(value, raw, held, count, filled):
    """An Elias gamma code of a value from 0 on."""
    octave = size_of(value + 1) - 1
    held, count, filled = put_raw((ONE << np.uint64(octave)) - ONE, octave + 1, raw, held, count, filled)
    return put_raw(np.uint64(value + 1 - (1 << octave)), octave, raw, held, count, filled)


@jit
def take_number(raw, bits):
    octave = 0
    while octave < 16:
        bit, bits = take_raw(1, raw, bits)
        if bit == ZERO:
            break
        octave += 1
    part, bits = take_raw(octave, raw, bits)
    return np.int64(part) + (1 << octave) - 1, bits


@jit
def put_map(groups, n, raw, held, count, filled):
    """The number of groups, and the group of each context, as the step from the one before."""
    held, count, filled = put_raw(np.uint64(n - 1), 6, raw, held, count, filled)
    before = 0
    for x in range(len(groups)):
        step = np.int64(groups[x]) - before
        held, count, filled = put_number(2 * step if step >= 0 else -2 * step - 1, raw, held, count, filled)
        before = np.int64(groups[x])
    return held, count, filled


@jit
def take_map(groups, raw, bits):
    part, bits = take_raw(6, raw, bits)
    n, before = np.int64(part) + 1, 0
    for x in range(len(groups)):
        code, bits = take_number(raw, bits)
        before += -((code + 1) >> 1) if code & 1 else code >> 1
        if before < 0 or before >= n:
            return -1, bits
        groups[x] = np.uint8(before)
    return n, bits

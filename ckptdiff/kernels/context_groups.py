"""Kernels: contexts that share a table (spec section 7.5.3): which do, and the map that says so."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.range_coder import put_raw, take_raw
from ckptdiff.kernels.rans import size_of

Array = npt.NDArray[Any]

MAX_GROUPS = 32
FINE = 96
"""Runs of contexts, by how active they are, from which groups are merged."""
NONE = np.uint8(255)
LOG2 = np.array([0] + [round(math.log2(i) * 65536) for i in range(1, 4097)], np.int64)


def group(counts: Array, activity: Array) -> tuple[Array, Array, int]:
    """Group contexts that are about as active, by the ``activity`` of each token; returns the group of each context, the groups'
    counts, and about how many bits tokens, tables and map take.
    """
    totals, mean = np.empty(len(counts), np.int64), np.empty(len(counts), np.int64)
    measure(counts, activity, totals, mean)
    used = np.flatnonzero(totals)
    used = used[np.argsort(mean[used], kind="stable")]
    merged, ends = np.zeros((FINE, counts.shape[1]), np.uint32), np.zeros(FINE, np.int64)
    cost, save = np.zeros(FINE, np.int64), np.zeros(FINE, np.int64)
    n = merge_groups(merged, ends, fill_runs(counts, used, totals, ends, merged), cost, save, np.zeros(counts.shape[1], np.uint32))
    groups = np.full(len(counts), NONE, np.uint8)
    steps = spread(used, ends, n, groups)
    return groups, merged[:n], int(cost[:n].sum()) + 2 * steps + len(groups)


@jit
def measure(counts, activity, totals, mean):
    """How often each context occurs, and 4096 times how active it is on average."""
    for c in range(len(counts)):
        total, active = np.int64(0), np.int64(0)
        for x in range(counts.shape[1]):
            n = np.int64(counts[c, x])
            total += n
            active += n * activity[x]
        totals[c] = total
        mean[c] = 4096 * active // total if total > 0 else 0


@jit
def fill_runs(counts, used, totals, ends, merged):
    """Cut the contexts in ``used`` to FINE runs that occur about as often; fill where each ends, and its counts; returns how many."""
    whole = np.int64(0)
    for x in range(len(used)):
        whole += totals[used[x]]
    n, at, first, sofar = 0, 0, 0, totals[used[0]]
    for k in range(1, FINE + 1):
        while sofar < k * whole // FINE:
            at += 1
            sofar += totals[used[at]]
        if at < first:
            continue
        for c in range(first, at + 1):
            for x in range(counts.shape[1]):
                merged[n, x] += counts[used[c], x]
        first = at + 1
        ends[n] = first
        n += 1
    return n


@jit
def spread(used, ends, n, groups):
    """The group of each context; those that do not occur take the one before. Returns how often it is not the one before."""
    first = 0
    for g in range(n):
        for c in range(first, ends[g]):
            groups[used[c]] = np.uint8(g)
        first = ends[g]
    before, steps = groups[0] if groups[0] != NONE else np.uint8(0), 0
    for c in range(len(groups)):
        if groups[c] == NONE:
            groups[c] = before
        elif groups[c] != before:
            before = groups[c]
            steps += 1
    return steps


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

"""Kernels: contexts that share a table (spec section 7.5.3): which do, and how that is stored.

Contexts are sorted by how active they are, cut into runs, and neighbouring runs are merged while that saves bits.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.raw_bits import put_raw, put_step, take_raw, take_step

Array = npt.NDArray[Any]

MAX_GROUPS = 32
"""How many groups a block may have: fewer than the spec allows, since each costs a table."""
MAX_RUNS = 96
"""Into how many runs contexts are cut before they are merged."""
NO_GROUP = np.uint8(255)
"""The group of a context that does not occur, until it gets one."""
LOG2_TABLE = np.array([0] + [round(math.log2(i) * 65536) for i in range(1, 4097)], np.int64)
"""log2 of 1 to 4096, in 1/65536."""


def group_contexts(counts: Array, activity: Array) -> tuple[Array, Array, int]:
    """Group contexts that are about as active.

    Args:
        counts: how often each token occurs in each context: uint32[contexts, tokens].
        activity: how active a token is, from 0 on: int64[tokens].

    Returns:
        The group of each context; the groups' counts; and about how many bits tokens, tables and groups take.
    """
    totals, mean = np.empty(len(counts), np.int64), np.empty(len(counts), np.int64)
    measure_contexts(counts, activity, totals, mean)
    used = np.flatnonzero(totals)
    used = used[np.argsort(mean[used], kind="stable")]
    merged, ends = np.zeros((MAX_RUNS, counts.shape[1]), np.uint32), np.zeros(MAX_RUNS, np.int64)
    cost, save = np.zeros(MAX_RUNS, np.int64), np.zeros(MAX_RUNS, np.int64)
    runs = cut_into_runs(counts, used, totals, ends, merged)
    n = merge_runs(merged, ends, runs, cost, save, np.zeros(counts.shape[1], np.uint32))
    groups = np.full(len(counts), NO_GROUP, np.uint8)
    steps = assign_groups(used, ends, n, groups)
    return groups, merged[:n], int(cost[:n].sum()) + 2 * steps + len(groups)


@jit
def measure_contexts(counts, activity, totals, mean):
    """Fill how often each context occurs, and 4096 times how active it is on average (int64 both)."""
    for c in range(len(counts)):
        total, active = np.int64(0), np.int64(0)
        for x in range(counts.shape[1]):
            n = np.int64(counts[c, x])
            total += n
            active += n * activity[x]
        totals[c] = total
        mean[c] = 4096 * active // total if total > 0 else 0


@jit
def cut_into_runs(counts, used, totals, ends, merged):
    """Cut contexts into at most :data:`MAX_RUNS` runs that occur about as often as each other.

    Args:
        counts: as for :func:`group_contexts`.
        used: the contexts that occur, the least active first.
        totals: how often each context occurs.
        ends: where in ``used`` each run ends, to fill.
        merged: the token counts of each run, zeros, to fill.

    Returns:
        How many runs there are.
    """
    whole = np.int64(0)
    for x in range(len(used)):
        whole += totals[used[x]]
    n, at, first, sofar = 0, 0, 0, totals[used[0]]
    for k in range(1, MAX_RUNS + 1):
        while sofar < k * whole // MAX_RUNS:
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
def assign_groups(used, ends, n, groups):
    """Fill the group of each context; one that does not occur takes that of the context before. Returns how often the group changes."""
    first = 0
    for g in range(n):
        for c in range(first, ends[g]):
            groups[used[c]] = np.uint8(g)
        first = ends[g]
    before, steps = groups[0] if groups[0] != NO_GROUP else np.uint8(0), 0
    for c in range(len(groups)):
        if groups[c] == NO_GROUP:
            groups[c] = before
        elif groups[c] != before:
            before = groups[c]
            steps += 1
    return steps


@jit
def table_cost(counts):
    """About how many bits the tokens of a table and the table itself take."""
    total, gain, last, seen = np.int64(0), np.int64(0), 0, 0
    for x in range(len(counts)):
        n = np.int64(counts[x])
        if n > 0:
            total += n
            gain += n * log2_fixed(n)
            last = x
            seen += 1
    return ((total * log2_fixed(total) - gain) >> 16) + 16 + 4 * last + 3 * seen


@jit
def log2_fixed(n):
    """log2 in 1/65536, by integers, so that every machine merges the same groups."""
    shift = 0
    while n > 4096:
        n = n >> 1
        shift += 1
    return LOG2_TABLE[n] + (np.int64(shift) << 16)


@jit
def merge_runs(counts, ends, n, cost, save, both):
    """Merge neighbouring runs while that saves bits, and until there are no more than :data:`MAX_GROUPS`.

    Args:
        counts, ends: token counts of each run, and where it ends; those of the merged runs afterwards.
        n: how many runs there are.
        cost: what each costs, in bits: int64, to fill.
        save: memory to work in: what merging each with the next would save.
        both: memory to work in, a row of counts.

    Returns:
        How many runs are left.
    """
    for i in range(n):
        cost[i] = table_cost(counts[i])
    for i in range(n - 1):
        for x in range(len(both)):
            both[x] = counts[i, x] + counts[i + 1, x]
        save[i] = cost[i] + cost[i + 1] - table_cost(both)
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
                save[i] = cost[i] + cost[i + 1] - table_cost(both)
    return n


@jit
def put_groups(groups, n, raw, writer):
    """Append how many groups there are, and the group of each context, as the step from the one before."""
    writer = put_raw(np.uint64(n - 1), 6, raw, writer)
    before = 0
    for x in range(len(groups)):
        writer = put_step(np.int64(groups[x]) - before, raw, writer)
        before = np.int64(groups[x])
    return writer


@jit
def take_groups(groups, raw, position):
    """Inverse of :func:`put_groups`.

    Returns:
        How many groups there are, or -1 if a context has another; and the position behind them.
    """
    part, position = take_raw(6, raw, position)
    n, before = np.int64(part) + 1, 0
    for x in range(len(groups)):
        step, position = take_step(raw, position)
        before += step
        if before < 0 or before >= n:
            return -1, position
        groups[x] = np.uint8(before)
    return n, position

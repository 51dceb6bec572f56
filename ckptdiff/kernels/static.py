"""Kernels: the static form of ``context``, for dense blocks (spec section 7.5.3): a token a unit, coded by rANS with the tables
of its class and of how active its row and its column are.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.io.scratch import scratch
from ckptdiff.kernels import rans
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.kernels.changes import LARGE, count, differing, scaled, units_of
from ckptdiff.kernels.context_groups import MAX_GROUPS, group, put_map, take_map
from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.range_coder import put_raw, take_raw

Array = npt.NDArray[Any]

TOKENS = 256

DIRECT = np.uint64(1 << 16)

# By token: its octave, raw bits behind it, and the distance without them; by distance below 2^16: its token but for the sign.
OCTAVE = np.array([0, 0, 1, 1, 2, 2, 2, 2] + [3 + x // 8 for x in range(248)], np.int64)
RAW_BITS = np.array([0] + [1] * 7 + [1 + x // 8 for x in range(248)], np.int64)
DISTANCE = np.array([*range(8), *((4 + x % 4) << (1 + x // 8) for x in range(248))], np.uint64)
_exact = np.arange(1 << 16)
_octave = np.maximum(np.frexp(np.maximum(_exact, 1))[1] - 1, 2)
TOKEN = np.where(_exact < 8, _exact, 8 + (_octave - 3) * 8 + ((_exact >> (_octave - 2)) & 3)).astype(np.uint8)
ACTIVITY = np.where(np.arange(TOKENS) > 0, OCTAVE + 1, 0)


def token_count(m: int) -> int:
    """Tokens that units of ``m`` bits can have."""
    return 8 * (m - 2)


@jit
def make_tokens(positions, distances, signs, tokens, raw, held, count, filled):
    for x in range(len(positions)):
        distance, sign = distances[x], np.int64(signs[x])
        if distance < DIRECT:
            token = np.int64(TOKEN[distance])
        else:
            octave = 16
            while (distance >> np.uint64(octave)) > ONE:
                octave += 1
            token = 8 + (octave - 3) * 8 + np.int64((distance >> np.uint64(octave - 2)) & np.uint64(3))
        if token < 8:
            held, count, filled = put_raw(np.uint64(sign), 1, raw, held, count, filled)
        else:
            token += 4 * sign
            size = RAW_BITS[token]
            held, count, filled = put_raw(distance & ((ONE << np.uint64(size)) - ONE), size, raw, held, count, filled)
        tokens[np.uint32(positions[x])] = np.uint8(token)
    return held, count, filled


@jit
def take_changes(tokens, raw, bits, positions, distances, signs):
    for x in range(len(positions)):
        token = np.int64(tokens[positions[x]])
        part, bits = take_raw(RAW_BITS[token], raw, bits)
        if token < 8:
            distances[x], signs[x] = np.uint64(token), np.uint8(part)
        else:
            distances[x], signs[x] = DISTANCE[token] | part, np.uint8((token >> 2) & 1)
    return bits


@jit
def find_mean(classes, positions, tokens, units, mean):
    """256 times how active a unit of each class is on average, given how many there are."""
    for x in range(len(positions)):
        p = np.uint32(positions[x])
        mean[classes[p]] += 256 * ACTIVITY[tokens[p]]
    for c in range(256):
        mean[c] //= max(units[c], 1)


@jit
def score(positions, classes, tokens, mean, width, phase, rows, columns):
    """Add up, by row and by column, how much more active a change is than its class's mean unit."""
    row, start = 0, -phase
    for x in range(len(positions)):
        p = np.int64(positions[x])
        while p - start >= width:
            row += 1
            start += width
        value = 256 * ACTIVITY[tokens[np.uint64(p)]] - mean[classes[np.uint64(p)]]
        rows[row] += value
        columns[np.uint64(p - start)] += value


@jit
def find_contexts(classes, lo, hi, levels, width, phase, row_levels, column_levels, contexts):
    """Context of each unit: the first of its class, plus the levels of its row and column."""
    lowest, highest, step = np.uint8(lo), np.uint8(hi), np.int32(levels)
    start, column = 0, phase
    for r in range(len(row_levels)):
        n = min(width - column, len(classes) - start)
        row = np.int32(row_levels[r]) - np.int32(lo) * step
        some, out, level = classes[start : start + n], contexts[start : start + n], column_levels[column : column + n]
        for c in range(n):  # in this form LLVM makes vectors of it, 20 times as fast
            class_ = some[c]
            if class_ < lowest:
                class_ = lowest
            if class_ > highest:
                class_ = highest
            out[c] = np.uint16(np.int32(np.int32(class_) * step) + row + np.int32(level[c]))
        start += n
        column = 0


@jit
def count_tokens(contexts, positions, tokens, sums, counts):
    """Count the tokens of each context: those of changes one by one, the zeros by what is left of its units.

    Of a large block every other unit is counted; a context that occurs then has a zero at least, as there may be one.
    """
    each = 2 if len(contexts) >= LARGE else 1
    count(contexts, each, sums)
    for x in range(len(positions)):
        p = np.uint32(positions[x])
        counts[contexts[p], tokens[p]] += np.uint32(1)
        sums[2, contexts[p]] += np.int32(1)
    for c in range(len(counts)):
        units = scaled(sums, c, each)
        changed = np.int64(sums[2, c])
        counts[c, 0] = np.uint32(max(units - changed, 1 if each > 1 and units + changed > 0 else 0))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Classes, levels of rows and columns, each context's group, the groups' token counts, and the bits of all."""

    lo: int
    hi: int
    bits: int
    row_levels: Array
    column_levels: Array
    groups: Array
    counts: Array
    tokens_cost: int

    @property
    def cost(self) -> int:
        return self.tokens_cost + self.bits * (len(self.row_levels) + len(self.column_levels))


def encode(
    classes: Array, positions: Array, distances: Array, signs: Array, m: int, layout: BlockLayout, best: bool
) -> tuple[bytes, Array, int]:
    """The states and words of rANS; the raw words, which hold the tables too, and how many bits of them count.

    ``best``: try levels of rows and columns of two sizes, not of one.
    """
    tokens, values = scratch("tokens", len(classes), np.uint8), scratch("values", len(positions) * m // 32 + 2, np.uint32)
    tokens[:] = 0
    held, count, filled = make_tokens(positions, distances, signs, tokens, values, ZERO, 0, 0)
    values[filled] = np.uint32(held)
    plan = min(_plans(classes, positions, tokens, int(tokens.max()) + 1, layout, best), key=lambda plan: plan.cost)
    room = 16 + len(plan.row_levels) + len(plan.column_levels) + len(plan.groups) + MAX_GROUPS * TOKENS // 2
    raw = scratch("raw", room + filled + 1, np.uint32)
    state = _put_head(raw, layout, plan)
    codes = np.zeros(plan.counts.shape, np.uint32)
    for g, counts in enumerate(plan.counts):
        common = rans.normalise(counts, codes[g])
        state = rans.put_table(codes[g], common, raw, np.uint64(state[0]), *state[1:])
    reciprocals = rans.reciprocals(codes)
    codes |= (np.cumsum(codes, 1, dtype=np.uint32) - codes) << np.uint32(16)
    tables = np.multiply(plan.groups, plan.counts.shape[1], dtype=np.uint16)
    words = scratch("words", len(classes) + 4, np.uint16)
    contexts = _contexts(classes, plan.lo, plan.hi, plan.bits, plan.bits, layout, plan.row_levels, plan.column_levels)
    at, *states = rans.encode_kernel(contexts, tables, tokens, codes.reshape(-1), reciprocals.reshape(-1), words)
    coded = np.array(states, "<u4").tobytes() + words[at:].astype("<u2").tobytes()
    return coded, raw, append(raw, np.uint64(state[0]), *state[1:], values, 32 * filled + count)


def _contexts(classes: Array, lo: int, hi: int, row_bits: int, column_bits: int, layout: BlockLayout, rows: Array, columns: Array) -> Array:
    """Context of each unit."""
    contexts = scratch("contexts", len(classes), np.uint16)
    if not (row_bits or column_bits):
        layout = BlockLayout(1 << 12)
        rows, columns = np.zeros(layout.rows(len(classes)), np.uint16), np.zeros(layout.width, np.uint16)
    find_contexts(classes, lo, hi, _levels_of(row_bits, column_bits), layout.width, layout.phase, rows, columns, contexts)
    return contexts


def _levels_of(row_bits: int, column_bits: int) -> int:
    """Levels that a unit can have, from its row and its column together."""
    return 2**row_bits + 2**column_bits - 1


@jit
def append(raw, held, count, filled, values, size):
    """Append ``size`` bits of ``values`` to ``raw``; returns how many bits that makes."""
    i = 0
    while size > 0:
        part = min(size, 32)
        held, count, filled = put_raw(np.uint64(values[i]), part, raw, held, count, filled)
        size -= part
        i += 1
    raw[filled] = np.uint32(held)
    return 32 * filled + count


def _plans(classes: Array, positions: Array, tokens: Array, kinds: int, layout: BlockLayout, best: bool) -> Iterator[_Plan]:
    lo, hi, activity, none = int(classes.min()), int(classes.max()), ACTIVITY[:kinds], np.zeros(0, np.uint16)
    sizes: tuple[int, ...] = (0,)
    if 16 <= layout.width <= len(classes) // 16:
        rows, columns = np.zeros(layout.rows(len(classes)), np.int64), np.zeros(layout.width, np.int64)
        mean = np.zeros(256, np.int64)
        find_mean(classes, positions, tokens, units_of(classes), mean)
        score(positions, classes, tokens, mean, layout.width, layout.phase, rows, columns)
        sizes = (3, 2) if best else (3,)
    for bits in sizes:
        row_levels, column_levels = (_levels(rows, bits), _levels(columns, bits)) if bits else (none, none)
        contexts = _contexts(classes, lo, hi, bits, bits, layout, row_levels, column_levels)
        counts = np.zeros(((hi - lo + 1) * _levels_of(bits, bits), kinds), np.uint32)
        count_tokens(contexts, positions, tokens, np.zeros((3, len(counts)), np.int32), counts)
        yield _Plan(lo, hi, bits, row_levels, column_levels, *group(counts, activity))
    if sizes != (0,):
        by_class = counts.reshape(hi - lo + 1, -1, kinds).sum(1, dtype=np.uint32)
        yield _Plan(lo, hi, 0, none, none, *group(by_class, activity))


def _levels(scores: Array, bits: int) -> Array:
    """Levels of equal numbers of rows, by their scores."""
    levels = np.empty(len(scores), np.uint16)
    levels[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) << bits) // len(scores)
    return levels


def _put_head(raw: Array, layout: BlockLayout, plan: _Plan) -> tuple[Any, int, int]:
    state = (ZERO, 0, 0)
    fields = [(plan.lo, 8), (plan.hi, 8), (plan.bits, 3), (plan.bits, 3)] + [(layout.width, 22), (layout.phase, 22)] * bool(plan.bits)
    for value, size in fields:
        state = put_raw(np.uint64(value), size, raw, np.uint64(state[0]), *state[1:])
    for levels in (plan.row_levels, plan.column_levels):
        state = put_levels(levels, plan.bits, raw, np.uint64(state[0]), *state[1:])
    return put_map(plan.groups, len(plan.counts), raw, np.uint64(state[0]), *state[1:])


@jit
def put_levels(levels, size, raw, held, count, filled):
    for x in range(len(levels)):
        held, count, filled = put_raw(np.uint64(levels[x]), size, raw, held, count, filled)
    return held, count, filled


def decode(classes: Array, coded: bytes, raw: Array, m: int) -> tuple[Array, Array, Array, int]:
    """Positions, distances and signs of the changed units, and how many raw bits were taken; raises ValueError."""
    contexts, groups, codes, bits = _take_head(classes, raw, m)
    if len(coded) < 16 or len(coded) % 2:
        raise ValueError(f"{len(coded)} bytes of rANS, expected 16 and an even number")
    states = np.frombuffer(coded[:16], "<u4").astype(np.uint32)
    words = np.frombuffer(coded[16:] + bytes(8), "<u2").astype(np.uint16)
    if states.min() < rans.FLOOR:
        raise ValueError("a state of rANS is too small")
    lookup = np.empty(len(codes) // TOKENS << rans.LOOKUP, np.uint8)
    rans.fill_lookup(codes, len(codes) // TOKENS, lookup)
    tokens = scratch("tokens", len(classes), np.uint8)
    at, *ends = rans.decode_kernel(contexts, groups, codes, lookup, words, states, tokens)
    if at != len(words) - 4 or any(state != rans.FLOOR for state in ends):
        raise ValueError("rANS does not end where it must")
    positions = differing(tokens, 0)
    distances, signs = scratch("distances", len(positions), np.uint64), scratch("signs", len(positions), np.uint8)
    bits = take_changes(tokens, raw, bits, positions, distances, signs)
    return positions, distances, signs, bits


def _take_head(classes: Array, raw: Array, m: int) -> tuple[Array, Array, Array, int]:
    """Context of each unit, group of each context, codes of the groups' tokens, and the position behind them."""
    bits = 0

    def take(size: int) -> int:
        nonlocal bits
        value, bits = take_raw(size, raw, bits)
        return int(value)

    lo, hi, row_bits, column_bits = take(8), take(8), take(3), take(3)
    if lo > hi:
        raise ValueError(f"its lowest class is {lo}, its highest {hi}")
    layout, row_levels, column_levels = WITHOUT_ROWS, np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    if row_bits or column_bits:
        layout = BlockLayout(take(22), take(22))
        if not layout.phase < layout.width <= len(classes):
            raise ValueError(f"rows of {layout.width} units, from {layout.phase} on, in {len(classes)}")
        row_levels, column_levels = np.zeros(layout.rows(len(classes)), np.uint16), np.zeros(layout.width, np.uint16)
        bits = take_levels(row_levels, row_bits, raw, bits)
        bits = take_levels(column_levels, column_bits, raw, bits)
    contexts = _contexts(classes, lo, hi, row_bits, column_bits, layout, row_levels, column_levels)
    groups = np.empty((hi - lo + 1) * _levels_of(row_bits, column_bits), np.uint8)
    n, bits = take_map(groups, raw, bits)
    if n < 0:
        raise ValueError("a context has a group that there is not")
    codes = np.zeros((n, TOKENS), np.uint32)
    for g in range(n):
        valid, bits = rans.take_table(codes[g], token_count(m), raw, bits)
        if not valid:
            raise ValueError(f"the table of group {g} breaks the rules")
    codes |= (np.cumsum(codes, 1, dtype=np.uint32) - codes) << np.uint32(16)
    return contexts, groups, codes.reshape(-1), bits


@jit
def take_levels(levels, size, raw, bits):
    for x in range(len(levels)):
        part, bits = take_raw(size, raw, bits)
        levels[x] = np.uint16(part)
    return bits

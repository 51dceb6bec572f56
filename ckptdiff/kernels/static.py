"""Kernels: the static form of ``context``, for dense blocks (spec section 7.5.3): a token a unit, coded by rANS.

The tables go by a unit's class, and by how active its row and its column are: rows, and columns, are sorted into levels of equal numbers.
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
from ckptdiff.kernels.block_layout import BlockLayout
from ckptdiff.kernels.changes import differing
from ckptdiff.kernels.classes import units_of
from ckptdiff.kernels.context_groups import MAX_GROUPS, group_contexts, put_groups, take_groups
from ckptdiff.kernels.context_map import ContextMap, put_map, take_map
from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.rans import MAX_TOKENS
from ckptdiff.kernels.raw_bits import close_raw, for_kernels, new_writer, put_raw
from ckptdiff.kernels.tokens import ACTIVITY, count_tokens, put_tokens, take_changes, token_count
from ckptdiff.kernels.ulps import SizedChanges

Array = npt.NDArray[Any]

MIN_WIDTH, MIN_ROWS = 16, 16
"""Rows of fewer units, and blocks of fewer rows, get no levels."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a block could be coded, and at what cost."""

    mapping: ContextMap
    groups: Array
    """The group of each context: uint8."""
    counts: Array
    """How often each token occurs in each group: uint32[groups, tokens]."""
    tables_cost: int
    """About how many bits tokens, tables and groups take."""

    @property
    def cost(self) -> int:
        """About how many bits all take."""
        return self.tables_cost + self.mapping.level_bits


@jit
def fill_mean_activity(classes, positions, tokens, units, mean):
    """Fill 256 times how active a unit of each class is on average (int64[256], zeros), given how many units there are of each."""
    for x in range(len(positions)):
        p = np.uint32(positions[x])
        mean[classes[p]] += 256 * ACTIVITY[tokens[p]]
    for c in range(256):
        mean[c] //= max(units[c], 1)


@jit
def add_scores(positions, classes, tokens, mean, layout, rows, columns):
    """Add to the scores of rows and columns how much more active each change in them is than its class's mean unit.

    Args:
        positions: of the units that changed: int32.
        classes, tokens: of all units: uint8.
        mean: as :func:`fill_mean_activity` fills it.
        layout: :class:`~ckptdiff.kernels.block_layout.BlockLayout`.
        rows, columns: int64, one for each row that the block lies in, and one for each column.
    """
    row, start = 0, -layout.phase
    for x in range(len(positions)):
        p = np.int64(positions[x])
        while p - start >= layout.width:
            row += 1
            start += layout.width
        value = 256 * ACTIVITY[tokens[np.uint64(p)]] - mean[classes[np.uint64(p)]]
        rows[row] += value
        columns[np.uint64(p - start)] += value


def encode(classes: Array, changes: SizedChanges, m: int, layout: BlockLayout, thorough: bool) -> tuple[bytes, Array, int]:
    """Code a block.

    Args:
        classes: of all its units: uint8.
        changes: at least one.
        m: bits of a unit.
        layout: the rows of the block's tensor.
        thorough: try levels of rows and columns of two sizes, not of one.

    Returns:
        The states and words of rANS; the raw words, which hold the tables too (scratch); and how many bits of them count.
    """
    tokens, token_raw = scratch("tokens", len(classes), np.uint8), scratch("values", len(changes.positions) * m // 32 + 2, np.uint32)
    tokens[:] = 0
    token_bits = close_raw(token_raw, for_kernels(put_tokens(changes, tokens, token_raw, new_writer())))
    plan = min(_plans(classes, changes.positions, tokens, layout, thorough), key=lambda plan: plan.cost)
    room = 16 + len(plan.mapping.row_levels) + len(plan.mapping.column_levels) + len(plan.groups) + MAX_GROUPS * MAX_TOKENS // 2
    raw = scratch("raw", room + token_bits // 32 + 1, np.uint32)
    writer = for_kernels(put_groups(plan.groups, len(plan.counts), raw, put_map(plan.mapping, raw)))
    frequencies = np.zeros(plan.counts.shape, np.uint32)
    writer = for_kernels(rans.put_tables(plan.counts, frequencies, raw, writer))
    codes, reciprocals = rans.codes_of(frequencies), rans.reciprocals(frequencies)
    tables = np.multiply(plan.groups, plan.counts.shape[1], dtype=np.uint16)
    words = scratch("words", len(classes) + 4, np.uint16)
    contexts = plan.mapping.contexts(classes)
    at, *states = rans.encode_tokens(contexts, tables, tokens, codes.reshape(-1), reciprocals.reshape(-1), words)
    coded = np.array(states, "<u4").tobytes() + words[at:].astype("<u2").tobytes()
    return coded, raw, append_bits(raw, writer, token_raw, token_bits)


@jit
def append_bits(raw, writer, other, size):
    """Append the first ``size`` bits of other raw words, and close ``raw``; returns how many bits that makes."""
    i = 0
    while size > 0:
        part = min(size, 32)
        writer = put_raw(np.uint64(other[i]), part, raw, writer)
        size -= part
        i += 1
    return close_raw(raw, writer)


def _plans(classes: Array, positions: Array, tokens: Array, layout: BlockLayout, thorough: bool) -> Iterator[Plan]:
    """Ways to code a block: with levels of rows and columns, if it has rows enough, and without."""
    lo, hi, kinds = int(classes.min()), int(classes.max()), int(tokens.max()) + 1
    activity, counts = ACTIVITY[:kinds], np.zeros(0, np.uint32)
    for mapping in _maps(classes, positions, tokens, lo, hi, layout, thorough):
        counts = np.zeros((mapping.count, kinds), np.uint32)
        count_tokens(mapping.contexts(classes), positions, tokens, np.zeros((3, len(counts)), np.int32), counts)
        yield Plan(mapping, *group_contexts(counts, activity))
    if mapping.has_levels:
        by_class = counts.reshape(hi - lo + 1, -1, kinds).sum(1, dtype=np.uint32)
        yield Plan(ContextMap(lo, hi), *group_contexts(by_class, activity))


def _maps(classes: Array, positions: Array, tokens: Array, lo: int, hi: int, layout: BlockLayout, thorough: bool) -> Iterator[ContextMap]:
    """Context maps with levels, if the block has rows enough; else the one without."""
    if not MIN_WIDTH <= layout.width <= len(classes) // MIN_ROWS:
        yield ContextMap(lo, hi)
        return
    rows, columns = np.zeros(layout.rows(len(classes)), np.int64), np.zeros(layout.width, np.int64)
    mean = np.zeros(256, np.int64)
    fill_mean_activity(classes, positions, tokens, units_of(classes), mean)
    add_scores(positions, classes, tokens, mean, layout, rows, columns)
    for bits in (3, 2) if thorough else (3,):
        yield ContextMap(lo, hi, bits, bits, layout, _levels(rows, bits), _levels(columns, bits))


def _levels(scores: Array, bits: int) -> Array:
    """Levels of equal numbers of rows, or columns, by their scores."""
    levels = np.empty(len(scores), np.uint16)
    levels[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) << bits) // len(scores)
    return levels


def decode(classes: Array, coded: bytes, raw: Array, m: int) -> tuple[SizedChanges, int]:
    """The changes of a block (scratch), and how many raw bits were taken.

    Raises:
        ValueError: with one line that says which rule of spec 7.5.3 the block breaks.
    """
    mapping, position = take_map(classes, raw)
    contexts = mapping.contexts(classes)
    groups = np.empty(mapping.count, np.uint8)
    n, position = take_groups(groups, raw, position)
    if n < 0:
        raise ValueError("a context has a group that there is not")
    codes, position = _take_codes(n, token_count(m), raw, position)
    tokens = _decode_tokens(contexts, groups, codes, coded)
    positions = differing(tokens, 0)
    changes = SizedChanges.scratch(len(positions), positions)
    return changes, take_changes(tokens, raw, position, changes)


def _take_codes(groups: int, tokens: int, raw: Array, position: int) -> tuple[Array, int]:
    """The codes of each group's tokens, :data:`~ckptdiff.kernels.rans.MAX_TOKENS` in a row, and the position behind the tables."""
    frequencies = np.zeros((groups, MAX_TOKENS), np.uint32)
    for g in range(groups):
        valid, position = rans.take_table(frequencies[g], tokens, raw, position)
        if not valid:
            raise ValueError(f"the table of group {g} breaks the rules")
    return rans.codes_of(frequencies).reshape(-1), position


def _decode_tokens(contexts: Array, groups: Array, codes: Array, coded: bytes) -> Array:
    """The token of each unit. Scratch."""
    if len(coded) < 16 or len(coded) % 2:
        raise ValueError(f"{len(coded)} bytes of rANS, expected 16 and an even number")
    states = np.frombuffer(coded[:16], "<u4").astype(np.uint32)
    words = np.frombuffer(coded[16:] + bytes(8), "<u2").astype(np.uint16)
    if states.min() < rans.MIN_STATE:
        raise ValueError("a state of rANS is too small")
    tables = len(codes) // MAX_TOKENS
    lookup = np.empty(tables << rans.LOOKUP_BITS, np.uint8)
    rans.fill_lookup(codes, tables, lookup)
    tokens = scratch("tokens", len(contexts), np.uint8)
    at, *ends = rans.decode_tokens(contexts, groups, codes, lookup, words, states, tokens)
    if at != len(words) - 4 or any(state != rans.MIN_STATE for state in ends):
        raise ValueError("rANS does not end where it must")
    return tokens

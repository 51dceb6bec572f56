"""Kernels: a block coded and decoded by the adaptive form of ``context`` (spec section 7.5.2), each by one call."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Changes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.adaptive import CONTEXTS_PER_BIT, decode_changes, encode_changes, new_contexts
from ckptdiff.kernels.arrays import check_positions, readable
from ckptdiff.kernels.classes import bits_of, fill_classes, fill_units, sample_step
from ckptdiff.kernels.jit import ZERO, jit
from ckptdiff.kernels.pace import RATES, WEIGHTS, choose_rates, put_rates, take_rates
from ckptdiff.kernels.raw_bits import BitWriter
from ckptdiff.kernels.ulps import SizedChanges, fill_sized, fill_zigzags, order_of

Array = npt.NDArray[Any]


class Counts(NamedTuple):
    """What a block's rates are chosen by, and the rates: memory that kernels work in, a value for each class."""

    changed: Array
    """int64[256]: how many units of each class changed."""
    units: Array
    """int64[256]: how many units there are, or about so many."""
    sums: Array
    """int32[2, 256]."""
    limit: Array
    """uint8[64]."""
    rates: Array
    """uint8[256]."""
    weights: Array
    """uint32[256], in 2^-24 octaves."""

    @classmethod
    def new(cls) -> Counts:
        """Memory with arbitrary contents."""
        changed, units = np.empty((2, 256), np.int64)
        rates, weights = np.empty(256, np.uint8), np.empty(256, np.uint32)
        return cls(changed, units, np.empty((2, 256), np.int32), np.empty(64, np.uint8), rates, weights)


class _ThreadMemory(threading.local):
    """What each thread uses for block after block."""

    def __init__(self) -> None:
        self.counts, self.met = Counts.new(), np.empty(256, np.uint8)


_memory = _ThreadMemory()


@jit
def encode_units(old, classes, bits, changes, zigzags, order, each, counts, contexts, met, raw, words):
    """Code a block.

    Args:
        old: units of the base.
        classes: memory to work in, uint8, one for each unit.
        bits: :class:`~ckptdiff.kernels.classes.ClassBits`.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` of which the positions are known, at least one.
        zigzags: one for each.
        order: :class:`~ckptdiff.kernels.ulps.UnitOrder`.
        each: as of :func:`~ckptdiff.kernels.classes.fill_units`.
        counts: :class:`Counts`.
        contexts, met: memory for :class:`~ckptdiff.kernels.adaptive.ClassContexts` of all classes.
        raw: uint32, for the raw bits.
        words: uint16, for the range coder.

    Returns:
        As of :func:`~ckptdiff.kernels.adaptive.encode_changes`.
    """
    fill_classes(old, bits.shift, bits.mask, classes)
    fill_sized(old, zigzags, order, changes)
    for c in range(256):
        counts.changed[c], counts.rates[c] = 0, np.uint8(0)
    for x in range(len(changes.positions)):
        counts.changed[classes[changes.positions[x]]] += 1
    lo, hi = 0, 255
    while counts.changed[lo] == 0:
        lo += 1
    while counts.changed[hi] == 0:
        hi -= 1
    fill_units(classes, each, counts.sums, counts.limit, counts.units)
    for c in range(256):
        counts.units[c] = max(counts.units[c], counts.changed[c])
    choose_rates(counts.units, counts.changed, lo, hi, counts.rates)
    for c in range(256):
        counts.weights[c] = WEIGHTS[counts.rates[c]]
    writer = put_rates(counts.rates, lo, hi, raw, BitWriter(ZERO, 0, 0))
    learned = new_contexts(lo, hi, np.int64(order.top) + 1, contexts, met)
    return encode_changes(classes, changes, counts.weights, learned, raw, writer, words)


@jit
def put_form(form, bits, raw, size, words, at, out):
    """Append a coded block (spec section 7.5) to those in ``out``: its form, its raw bits, and the range coded bytes less zeros at the end.

    Args:
        form: the block's first byte.
        bits: how many bits of ``raw`` count.
        raw: uint32.
        size: how many bytes of ``words``, the high one of each first, there are.
        words: uint16.
        at: where the block begins.
        out: uint8.

    Returns:
        Where the block ends; -1 if it does not fit.
    """
    count = (bits + 7) // 8
    while size and np.uint8(words[(size - 1) // 2] >> (0 if size % 2 == 0 else 8)) == 0:
        size -= 1
    if at + 6 + count + size > len(out):
        return -1
    out[at] = np.uint8(form)
    at, left = at + 1, count
    while left > 127:
        out[at] = np.uint8(left % 128 + 128)
        at, left = at + 1, left // 128
    out[at] = np.uint8(left)
    at += 1
    for k in range(count):
        out[at + k] = np.uint8((raw[k // 4] >> (8 * (k % 4))) & 255)
    at += count
    for k in range(size):
        out[at + k] = np.uint8((words[k // 2] >> (8 if k % 2 == 0 else 0)) & 255)
    return at + size


@jit
def encode_blocks(old, blocks, bits, changes, zigzags, order, classes, counts, contexts, met, raw, words, form, out, ends):
    """Code several blocks, each as :func:`encode_units` does, one behind the other.

    Args:
        old: units of all.
        blocks: int64[blocks, 5]: the first and the last but one of its units, the same of its changes, and its ``each``.
        bits, order, counts, contexts, met, raw, words: as there; the last two have room for any of them.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` of all.
        zigzags: one for each.
        classes: memory to work in, uint8, as many as the longest has units.
        form: the first byte of each.
        out: uint8, to fill with the coded blocks.
        ends: int64, one for each, to fill with where it ends; -1 where it does not fit, or needs more words.
    """
    at = 0
    for k in range(len(blocks)):
        first, stop, start, end = blocks[k, 0], blocks[k, 1], blocks[k, 2], blocks[k, 3]
        moved = SizedChanges(changes.positions[start:end], changes.distances[start:end], changes.sides[start:end])
        units, memory = old[first:stop], classes[: stop - first]
        found = encode_units(units, memory, bits, moved, zigzags[start:end], order, blocks[k, 4], counts, contexts, met, raw, words)
        ends[k] = put_form(form, found[0], raw, found[1], words, at, out) if found[1] <= 2 * len(words) else -1
        at = max(at, ends[k])


Row = tuple[int, int, int, int]
"""A block of several: the first and the last but one of its units, and the same of its changes."""


def encode(old: Units, blocks: Sequence[Row], positions: Array, zigzags: Units, dtype: Dtype, form: int) -> list[bytes]:
    """Code several blocks that have changes, by one call.

    Args:
        old: units of the base, of all blocks.
        blocks: which units and changes are whose.
        positions, zigzags: the changes, by their number in the block.
        dtype: of the units.
        form: the first byte of a coded block.

    Raises:
        ValueError: positions do not lie in a block, or are not as many as zigzags.
    """
    for first, stop, start, end in blocks:
        check_positions(old[first:stop], positions[start:end], zigzags[start:end])
    coded = list[bytes]()
    for block, found in zip(blocks, _encode(old, blocks, positions, zigzags, dtype, form, False), strict=True):
        row = [block]
        alone = found or _encode(old, row, positions, zigzags, dtype, form, False)[0]  # where there was no room behind the others
        coded.append(alone or _encode(old, row, positions, zigzags, dtype, form, True)[0])
    return coded


def _encode(old: Units, blocks: Sequence[Row], positions: Array, zigzags: Units, dtype: Dtype, form: int, exact: bool) -> list[bytes]:
    """:func:`encode`, without what takes more memory than is thought: rates by counts that are far off take more words than changes do.

    ``exact``: count all units, so that words never take more than two a unit.
    """
    longest, most = max(stop - first for first, stop, _, _ in blocks), max(end - start for _, _, start, end in blocks)
    rows = np.array([(*block, sample_step(block[1] - block[0], exact)) for block in blocks], np.int64)
    m, room, changes = 8 * dtype.carrier, most * (dtype.carrier + 6) + 1024, SizedChanges.scratch(len(positions), positions)
    raw, words = scratch("raw", room, np.uint32), scratch("words", 2 * room + (2 * longest if exact else 0), np.uint16)
    memory = _memory.counts, scratch("contexts", 256 * CONTEXTS_PER_BIT * m, np.uint32), _memory.met, raw, words
    largest = 4 * len(raw) + 2 * len(words) + 16
    out = scratch("coded", largest + BYTES_A_BLOCK * len(rows) + BYTES_A_CHANGE * len(positions), np.uint8)
    classes, ends = scratch("classes", longest, np.uint8), np.empty(len(rows), np.int64)
    encode_blocks(readable(old), rows, bits_of(dtype), changes, zigzags, order_of(dtype), classes, *memory, form, out, ends)
    coded, done, start = list[bytes](), out[: max(0, int(ends.max()))].tobytes(), 0
    for end in ends.tolist():
        coded.append(done[start:end] if end >= 0 else b"")
        start = max(start, end)
    return coded


BYTES_A_BLOCK, BYTES_A_CHANGE = 64, 8
"""Room for coded blocks, beside that for the largest that one may be."""


class Decoded(NamedTuple):
    """What :func:`decode_units` found."""

    lo: int
    hi: int
    """The lowest and the highest class that changes; a ``lo`` of -1 says that a rate is not one."""
    changed: int
    """How many units changed; -1 where the code leaves the range."""
    words: int
    """How many words were taken."""
    bits: int
    """How many raw bits were taken."""
    fits: bool
    """Whether each unit can move as far as it is said to."""


@jit
def decode_units(units, classes, bits, order, weights, contexts, met, raw, words, changes, zigzags):
    """Inverse of :func:`encode_units`; returns :class:`Decoded`.

    Args:
        units: of the base.
        classes, bits, order, contexts, met, raw: as there.
        weights: memory to work in, uint32[256].
        words: as of :func:`~ckptdiff.kernels.adaptive.decode_changes`.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` with room for one of each unit, to fill.
        zigzags: as many, as units are, to fill.
    """
    for c in range(256):
        weights[c] = np.uint32(0)
    lo, hi, position = take_rates(raw, weights)
    if lo < 0 or lo > hi:
        return Decoded(lo, hi, 0, 0, position, True)
    fill_classes(units, bits.shift, bits.mask, classes)
    learned = new_contexts(lo, hi, np.int64(order.top) + 1, contexts, met)
    count, at, position = decode_changes(classes, weights, learned, raw, position, words, changes)
    found = SizedChanges(changes.positions[:count], changes.distances[:count], changes.sides[:count])
    return Decoded(lo, hi, count, at, position, count > 0 and fill_zigzags(units, found, order, zigzags))


def decode_named(units: Units, coded: memoryview, raw: Array, dtype: Dtype) -> tuple[Changes, int]:
    """The changes of a block (scratch), and how many raw bits were taken. There are no zigzags where a unit cannot move that far.

    It takes longer than :func:`decode`, and says what is wrong.

    Args:
        units: of the base.
        coded: the range coded bytes.
        raw: the raw words, and two zeros.
        dtype: of the units.

    Raises:
        ValueError: with one line that says which rule of spec 7.5.2 the block breaks.
    """
    if len(coded) and coded[-1] == 0:
        raise ValueError("its range coded bytes end with a zero")
    n, size = len(units), len(coded)
    flat = scratch("words", 2 * ((size + 1) // 2 + 4), np.uint8)
    flat[:size], flat[size:] = np.frombuffer(coded, np.uint8), 0
    words = flat.view(">u2").astype(np.uint16)
    changes = SizedChanges.scratch(n, scratch("positions", n, np.int32))
    zigzags, classes = scratch("zigzags", n, dtype.unit), scratch("classes", n, np.uint8)
    contexts = scratch("contexts", 256 * CONTEXTS_PER_BIT * 8 * dtype.carrier, np.uint32)
    memory = _memory.counts.weights, contexts, _memory.met, raw, words, changes, zigzags
    lo, hi, count, at, bits, fits = decode_units(readable(units), classes, bits_of(dtype), order_of(dtype), *memory)
    if lo < 0 or lo > hi:
        raise ValueError(f"a rate is below 0 or above {RATES - 1}" if lo < 0 else f"its lowest class is {lo}, its highest {hi}")
    if count < 0:
        raise ValueError("its range coded bytes leave the range")
    if 2 * at < size:
        raise ValueError(f"{size - 2 * at} range coded bytes are left over")
    return (changes.positions[:count], zigzags[: count if fits else 0]), bits


@jit
def take_form(coded, start, stop, form, raw, words):
    """Take a coded block (spec section 7.5) apart; inverse of :func:`put_form`.

    Args:
        coded: uint8; the block lies from ``start`` to ``stop``.
        form: the form that it must have.
        raw: uint32, to fill with its raw bits, and two zeros.
        words: uint16, to fill with its range coded bytes, the high one of each word first, and four zeros.

    Returns:
        How many bytes of raw bits there are, and how many range coded bytes; -1 twice where it has another form, or breaks a rule.
    """
    at, count, shift = start + 1, 0, 0
    if stop - start < 2 or coded[start] != form:
        return -1, -1
    while at < stop and coded[at] > 127 and shift < 28:
        count |= np.int64(coded[at] & 127) << shift
        at, shift = at + 1, shift + 7
    if at == stop or coded[at] > 127 or (shift and coded[at] == 0):
        return -1, -1
    count |= np.int64(coded[at]) << shift
    at += 1
    size = stop - at - count
    if size < 0 or (size and coded[stop - 1] == 0):
        return -1, -1
    for k in range(count // 4 + 3):
        raw[k] = np.uint32(0)
    for k in range(count):
        raw[k // 4] |= np.uint32(np.uint32(coded[at + k]) << np.uint32(8 * (k % 4)))
    for k in range((size + 1) // 2 + 4):
        words[k] = np.uint16(0)
    for k in range(size):
        words[k // 2] |= np.uint16(np.uint16(coded[at + count + k]) << np.uint16(0 if k % 2 else 8))
    return count, size


@jit
def decode_blocks(units, blocks, bits, order, weights, contexts, met, raw, words, coded, form, classes, changes, zigzags, ends):
    """Decode several blocks, each as :func:`decode_units` does, one behind the other.

    Args:
        units: of the base, of all.
        blocks: int64[blocks, 4]: the first and the last but one of its units; where its coded form begins and ends.
        bits, order, weights, contexts, met, classes: as there.
        raw, words: memory to work in, uint32 and uint16, as large as any block needs.
        coded: uint8, the coded forms.
        form: the form that is decoded.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` with room for one of each unit, to fill; positions are those in ``units``.
        zigzags: as many, as units are, to fill.
        ends: int64, to fill: where the changes of each block end; -1 where it has another form, or breaks a rule.
    """
    n = 0
    for k in range(len(blocks)):
        first, stop = blocks[k, 0], blocks[k, 1]
        ends[k] = -1
        count, size = take_form(coded, blocks[k, 2], blocks[k, 3], form, raw, words)
        if count < 0:
            continue
        found = SizedChanges(changes.positions[n:], changes.distances[n:], changes.sides[n:])
        bits_in, words_in = raw[: count // 4 + 3], words[: (size + 1) // 2 + 4]  # no more: the decoder stops where they end
        memory = classes[: stop - first]
        done = decode_units(units[first:stop], memory, bits, order, weights, contexts, met, bits_in, words_in, found, zigzags[n:])
        if done.lo < 0 or done.lo > done.hi or done.changed <= 0 or not done.fits or 2 * done.words < size or (done.bits + 7) // 8 != count:
            continue
        if done.bits % 8 and (raw[(count - 1) // 4] >> np.uint32(8 * ((count - 1) % 4)) & np.uint32(255)) >> np.uint32(done.bits % 8):
            continue
        for x in range(n, n + done.changed):
            changes.positions[x] += np.int32(first)
        n += done.changed
        ends[k] = n


def decode(
    units: Units, blocks: Sequence[tuple[int, int]], coded: Sequence[memoryview], dtype: Dtype, form: int
) -> tuple[Changes, list[int]]:
    """Decode several blocks of one form, by one call.

    Args:
        units: of the base, of all blocks.
        blocks: of each the first and the last but one of its units.
        coded: the coded blocks.
        dtype: of the units.
        form: the first byte of a coded block.

    Returns:
        The changes of all blocks (scratch), by their number in ``units``; and where those of each end, -1 for a block of another form, or
        one that breaks a rule of the spec, which :func:`decode_named` names.
    """
    joined = np.frombuffer(b"".join(coded), np.uint8)
    bounds, most = [0, *accumulate(map(len, coded))], max(map(len, coded))
    rows = np.array([(*block, *part) for block, part in zip(blocks, pairwise(bounds), strict=True)], np.int64)
    n, longest = len(units), max(stop - first for first, stop in blocks)
    raw, words = scratch("raw", most // 4 + 4, np.uint32), scratch("words", most // 2 + 8, np.uint16)
    changes, zigzags = SizedChanges.scratch(n, scratch("positions", n, np.int32)), scratch("zigzags", n, dtype.unit)
    contexts, classes = scratch("contexts", 256 * CONTEXTS_PER_BIT * 8 * dtype.carrier, np.uint32), scratch("classes", longest, np.uint8)
    memory, ends = (_memory.counts.weights, contexts, _memory.met, raw, words), np.empty(len(rows), np.int64)
    decode_blocks(readable(units), rows, bits_of(dtype), order_of(dtype), *memory, readable(joined), form, classes, changes, zigzags, ends)
    total = max(0, int(ends.max()))
    return (changes.positions[:total], zigzags[:total]), ends.tolist()

"""Kernels: several blocks coded and decoded by the adaptive form of ``context`` (spec section 7.5.2), each by one call."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Changes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.adaptive import CONTEXTS_PER_BIT
from ckptdiff.kernels.adaptive_block import decode_units, encode_units, thread_memory
from ckptdiff.kernels.arrays import check_positions, readable
from ckptdiff.kernels.classes import bits_of, sample_step
from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.ulps import SizedChanges, order_of

Array = npt.NDArray[Any]


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
    """Code several blocks, each as :func:`~ckptdiff.kernels.adaptive_block.encode_units` does, one behind the other.

    Args:
        old: units of all.
        blocks: int64[blocks, 5]: its first unit and the one behind its last, the same of its changes, and its ``each``.
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
"""A block of several: its first unit and the one behind its last, and the same of its changes."""


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
    memory = thread_memory.counts, scratch("contexts", 256 * CONTEXTS_PER_BIT * m, np.uint32), thread_memory.met, raw, words
    largest = 4 * len(raw) + 2 * len(words) + 16
    out = scratch("coded", largest + BYTES_A_BLOCK * len(rows) + BYTES_A_CHANGE * len(positions), np.uint8)
    classes, ends = scratch("classes", longest, np.uint8), np.empty(len(rows), np.int64)
    encode_blocks(readable(old), rows, bits_of(dtype), changes, zigzags, order_of(dtype), classes, *memory, form, out, ends)
    found = ends.tolist()
    coded, done, start = list[bytes](), out[: max(0, *found)].tobytes(), 0
    for end in found:
        coded.append(done[start:end] if end >= 0 else b"")
        start = max(start, end)
    return coded


BYTES_A_BLOCK, BYTES_A_CHANGE = 64, 8
"""Room for coded blocks, beside that for the largest that one may be."""


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
    """Decode several blocks, each as :func:`~ckptdiff.kernels.adaptive_block.decode_units` does, one behind the other.

    Args:
        units: of the base, of all.
        blocks: int64[blocks, 4]: its first unit and the one behind its last; where its coded form begins and ends.
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
        blocks: of each its first unit and the one behind its last.
        coded: the coded blocks.
        dtype: of the units.
        form: the first byte of a coded block.

    Returns:
        The changes of all blocks (scratch), by their number in ``units``; and where those of each end, -1 for a block of another form, or
        one that breaks a rule of the spec, which :func:`~ckptdiff.kernels.adaptive_block.decode_named` names.
    """
    joined = readable(np.frombuffer(coded[0] if len(coded) == 1 else bytearray().join(coded), np.uint8))
    bounds, most = [0, *accumulate(map(len, coded))], max(map(len, coded))
    rows = np.array([(*block, *part) for block, part in zip(blocks, pairwise(bounds), strict=True)], np.int64)
    n, longest = len(units), max(stop - first for first, stop in blocks)
    raw, words = scratch("raw", most // 4 + 4, np.uint32), scratch("words", most // 2 + 8, np.uint16)
    changes, zigzags = SizedChanges.scratch(n, scratch("positions", n, np.int32)), scratch("zigzags", n, dtype.unit)
    contexts, classes = scratch("contexts", 256 * CONTEXTS_PER_BIT * 8 * dtype.carrier, np.uint32), scratch("classes", longest, np.uint8)
    memory, ends = (thread_memory.counts.weights, contexts, thread_memory.met, raw, words), np.empty(len(rows), np.int64)
    decode_blocks(readable(units), rows, bits_of(dtype), order_of(dtype), *memory, joined, form, classes, changes, zigzags, ends)
    found = ends.tolist()
    total = max(0, *found)
    return (changes.positions[:total], zigzags[:total]), found

"""Kernels: several blocks of files read, compared and coded by the adaptive form of ``context`` (spec section 7.5.2), by one call."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import Dtype
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.adaptive import CONTEXTS_PER_BIT
from ckptdiff.kernels.adaptive_block import encode_units, thread_memory
from ckptdiff.kernels.adaptive_blocks import put_form
from ckptdiff.kernels.arrays import address_of
from ckptdiff.kernels.changes import fill_compared
from ckptdiff.kernels.classes import bits_of, sample_step
from ckptdiff.kernels.file_reads import ThreadArguments, read_all
from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.leaves import cut_leaves
from ckptdiff.kernels.ulps import SizedChanges, order_of

Array = npt.NDArray[Any]

MOST_BLOCKS = 16
"""Blocks that a call does at most."""
ROOM = 1 << 20
"""Bytes for the coded blocks of a call."""


class FileBlock(NamedTuple):
    """A block of a target's tensor, and of the base's that it is compared with, in files."""

    base: int
    base_offset: int
    target: int
    target_offset: int
    """Descriptors of the files, and where in them the block begins."""
    nbytes: int


class EncodedBlock(NamedTuple):
    """A block, coded."""

    coded: bytes
    changed: int
    """How many units changed."""
    base_leaf: bytes
    leaf: bytes


@jit
def encode_from_files(
    rows, old, memory, most, bits, order, changes, zigzags, classes, counts, contexts, met, raw, words, work, form, found, out
):
    """Read, compare and code blocks, one after the other, up to the first that needs another way.

    That is one which cannot be read, of which more than ``most`` units changed, or whose code does not fit.

    Args:
        rows: int64[blocks, 6]: the members of :class:`FileBlock`, and ``each`` of :func:`~ckptdiff.kernels.adaptive_block.encode_units`.
        memory: uint64[2]: addresses of memory for a block of the base, and one of the target.
        most: how many units may change.
        bits, order, counts, contexts, met, raw, words: as of :func:`~ckptdiff.kernels.adaptive_block.encode_units`.
        changes: :class:`~ckptdiff.kernels.ulps.SizedChanges` with room for a position of each unit of a block, and ``most`` of the others.
        zigzags: room for one of each unit.
        classes: memory, uint8, for those of a block.
        work: memory: int64[3], and uint64[2, 8].
        form: the first byte of a coded block.
        found: of each block, to fill: uint64[blocks, 2, 1, 2], the leaves of base and target; int64[blocks, 2], where its code ends in
            ``out``, and how many units changed.
        out: uint8, to fill with the coded blocks.

    Returns:
        How many blocks are done.
    """
    leaves, facts = found
    numbers, sums = work
    at, width = 0, zigzags.itemsize
    for k in range(len(rows)):
        size = rows[k, 4]
        numbers[2] = size
        if not read_all(rows[k, 0], memory[0], size, rows[k, 1]) or not read_all(rows[k, 2], memory[1], size, rows[k, 3]):
            return k
        fill_compared(memory[0:1], memory[1:2], numbers[2:3], order, changes.positions, zigzags, numbers, sums, leaves[k])
        n = numbers[1]
        if n > most:
            return k
        if n > 0:
            units = old[: size // width]
            moved = SizedChanges(changes.positions[:n], changes.distances[:n], changes.sides[:n])
            coded = encode_units(
                units, classes[: len(units)], bits, moved, zigzags[:n], order, rows[k, 5], counts, contexts, met, raw, words
            )
            end = put_form(form, coded[0], raw, coded[1], words, at, out) if coded[1] <= 2 * len(words) else -1
            if end < 0:
                return k
            at = end
        facts[k, 0], facts[k, 1] = at, n
    return len(rows)


def encode(blocks: Sequence[FileBlock], dtype: Dtype, most: int, form: int) -> list[EncodedBlock]:
    """Code the first blocks of some.

    Args:
        blocks: none is empty, or too short for :func:`~ckptdiff.kernels.leaves.finish_leaf`.
        dtype: of all.
        most: how many units may change in a block.
        form: the first byte of a coded block.

    Returns:
        Those before the first that needs another way, and at most :data:`MOST_BLOCKS`: maybe none.
    """
    rows = np.array([(*block, sample_step(block.nbytes // dtype.carrier, False)) for block in blocks[:MOST_BLOCKS]], np.int64)
    _, *memory, (leaves, facts), out = _kept.of(_arguments, dtype, most)
    done = encode_from_files(*(rows, *memory, form, (leaves, facts), out))
    encoded, digests, start = list[EncodedBlock](), cut_leaves(leaves[:done].astype(">u8").tobytes()), 0
    for k, (end, changed) in enumerate(facts[:done].tolist()):
        encoded.append(EncodedBlock(out[start:end].tobytes(), changed, digests[2 * k], digests[2 * k + 1]))
        start = end
    return encoded


_kept = ThreadArguments()


def _arguments(dtype: Dtype, most: int) -> tuple[Any, ...]:
    """Memory for a block of the target; the arguments of :func:`encode_from_files` between ``rows`` and ``form``, and those behind that.
    Mostly scratch."""
    units, room = BLOCK // dtype.carrier, most * (dtype.carrier + 6) + 1024
    old, new = scratch("base", units, dtype.unit), scratch("target", BLOCK, np.uint8)
    memory = np.array([address_of(old), address_of(new)], np.uint64)
    changes, zigzags = SizedChanges.scratch(most, scratch("positions", units, np.int32)), scratch("zigzags", units, dtype.unit)
    raw, words, out = scratch("raw", room, np.uint32), scratch("words", 2 * room, np.uint16), scratch("coded", ROOM, np.uint8)
    contexts, classes = scratch("contexts", 256 * CONTEXTS_PER_BIT * 8 * dtype.carrier, np.uint32), scratch("classes", units, np.uint8)
    leaves, facts = np.empty((MOST_BLOCKS, 2, 1, 2), np.uint64), np.empty((MOST_BLOCKS, 2), np.int64)
    coder, work = (thread_memory.counts, contexts, thread_memory.met, raw, words), (np.zeros(3, np.int64), np.empty((2, 8), np.uint64))
    return new, old, memory, most, bits_of(dtype), order_of(dtype), changes, zigzags, classes, *coder, work, (leaves, facts), out

"""Kernels: several blocks of files read, decoded by the adaptive form of ``context`` (spec section 7.5.2), and written, by one call."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import Dtype
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.adaptive import CONTEXTS_PER_BIT
from ckptdiff.kernels.adaptive_block import thread_memory
from ckptdiff.kernels.adaptive_blocks import decode_blocks
from ckptdiff.kernels.arrays import address_of
from ckptdiff.kernels.classes import bits_of
from ckptdiff.kernels.file_reads import ThreadArguments, read_all, write_all
from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.leaves import cut_leaves, finish_leaf, hash_steps, start_leaf
from ckptdiff.kernels.moves import move_and_hash
from ckptdiff.kernels.ulps import SizedChanges, order_of

MOST_BLOCKS = 16
"""Blocks that a call does at most."""
MOST_CODED = 1 << 18
"""Bytes that the coded form of a block may have: of those that are longer another form is used."""


class FileRange(NamedTuple):
    """A block to build, of files."""

    base: int
    base_offset: int
    patch: int
    patch_offset: int
    """Descriptors of the base's and the patch's file, and where in them the block and its coded form begin."""
    coded: int
    """Bytes of the coded form; 0 for a block that stays as it is."""
    out: int
    out_offset: int
    """Descriptor of the file that is written, and where; -1 for none."""
    nbytes: int


class BuiltBlock(NamedTuple):
    """A block that is built, and written."""

    base_leaf: bytes
    leaf: bytes
    changed: int
    """How many units changed."""


@jit
def decode_from_files(
    rows, units, memory, bits, order, weights, contexts, met, raw, words, coded, form, classes, changes, zigzags, work, found
):
    """Read, decode and write blocks, one after the other, up to the first that needs another way.

    That is one of another form, that cannot be read or written, or that breaks a rule.

    Args:
        rows: int64[blocks, 8]: the members of :class:`FileRange`.
        units, coded: memory for those of a block, and for its coded form.
        memory: uint64[4]: the addresses of both, of positions and of zigzags.
        bits, order, weights, contexts, met, raw, words, form, classes, changes, zigzags: as of
            :func:`~ckptdiff.kernels.adaptive_blocks.decode_blocks`.
        work: memory: int64[1, 4], int64[1], uint64[1, 5], uint64[8] and uint8[1].
        found: of each block, to fill: uint64[blocks, 2, 1, 2], the leaves of base and target; int64[blocks], how many units changed.

    Returns:
        How many blocks are done.
    """
    block, ends, run, sums, moved = work
    leaves, counts = found
    width = zigzags.itemsize
    for k in range(len(rows)):
        size, length, n = rows[k, 7], rows[k, 4], 0
        if length > len(coded) or not read_all(rows[k, 2], memory[1], length, rows[k, 3]) or (length > 0 and coded[0] != form):
            return k
        if not read_all(rows[k, 0], memory[0], size, rows[k, 1]):
            return k
        start_leaf(sums)
        hash_steps(sums, memory[0], 0, size, 0, size)
        finish_leaf(sums, memory[0], 0, size, leaves[k, 0, 0])
        leaves[k, 1, 0, 0], leaves[k, 1, 0, 1] = leaves[k, 0, 0, 0], leaves[k, 0, 0, 1]
        if length > 0:
            block[0, 0], block[0, 1], block[0, 2], block[0, 3] = 0, size // width, 0, length
            decode_blocks(units, block, bits, order, weights, contexts, met, raw, words, coded, form, classes, changes, zigzags, ends)
            n = ends[0]
            if n < 0 or changes.positions[n - 1] >= size // width:
                return k
            run[0, 0], run[0, 1], run[0, 2], run[0, 3], run[0, 4] = memory[0], np.uint64(size), memory[2], memory[3], np.uint64(n)
            move_and_hash(run, changes.positions, zigzags, order, False, sums, leaves[k, 1], moved)
        if rows[k, 5] >= 0 and not write_all(rows[k, 5], memory[0], size, rows[k, 6]):
            return k
        counts[k] = n
    return len(rows)


def decode(ranges: Sequence[FileRange], dtype: Dtype, form: int) -> list[BuiltBlock]:
    """Build the first blocks of some.

    Args:
        ranges: none is empty, or too short for :func:`~ckptdiff.kernels.leaves.finish_leaf`.
        dtype: of all.
        form: the first byte of a coded block.

    Returns:
        Those before the first that needs another way, and at most :data:`MOST_BLOCKS`: maybe none.
    """
    arguments = _kept.of(_arguments, dtype, form)
    leaves, counts = arguments[-1]
    done = decode_from_files(*(np.array(ranges[:MOST_BLOCKS], np.int64), *arguments))
    digests = iter(cut_leaves(leaves[:done].astype(">u8").tobytes()))
    return [BuiltBlock(before, after, count) for before, after, count in zip(digests, digests, counts[:done].tolist(), strict=True)]


_kept = ThreadArguments()


def _arguments(dtype: Dtype, form: int) -> tuple[Any, ...]:
    """The arguments of :func:`decode_from_files` behind ``rows``. Mostly scratch."""
    n = BLOCK // dtype.carrier
    units, coded = scratch("read", n, dtype.unit), scratch("coded", MOST_CODED, np.uint8)
    changes, zigzags = SizedChanges.scratch(n, scratch("positions", n, np.int32)), scratch("zigzags", n, dtype.unit)
    memory = np.array([address_of(array) for array in (units, coded, changes.positions, zigzags)], np.uint64)
    raw, words = scratch("raw", MOST_CODED // 4 + 4, np.uint32), scratch("words", MOST_CODED // 2 + 8, np.uint16)
    contexts, classes = scratch("contexts", 256 * CONTEXTS_PER_BIT * 8 * dtype.carrier, np.uint32), scratch("classes", n, np.uint8)
    numbers = np.empty((1, 4), np.int64), np.empty(1, np.int64)
    work = *numbers, np.empty((1, 5), np.uint64), np.empty(8, np.uint64), np.empty(1, np.uint8)
    found = np.empty((MOST_BLOCKS, 2, 1, 2), np.uint64), np.empty(MOST_BLOCKS, np.int64)
    coder = thread_memory.counts.weights, contexts, thread_memory.met, raw, words
    return units, memory, bits_of(dtype), order_of(dtype), *coder, coded, form, classes, changes, zigzags, work, found

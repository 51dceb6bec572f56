"""Tensors in memory encoded by ``sparse`` against others of the same layout: many by one call, without plans and jobs (spec 7.4 and 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from typing import NamedTuple

import xxhash

from ckptdiff.checkpoint.contents import Tensor, TensorKey
from ckptdiff.checkpoint.gather import within
from ckptdiff.format.digests import BLOCK, tensor_digest
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import run_ordered
from ckptdiff.patching.encode_group import EncodedGroup
from ckptdiff.patching.encode_in_memory import BYTES_TOGETHER, NotedParts, PartInMemory, encode_apart


class EncodedRow(NamedTuple):
    """A tensor, encoded."""

    tensor: Tensor
    entry: Entry
    """Its table entry: ``delta`` or ``same``."""
    payload: bytes


def encode_rows(
    tensors: Sequence[Tensor], memory: Sequence[tuple[Bytes, Bytes]], noted: NotedParts | None, threads: int
) -> list[EncodedRow]:
    """Encode tensors against those of the base.

    Args:
        tensors: the tensors, none of them empty, with the names, dtypes and shapes that the entries state.
        memory: of each one's base, and of what it becomes, which has the same dtype and size.
        noted: told what changes, on any thread.
        threads: how many to use; the bytes do not depend on it.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    most = BYTES_TOGETHER if threads == 1 else max(BLOCK, min(BYTES_TOGETHER, total // (4 * threads)) // BLOCK * BLOCK)
    parts = [part for tensor, pair in zip(tensors, memory, strict=True) for part in _parts(tensor, *pair, most)]
    tasks = (partial(encode_apart, batch, noted) for batch in _batches(parts, most))
    groups = dict[TensorKey, list[EncodedGroup]]()
    with closing(run_ordered(tasks, threads)) as results:
        found = (group for batch in results for group in batch)
        for part, group in zip(parts, found, strict=True):
            groups.setdefault(part.target.key, []).append(group)
    return [_encoded(tensor, groups[tensor.key]) for tensor in tensors]


def _parts(tensor: Tensor, old: Bytes, new: Bytes, most: int) -> Iterator[PartInMemory]:
    """A tensor in runs of whole blocks of so many bytes at most."""
    if len(new) <= most:
        yield PartInMemory(tensor, 0, old, new)
        return
    for start in range(0, len(new), most):
        yield PartInMemory(tensor, start // DTYPES[tensor.dtype].carrier, old[start : start + most], new[start : start + most])


def _batches(parts: Sequence[PartInMemory], most: int) -> Iterator[list[PartInMemory]]:
    """Parts of one dtype that one call compares, in order."""

    def nbytes(k: int) -> int:
        return len(parts[k].new)

    for _, alike in groupby(range(len(parts)), lambda k: parts[k].target.dtype):
        for numbers in within(alike, nbytes, most):
            yield [parts[k] for k in numbers]


def _encoded(tensor: Tensor, groups: Sequence[EncodedGroup]) -> EncodedRow:
    """A tensor of which all groups are encoded."""
    first, *others = groups
    blocks, leaves, before, changed = first.blocks["sparse"], first.leaves, first.base_leaves, first.changed
    for group in others:
        blocks, leaves, before = blocks + group.blocks["sparse"], leaves + group.leaves, before + group.base_leaves
        changed += group.changed
    facts, digests = (tensor.name, tensor.dtype, tensor.shape), (tensor_digest(leaves), tensor_digest(before))
    if not changed:
        return EncodedRow(tensor, Entry(*facts, "same", tensor.dtype, (), None, 0, (), None, True, *digests), b"")
    payload = b"".join(blocks)
    sums = (*digests, xxhash.xxh3_64_digest(payload))
    return EncodedRow(
        tensor, Entry(*facts, "delta", tensor.dtype, (), "sparse", changed, tuple(map(len, blocks)), None, True, *sums), payload
    )

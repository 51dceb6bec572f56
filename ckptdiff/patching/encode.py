"""One tensor encoded against its base: groups of blocks, and the choice of a codec (spec sections 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import xxhash

from ckptdiff import kernels
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import CODECS
from ckptdiff.format.digests import BLOCK, block_count, leaves_of, tensor_digest
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes
from ckptdiff.format.entry import Entry
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.patching.adapt import adapt, read_range, units_per_group
from ckptdiff.patching.memory import MemoryFile

RAW_TRIAL_SHARE = 0.5
"""If ``context`` needs more than this share of the target's bytes, ``raw`` may be smaller and is tried too."""
CONTEXT_SHARE = 0.4
"""Up to this share of changed units, ``context`` needs about :data:`RAW_TRIAL_SHARE` of the bytes at most and is taken without a trial."""
SPARSE_TRIAL_CHANGES = 32
"""Up to so many changed units in a group, ``sparse`` may be smaller than ``context`` and is tried too."""


@dataclass(slots=True)
class EncodedBlocks:
    """A group of blocks of a target tensor, encoded against its base."""

    blocks: list[bytes]
    """The encoded form of each block."""
    changed: int
    """Number of units that differ from the base."""
    leaves: list[bytes]
    base_leaves: list[bytes]
    """Leaves (spec 3.2) of the target's blocks, and of the base's before it was adapted."""
    nbytes: int
    """Bytes of the target tensor that the blocks stand for."""


class TensorEncoder(Protocol):
    """Encodes blocks as :func:`encode_blocks` does, on the host or on a torch device."""

    def __call__(self, base: Tensor | None, target: Tensor, codec: str, first: int, stop: int) -> EncodedBlocks: ...


def encode_blocks(base: Tensor | None, target: Tensor, codec: str, first: int, stop: int) -> EncodedBlocks:
    """Encode units ``first`` to ``stop`` of a target tensor. Past its end there is only a longer base tensor, which is hashed."""
    dtype, width = DTYPES[target.dtype], row_width(target)
    read, old, new = _read(base, target, first, stop)
    encoded = EncodedBlocks([], 0, [], [], len(new))
    changes_by_block: Sequence[Changes | None] = [None] * block_count(len(new))
    if base is None:
        encoded.leaves = leaves_of(new)
    else:
        changes_by_block, encoded.base_leaves, encoded.leaves = kernels.changes.compared(old, new, dtype)
        if base.dtype != target.dtype or len(read) != len(old):
            encoded.base_leaves = leaves_of(read)
    for k, changes in enumerate(changes_by_block):
        i = k * BLOCK
        layout = BlockLayout(width, (first + i // dtype.carrier) % width) if width else WITHOUT_ROWS
        block, count = CODECS[codec].encode(old[i : i + BLOCK], new[i : i + BLOCK], dtype, layout, changes)
        encoded.blocks.append(block)
        encoded.changed += count
    return encoded


def _read(base: Tensor | None, target: Tensor, first: int, stop: int) -> tuple[Bytes, Bytes, Bytes]:
    """These units' bytes in the base, the same adapted to the target, and in the target; without a base the second are zeros.

    They may lie in scratch arrays, which the next call overwrites.
    """
    dtype = DTYPES[target.dtype]
    new = view_range(target, first * dtype.carrier, stop * dtype.carrier, "target")
    if base is None:
        return new, np.zeros(len(new), np.uint8), new
    width = DTYPES[base.dtype].carrier
    old = view_range(base, first * width, stop * width, "base")
    return old, adapt(old, base.dtype, target.dtype, len(new)), new


def view_range(tensor: Tensor, start: int, stop: int, name: str) -> Bytes:
    """Bytes of a tensor, which must not be written to: its own memory if that is on the host, else read into scratch ``name``."""
    if isinstance(tensor.source, MemoryFile):
        data = tensor.source.view(tensor.offset + start, max(min(stop, tensor.nbytes) - start, 0))
        if isinstance(data, np.ndarray):
            return data
    return read_range(tensor, start, stop, name)


def row_width(tensor: Tensor) -> int:
    """Units in a row of a tensor of two dimensions or more; 0 for other tensors, and where rows are not whole units."""
    if len(tensor.shape) < 2 or tensor.nbytes == 0:
        return 0
    units, rows = tensor.nbytes // DTYPES[tensor.dtype].carrier, math.prod(tensor.shape[:-1])
    return units // rows if units % rows == 0 else 0


def encode_trials(base: Tensor, target: Tensor, first: int, stop: int) -> dict[str, EncodedBlocks]:
    """Encode a group by ``context``, and by another codec if that may be smaller.

    Returns:
        Encoded blocks by codec, the smallest first.
    """
    trials = {"context": encode_blocks(base, target, "context", first, stop)}
    if trials["context"].changed <= SPARSE_TRIAL_CHANGES:
        trials["sparse"] = encode_blocks(base, target, "sparse", first, stop)
    elif sum(map(len, trials["context"].blocks)) > RAW_TRIAL_SHARE * trials["context"].nbytes:
        trials["raw"] = encode_blocks(base, target, "raw", first, stop)
    return dict(sorted(trials.items(), key=lambda trial: sum(map(len, trial[1].blocks))))


def choose_codec(base: Tensor, target: Tensor) -> str:
    """The codec for a tensor of several groups: ``context`` if few units of the first group changed, else the smaller in a sample."""
    units, group = target.nbytes // DTYPES[target.dtype].carrier, units_per_group(base.dtype, target.dtype)
    if units == 0:
        return "context"
    _, old, new = _read(base, target, 0, min(group, units))
    unit = DTYPES[target.dtype].unit
    if np.count_nonzero(old.view(unit) != new.view(unit)) <= CONTEXT_SHARE * (len(new) // unit.itemsize):
        return "context"
    sizes = {"context": 0, "raw": 0}
    for start in sorted({0, units // 2 // group * group, (units - 1) // group * group}):
        trials = encode_trials(base, target, start, min(start + group, units))
        if "raw" not in trials:
            return "context"
        for codec in sizes:
            sizes[codec] += sum(map(len, trials[codec].blocks))
    return min(sizes, key=lambda codec: sizes[codec])


@dataclass(slots=True)
class PendingTensor:
    """A target tensor of which some groups are encoded."""

    base: Tensor | None
    target: Tensor
    codec: str | None
    """None until the only group of a short tensor has been tried."""
    start: int = -1
    """Where its payload begins in the spool, in bytes; -1 before the first group."""
    blocks: list[int] = field(default_factory=list)
    """Size of each encoded block in bytes."""
    changed: int = 0
    """Number of changed units so far."""
    leaves: list[bytes] = field(default_factory=list)
    base_leaves: list[bytes] = field(default_factory=list)
    payload: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)
    """Digest of the payload so far."""

    def add(self, encoded: EncodedBlocks, spool: BinaryIO) -> None:
        """Append the next group; its blocks go to the spool."""
        if self.start < 0:
            self.start = spool.tell()
        for block in encoded.blocks:
            spool.write(block)
            self.payload.update(block)
            self.blocks.append(len(block))
        self.changed += encoded.changed
        self.leaves += encoded.leaves
        self.base_leaves += encoded.base_leaves

    def entry(self) -> Entry:
        """The table entry, once all groups are encoded."""
        base, target = self.base, self.target
        members: dict[str, Any] = {"name": target.name, "dtype": target.dtype, "shape": target.shape, "digest": tensor_digest(self.leaves)}
        if base is not None:
            members |= {"base_name": base.name, "base_dtype": base.dtype, "base_shape": base.shape}
            members |= {"base_digest": tensor_digest(self.base_leaves), "changed": self.changed}
            if not self.changed:
                return Entry(kind="same", **members)
        members |= {"codec": self.codec, "blocks": tuple(self.blocks), "payload_digest": self.payload.digest()}
        return Entry(kind="new" if base is None else "delta", **members)

"""One tensor coded against its base: groups of blocks, and the choice of a codec (spec sections 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import xxhash

from ckptdiff import kernels
from ckptdiff.checkpoint.reader import Tensor
from ckptdiff.codecs import CODECS
from ckptdiff.format.digests import BLOCK, block_count, leaves_of, tensor_digest
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes
from ckptdiff.format.entry import Entry
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.patching.adapt import adapt, group_units, read_range
from ckptdiff.patching.memory import MemoryFile

DENSE = 0.5
"""Where ``context`` needs more than this share of the target's bytes ``raw`` may be smaller, and a sample decides."""
SPARSE = 0.4
"""Up to this share of changed units ``context`` is taken untried: it needs about :data:`DENSE` at most, less for wide units."""
FEW = 32
"""Up to so many changed units ``sparse`` may be smaller than ``context``."""


@dataclass(slots=True)
class EncodedBlocks:
    """One group of blocks of a target tensor and its base: coded forms, and leaves of both."""

    blocks: list[bytes]
    changed: int
    leaves: list[bytes]
    base_leaves: list[bytes]
    nbytes: int


class TensorEncoder(Protocol):
    """:func:`code`, or what does the same on a device."""

    def __call__(self, base: Tensor | None, target: Tensor, codec: str, first: int, stop: int) -> EncodedBlocks: ...


def code(base: Tensor | None, target: Tensor, codec: str, first: int, stop: int) -> EncodedBlocks:
    """Code units ``first`` to ``stop`` of a target tensor; units past its end only hash the base."""
    dtype, width = DTYPES[target.dtype], row_width(target)
    read, old, new = _read(base, target, first, stop)
    coded = EncodedBlocks([], 0, [], [], len(new))
    found: Sequence[Changes | None] = [None] * block_count(len(new))
    if base is None:
        coded.leaves = leaves_of(new)
    else:
        found, coded.base_leaves, coded.leaves = kernels.changes.compared(old, new, dtype)
        if base.dtype != target.dtype or len(read) != len(old):
            coded.base_leaves = leaves_of(read)
    for k, changes in enumerate(found):
        i = k * BLOCK
        layout = BlockLayout(width, (first + i // dtype.carrier) % width) if width else WITHOUT_ROWS
        block, count = CODECS[codec].encode(old[i : i + BLOCK], new[i : i + BLOCK], dtype, layout, changes)
        coded.blocks.append(block)
        coded.changed += count
    return coded


def _read(base: Tensor | None, target: Tensor, first: int, stop: int) -> tuple[Bytes, Bytes, Bytes]:
    """The base's bytes of these units, the same adapted to the target, and the target's; scratch."""
    dtype = DTYPES[target.dtype]
    new = look(target, first * dtype.carrier, stop * dtype.carrier, "target")
    if base is None:
        return new, np.zeros(len(new), np.uint8), new
    width = DTYPES[base.dtype].carrier
    found = look(base, first * width, stop * width, "base")
    return found, adapt(found, base.dtype, target.dtype, len(new)), new


def look(tensor: Tensor, start: int, stop: int, name: str) -> Bytes:
    """Bytes of a tensor, to read only: where they lie, if they are in memory."""
    if isinstance(tensor.source, MemoryFile):
        data = tensor.source.view(tensor.offset + start, max(min(stop, tensor.nbytes) - start, 0))
        if isinstance(data, np.ndarray):
            return data
    return read_range(tensor, start, stop, name)


def row_width(tensor: Tensor) -> int:
    """Units in a row of a tensor of two dimensions or more, 0 if it has no whole rows."""
    if len(tensor.shape) < 2 or tensor.nbytes == 0:
        return 0
    units, rows = tensor.nbytes // DTYPES[tensor.dtype].carrier, math.prod(tensor.shape[:-1])
    return units // rows if units % rows == 0 else 0


def smallest(base: Tensor, target: Tensor, first: int, stop: int) -> dict[str, EncodedBlocks]:
    """``context``, and another codec where that may be smaller: the smallest first."""
    trials = {"context": code(base, target, "context", first, stop)}
    if trials["context"].changed <= FEW:
        trials["sparse"] = code(base, target, "sparse", first, stop)
    elif sum(map(len, trials["context"].blocks)) > DENSE * trials["context"].nbytes:
        trials["raw"] = code(base, target, "raw", first, stop)
    return dict(sorted(trials.items(), key=lambda trial: sum(map(len, trial[1].blocks))))


def choose_codec(base: Tensor, target: Tensor) -> str:
    """The codec of a tensor of several groups: by the share of units that changed in the first, or by coding up to three."""
    units, group = target.nbytes // DTYPES[target.dtype].carrier, group_units(base.dtype, target.dtype)
    if units == 0:
        return "context"
    _, old, new = _read(base, target, 0, min(group, units))
    unit = DTYPES[target.dtype].unit
    if np.count_nonzero(old.view(unit) != new.view(unit)) <= SPARSE * (len(new) // unit.itemsize):
        return "context"
    sizes = {"context": 0, "raw": 0}
    for start in sorted({0, units // 2 // group * group, (units - 1) // group * group}):
        trials = smallest(base, target, start, min(start + group, units))
        if "raw" not in trials:
            return "context"
        for codec in sizes:
            sizes[codec] += sum(map(len, trials[codec].blocks))
    return min(sizes, key=lambda codec: sizes[codec])


@dataclass(slots=True)
class OpenTensor:
    """A tensor under way: what its groups gave so far, and where its payload begins in the spool."""

    base: Tensor | None
    target: Tensor
    codec: str | None
    start: int = -1
    blocks: list[int] = field(default_factory=list)
    changed: int = 0
    leaves: list[bytes] = field(default_factory=list)
    base_leaves: list[bytes] = field(default_factory=list)
    payload: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)

    def add(self, coded: EncodedBlocks, spool: BinaryIO) -> None:
        if self.start < 0:
            self.start = spool.tell()
        for block in coded.blocks:
            spool.write(block)
            self.payload.update(block)
            self.blocks.append(len(block))
        self.changed += coded.changed
        self.leaves += coded.leaves
        self.base_leaves += coded.base_leaves

    def entry(self) -> Entry:
        base, target = self.base, self.target
        found: dict[str, Any] = {"name": target.name, "dtype": target.dtype, "shape": target.shape, "digest": tensor_digest(self.leaves)}
        if base is not None:
            found |= {"base_name": base.name, "base_dtype": base.dtype, "base_shape": base.shape}
            found |= {"base_digest": tensor_digest(self.base_leaves), "changed": self.changed}
            if not self.changed:
                return Entry(kind="same", **found)
        found |= {"codec": self.codec, "blocks": tuple(self.blocks), "payload_digest": self.payload.digest()}
        return Entry(kind="new" if base is None else "delta", **found)

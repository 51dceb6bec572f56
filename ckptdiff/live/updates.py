"""Changes of tensors in memory: which units change, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptdiff import device
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, Units
from ckptdiff.lazy import torch

BYTES_PER_UPDATE_JOB = 8 * BLOCK
"""Bytes of a tensor that one job updates. Threads wait for Python's lock between jobs, longer than short jobs would take."""


@dataclass(slots=True)
class RangeUpdate:
    """Changes of a range of a tensor's bytes.

    On the host a range is whole blocks, of about :data:`BYTES_PER_UPDATE_JOB` at most, and its arrays are numpy's. On another device it is
    the whole tensor, and they are torch's.
    """

    start: int
    stop: int
    """The range, in bytes of the tensor."""
    positions: Any
    """The units that change, counted from ``start``; None if every unit of the range has a distance."""
    zigzags: Any
    """Zigzag of their ulp distances."""

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return (0 if self.positions is None else self.positions.nbytes) + self.zigzags.nbytes


@dataclass(slots=True)
class TensorUpdate:
    """The changes of one tensor in memory, if it has any."""

    name: str
    dtype: Dtype
    flat: Bytes | torch.Tensor
    """The tensor's memory as bytes."""
    parts: list[RangeUpdate]
    before: list[bytes]
    """Leaves of the tensor without the patch."""
    digest: bytes
    """Tensor digest with the patch."""


def merge_blocks(start: int, stop: int, blocks: Sequence[Changes], dtype: Dtype) -> RangeUpdate | None:
    """The update of bytes ``start`` to ``stop``, from the changes of its blocks."""
    if len(blocks) == 1:  # as most tensors have
        return range_update(start, stop, blocks[0][0].copy(), blocks[0][1].copy(), dtype)
    zigzags = np.concatenate([zigzags for _, zigzags in blocks])
    positions, done = np.empty(len(zigzags), np.int32), 0
    for k, (in_block, _) in enumerate(blocks):
        np.add(in_block, np.int32(k * (BLOCK // dtype.carrier)), out=positions[done : done + len(in_block)])
        done += len(in_block)
    return range_update(start, stop, positions, zigzags, dtype)


def range_update(start: int, stop: int, positions: Units, zigzags: Units, dtype: Dtype) -> RangeUpdate | None:
    """The update of bytes ``start`` to ``stop``, in the smaller of its two forms; None if nothing changes."""
    if len(positions) * 4 <= stop - start:
        return RangeUpdate(start, stop, positions, zigzags) if len(positions) else None
    every = np.zeros((stop - start) // dtype.carrier, dtype.unit)
    every[positions] = zigzags
    return RangeUpdate(start, stop, None, every)


def on_device(flat: torch.Tensor, parts: Sequence[RangeUpdate], dtype: Dtype) -> RangeUpdate:
    """Put the updates of ranges on the host together to one of the whole tensor on its device."""
    units, total = len(flat) // dtype.carrier, sum(len(part.zigzags) for part in parts)
    wide = np.int32 if units < 1 << 31 else np.int64
    dense = any(part.positions is None for part in parts) or total * (np.dtype(wide).itemsize + dtype.carrier) > len(flat)
    every = torch.zeros(units if dense else total, dtype=device.ops.SIGNED_DTYPES[dtype.carrier], device=flat.device)
    positions = None if dense else torch.empty(total, dtype=torch.int32 if wide is np.int32 else torch.int64, device=flat.device)
    done = 0
    for part in parts:
        first, zigzags = part.start // dtype.carrier, torch.from_numpy(part.zigzags.view(f"i{dtype.carrier}")).to(flat.device)
        if positions is not None:
            positions[done : done + len(zigzags)] = torch.from_numpy(part.positions.astype(wide) + wide(first)).to(flat.device)
            every[done : done + len(zigzags)] = zigzags
        elif part.positions is None:
            every[first : first + len(zigzags)] = zigzags
        else:
            every[torch.from_numpy(part.positions.astype(np.int64) + first).to(flat.device)] = zigzags
        done += len(zigzags)
    return RangeUpdate(0, len(flat), positions, every)

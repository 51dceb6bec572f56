"""Places in a served model's memory that a loader fills: compared, hashed, and moved by ulp distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from ckptdiff import device, kernels
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype, Units
from ckptdiff.lazy import torch
from ckptdiff.live.changes import Positions
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.live.writing import MemoryRange
from ckptdiff.patching.torch_dtypes import flat_bytes, memory_range

SAMPLED = 16
"""One block of so many is hashed where digests are sampled; the first block of each place always is."""


class Part(NamedTuple):
    """A box of a checkpoint's tensor, in units."""

    shape: tuple[int, ...]
    """Of the whole tensor, whose dimensions may be put together, or one be added."""
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.sizes == self.shape

    def take(self, units: Units) -> Units:
        """The units of the box, given those of the whole tensor."""
        box = tuple(slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))
        return np.asarray(units.reshape(self.shape)[box].reshape(-1))

    def select(self, positions: Positions, zigzags: Units) -> tuple[Positions, Units]:
        """Of changes of the whole tensor those of the box, at their positions in it. Both rise."""
        if self.is_whole:
            return positions, zigzags
        if len(self.shape) == 1:
            first, last = np.searchsorted(positions, (self.starts[0], self.starts[0] + self.sizes[0]))
            return positions[first:last] - self.starts[0], zigzags[first:last]
        rest, inside, scale = positions, np.ones(len(positions), np.bool_), 1
        found = np.zeros(len(positions), np.int64)
        for length, start, size in zip(self.shape[::-1], self.starts[::-1], self.sizes[::-1], strict=True):
            rest, at = np.divmod(rest, length)
            inside &= (at >= start) & (at < start + size)
            found += (at - start) * scale
            scale *= size
        return found[inside], zigzags[inside]


def part_of(source: torch.Tensor, address: int, shape: tuple[int, ...], width: int) -> Part | None:
    """The part of a carrier that a tensor is a view of, in units; None if it is none, or no box.

    Args:
        source: what a loader copies.
        address: where the carrier's memory begins.
        shape: of the carrier, in torch's elements.
        width: bytes of a unit.
    """
    per_element, numel, offset = source.element_size() // width, math.prod(shape), int(source.storage_offset())
    if source.untyped_storage().data_ptr() != address or not source.numel():
        return None
    if source.is_contiguous():
        return Part((numel * per_element,), (offset * per_element,), (source.numel() * per_element,))
    strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    starts = [offset // stride % length for stride, length in zip(strides, shape, strict=True)]
    sizes = tuple(source.shape)
    if len(sizes) != len(shape) or any(size > 1 and own != step for size, own, step in zip(sizes, source.stride(), strides, strict=True)):
        return None
    if any(start + size > length for start, size, length in zip(starts, sizes, shape, strict=True)):
        return None
    return Part((*shape, per_element), (*starts, 0), (*sizes, per_element))


@dataclass(slots=True)
class Place:
    """A part of a model's memory that one copy of a loader fills."""

    name: str
    """The tensor of the checkpoint that it is a part of."""
    dtype: Dtype
    view: torch.Tensor
    """The part."""
    whole: bool
    """Whether it holds the whole tensor of the checkpoint."""
    part: Part | None = None
    """Which part of the tensor it holds, in the same order; None if that is not known."""
    digest: bytes = b""
    """Tensor digest (spec 3.2) of its bytes, or of a sample of its blocks."""

    @property
    def key(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """What tells it from other places: address, shape and strides."""
        return key_of(self.view)

    @property
    def memory(self) -> MemoryRange:
        """The memory that it lies in: its own if it is contiguous, else the whole storage."""
        if self.view.is_contiguous():
            return memory_range(self.flat())
        storage = self.view.untyped_storage()
        return str(self.view.device), storage.data_ptr(), storage.nbytes()

    def flat(self) -> Bytes | torch.Tensor:
        """Its bytes in the order of its elements; of a part that is not contiguous, a copy."""
        return flat_bytes(self.view.detach().contiguous(), self.name)

    def blocks(self, sampled: bool) -> list[Bytes | torch.Tensor]:
        """The blocks that are hashed."""
        flat = self.flat()
        if not sampled:
            return [flat]
        return [flat[start : start + BLOCK] for start in range(0, len(flat), SAMPLED * BLOCK)]

    def move(self, zigzags: torch.Tensor, back: bool) -> list[bytes]:
        """Move each unit by the distance whose zigzag stands in its place.

        Args:
            zigzags: of the place's dtype and shape, on any device; only their bits count.
            back: take the distances back instead.

        Returns:
            The leaves of the result, where they cost nothing: on the host.
        """
        moved = flat_bytes(zigzags.detach().to(self.view.device).contiguous(), self.name)
        flat = self.flat()
        if isinstance(flat, np.ndarray):
            leaves = kernels.moves.move_run(flat, None, cast(Bytes, moved).view(self.dtype.unit), self.dtype, back, True)
        else:
            distances = device.ops.units_of(cast("torch.Tensor", moved), self.dtype)
            device.ops.apply_changes(device.ops.units_of(flat, self.dtype), None, distances, self.dtype, back)
            leaves = []
        if not self.view.is_contiguous():
            result = flat if isinstance(flat, torch.Tensor) else torch.from_numpy(flat)
            self.view.copy_(result.view(self.view.dtype).view(self.view.shape))
        return leaves


def place_of(name: str, dtype: str, view: torch.Tensor, whole: bool, part: Part | None = None) -> Place:
    """The place that a view of a model's memory is."""
    return Place(name, DTYPES[dtype], view.detach(), whole, part)


def key_of(view: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """See :attr:`Place.key`."""
    return view.data_ptr(), tuple(view.shape), tuple(view.stride())


def leaves_of_places(places: Sequence[Place], sampled: bool, threads: int) -> list[list[bytes]]:
    """The leaves of places as they are now; with ``sampled``, of a sample of their blocks.

    A part that is not contiguous is copied to be hashed: one at a time.
    """
    contiguous = [place for place in places if place.view.is_contiguous()]
    blocks = [place.blocks(sampled) for place in contiguous]
    found = iter(leaves_in_memory([block for row in blocks for block in row], threads))
    known = {id(place): [leaf for _ in row for leaf in next(found)] for place, row in zip(contiguous, blocks, strict=True)}
    return [
        known[id(place)] if id(place) in known else [leaf for row in leaves_in_memory(place.blocks(sampled), 1) for leaf in row]
        for place in places
    ]


def differs(view: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether the bits of a part of a model are others than those of a tensor of its dtype and shape."""
    ours, theirs = (flat_bytes(tensor.detach().contiguous(), "the model") for tensor in (view, source.to(view.device)))
    if isinstance(ours, np.ndarray):
        return not np.array_equal(ours, np.asarray(theirs))
    return not torch.equal(ours, cast("torch.Tensor", theirs))

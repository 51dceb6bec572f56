"""Groups of blocks compared on a torch device, bit for bit as :mod:`ckptdiff.patching.compare_on_host` does."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.device.leaves import leaf_digests
from ckptdiff.device.ops import find_changes, units_of, zigzag
from ckptdiff.format.digests import BLOCK, leaves_of
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes, Dtype, Units
from ckptdiff.patching.compare_on_host import ComparedGroup, compare_on_host

BLOCKS_FROM_HOST = 4
BLOCKS_ON_DEVICE = 32
"""Blocks compared at once, of tensors that come from the host and of tensors on the device. Starting a kernel takes as
long as comparing 1 MB, so that fewer blocks would be slower."""


class _ThreadState(threading.local):
    """The stream of a thread, and its pinned buffers by name, which a device reads while the next block is read from the disk."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.pinned: dict[str, torch.Tensor] = {}


class DeviceComparer:
    """A :class:`~ckptdiff.patching.compare_on_host.Comparer` on a torch device.

    New and empty tensors, those with an adapted base, and what is coded by ``raw`` are left to the host.

    Args:
        device: where to compare.
        tensors: all tensors of base and target if they are in memory. Leaves of those on the device are computed at once here.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor] = ()) -> None:
        self.device, self._thread = device, _ThreadState()
        self.blocks = BLOCKS_FROM_HOST
        resident = [(tensor, memory) for tensor in tensors if (memory := self._device_memory(tensor)) is not None]
        if resident:
            self.blocks = BLOCKS_ON_DEVICE
        leaves = leaf_digests([memory for _, memory in resident])
        self._leaves = {(id(tensor.source), tensor.offset): row for (tensor, _), row in zip(resident, leaves, strict=True) if tensor.nbytes}

    def __call__(self, base: AdaptedBase | None, target: Tensor, first: int, stop: int, codec: str | None) -> ComparedGroup:
        """Compare a group."""
        tensor = base.whole if base is not None else None
        if tensor is None or codec == "raw":
            return compare_on_host(base, target, first, stop)
        dtype = DTYPES[target.dtype]
        start, end = first * dtype.carrier, min(stop * dtype.carrier, target.nbytes)
        with self._stream():
            (old, host_old), (new, host_new) = self._bytes(tensor, start, end, "base"), self._bytes(target, start, end, "target")
            if host_old is None and codec != "sparse":
                host_old = self._copy_to_host(old, "base")
            changed, distances = find_changes(units_of(old, dtype), units_of(new, dtype), dtype)  # waits for the stream
            positions, zigzags = changed.int().cpu().numpy(), zigzag(distances).cpu().numpy().view(dtype.unit)
        changes = _by_block(positions, zigzags, end - start, dtype)
        base_leaves, leaves = self._leaves_of(tensor, host_old, start, end), self._leaves_of(target, host_new, start, end)
        return ComparedGroup(end - start, changes, base_leaves, leaves, host_old, host_new)

    def _device_memory(self, tensor: Tensor) -> torch.Tensor | None:
        """The memory of a tensor that is on the device; None for any other tensor."""
        data = tensor.memory
        return data if isinstance(data, torch.Tensor) and data.device == self.device else None

    def _bytes(self, tensor: Tensor, start: int, stop: int, name: str) -> tuple[torch.Tensor, Bytes | None]:
        """Bytes of a tensor on the device; and on the host, unless the tensor is on the device already."""
        memory = self._device_memory(tensor)
        if memory is not None:
            return memory[start:stop], None
        if self.device.type == "cpu":
            data = tensor.view(start, stop, name)
            return torch.from_numpy(data), data
        buffer = self._pinned(name, stop - start)
        tensor.readinto(start, buffer.numpy())
        return buffer.to(self.device, non_blocking=True), buffer.numpy()

    def _copy_to_host(self, data: torch.Tensor, name: str) -> Bytes:
        """Start a copy of bytes on the device; it is complete once this thread's stream was waited for."""
        return self._pinned(name, len(data)).copy_(data, non_blocking=True).numpy()

    def _pinned(self, name: str, size: int) -> torch.Tensor:
        """A buffer of this thread on the host, which the device reads and writes while the host goes on."""
        buffer = self._thread.pinned.get(name)
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            self._thread.pinned[name] = buffer
        return buffer[:size]

    def _leaves_of(self, tensor: Tensor, host: Bytes | None, start: int, stop: int) -> list[bytes]:
        """Leaves of bytes ``start`` to ``stop``, which are ``host`` on the host unless the leaves are known already."""
        known = self._leaves.get((id(tensor.source), tensor.offset)) if tensor.nbytes else []
        if known is not None:
            return known[start // BLOCK : -(-stop // BLOCK)]
        assert host is not None
        return leaves_of(host)

    def _stream(self) -> Any:
        """Give each thread a stream of its own, so that copies and kernels of several threads overlap."""
        if self.device.type != "cuda":
            return nullcontext()
        if self._thread.stream is None:
            self._thread.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._thread.stream)


def _by_block(positions: Units, zigzags: Units, size: int, dtype: Dtype) -> list[Changes]:
    """The changes of each block of ``size`` bytes, given those of all of them."""
    units = BLOCK // dtype.carrier
    ends = np.searchsorted(positions, np.arange(0, size + BLOCK, BLOCK) // dtype.carrier).tolist()
    return [(positions[i:j] - np.int32(k * units), zigzags[i:j]) for k, (i, j) in enumerate(pairwise(ends))]

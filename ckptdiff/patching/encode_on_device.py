"""Groups of blocks compared on a torch device and encoded on the host, bit for bit as :mod:`ckptdiff.patching.encode` does."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import context, sparse
from ckptdiff.device.leaves import leaf_digests
from ckptdiff.device.ops import find_changes, units_of, zigzag
from ckptdiff.format.digests import BLOCK, leaves_of
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.patching.encode import EncodedBlocks, encode_blocks, row_width, view_range
from ckptdiff.patching.memory import MemoryFile

GROUPS_FROM_HOST = 4
GROUPS_ON_DEVICE = 32
"""Groups compared at once, of tensors that come from the host and of tensors on the device. Starting a kernel takes as
long as comparing 1 MB, so that fewer groups would be slower."""


class _ThreadState(threading.local):
    """The stream of a thread, and its pinned buffers by name, which a device reads while the next block is read from the disk."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.pinned: dict[str, torch.Tensor] = {}


class DeviceEncoder:
    """A :class:`~ckptdiff.patching.encode.TensorEncoder` that compares on a torch device.

    New and empty tensors, those with an adapted base, and the codec ``raw`` are left to the host.

    Args:
        device: where to compare.
        tensors: all tensors of base and target if they are in memory. Leaves of those on the device are computed at once here.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor] = ()) -> None:
        self.device, self._thread = device, _ThreadState()
        self.groups = GROUPS_FROM_HOST
        resident = [(tensor, memory) for tensor in tensors if (memory := self._device_memory(tensor)) is not None]
        if resident:
            self.groups = GROUPS_ON_DEVICE
        leaves = leaf_digests([memory for _, memory in resident])
        self._leaves = {(id(tensor.source), tensor.offset): row for (tensor, _), row in zip(resident, leaves, strict=True) if tensor.nbytes}

    def __call__(self, base: Tensor | None, target: Tensor, codec: str, first: int, stop: int) -> EncodedBlocks:
        if base is None or codec == "raw" or not target.nbytes or (base.dtype, base.shape) != (target.dtype, target.shape):
            return encode_blocks(base, target, codec, first, stop)
        dtype = DTYPES[target.dtype]
        start, stop = first * dtype.carrier, min(stop * dtype.carrier, target.nbytes)
        with self._stream():
            (old, host_old), (new, host_new) = self._bytes(base, start, stop, "base"), self._bytes(target, start, stop, "target")
            if host_old is None and codec == "context":
                host_old = self._copy_to_host(old, "base")
            changed, distances = find_changes(units_of(old, dtype), units_of(new, dtype), dtype)  # waits for the stream
            positions, zigzags = changed.int().cpu().numpy(), zigzag(distances).cpu().numpy().view(dtype.unit)
        blocks = self._encode(host_old, positions, zigzags, target, codec, first, stop - start)
        base_leaves, leaves = self._leaves_of(base, host_old, start, stop), self._leaves_of(target, host_new, start, stop)
        return EncodedBlocks(blocks, len(positions), leaves, base_leaves, stop - start)

    def _encode(self, old: Bytes | None, positions: Any, zigzags: Any, target: Tensor, codec: str, first: int, nbytes: int) -> list[bytes]:
        """Encode each block, given the changes of all of them, with positions relative to unit ``first``."""
        dtype, width, encoded = DTYPES[target.dtype], row_width(target), []
        per_block = BLOCK // dtype.carrier
        bounds = np.searchsorted(positions, np.arange(0, nbytes // dtype.carrier + per_block, per_block))
        for k in range(-(-nbytes // BLOCK)):
            block = slice(bounds[k], bounds[k + 1])
            in_block = positions[block] - np.int32(k * per_block)
            if codec == "sparse" or old is None:
                encoded.append(sparse.pack(in_block, zigzags[block], dtype))
            else:
                layout = BlockLayout(width, (first + k * per_block) % width) if width else WITHOUT_ROWS
                encoded.append(context.pack(old[k * BLOCK : (k + 1) * BLOCK], in_block, zigzags[block], dtype, layout))
        return encoded

    def _device_memory(self, tensor: Tensor) -> torch.Tensor | None:
        """The memory of a tensor that is on the device; None for any other tensor."""
        if not isinstance(tensor.source, MemoryFile):
            return None
        data = tensor.source.view(tensor.offset, tensor.nbytes)
        return data if isinstance(data, torch.Tensor) and data.device == self.device else None

    def _bytes(self, tensor: Tensor, start: int, stop: int, name: str) -> tuple[torch.Tensor, Bytes | None]:
        """Bytes of a tensor on the device; and on the host, unless the tensor is on the device already."""
        memory = self._device_memory(tensor)
        if memory is not None:
            return memory[start:stop], None
        if self.device.type == "cpu":
            data = view_range(tensor, start, stop, name)
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

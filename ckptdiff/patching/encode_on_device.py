"""Groups of blocks compared on a torch device and coded on the host: what :func:`ckptdiff.patching.encode.encode_blocks` gives, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from ckptdiff.checkpoint.reader import Tensor
from ckptdiff.codecs import context, sparse
from ckptdiff.device.leaves import leaf_digests
from ckptdiff.device.ops import changes as find_changes
from ckptdiff.device.ops import units_of, zigzag
from ckptdiff.format.digests import BLOCK, leaves_of
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.patching.encode import EncodedBlocks, encode_blocks, view_range, row_width
from ckptdiff.patching.memory import MemoryFile

GROUPS_FROM_HOST, GROUPS_ON_DEVICE = 4, 32
"""Groups compared at once, from the host's memory and in the device's: many, as starting a kernel takes as long as comparing 1 MB."""


class _ThreadState(threading.local):
    """A thread's stream, and its pinned buffers, which a device reads while the next block is read from the disk."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.pinned: dict[str, torch.Tensor] = {}


class DeviceEncoder:
    """A :class:`~ckptdiff.patching.encode.TensorEncoder` on a device. Adapted bases, new and empty tensors and ``raw`` go to the host's."""

    def __init__(self, device: torch.device, tensors: Iterable[Tensor] = ()) -> None:
        self.device, self._mine = device, _ThreadState()
        self.groups = GROUPS_FROM_HOST
        there = [tensor for tensor in tensors if self._there(tensor) is not None]
        if there:
            self.groups = GROUPS_ON_DEVICE
        leaves = leaf_digests([flat for tensor in there if (flat := self._there(tensor)) is not None])
        self._leaves = {(id(tensor.source), tensor.offset): row for tensor, row in zip(there, leaves, strict=True) if tensor.nbytes}

    def __call__(self, base: Tensor | None, target: Tensor, codec: str, first: int, stop: int) -> EncodedBlocks:
        if base is None or codec == "raw" or not target.nbytes or (base.dtype, base.shape) != (target.dtype, target.shape):
            return encode_blocks(base, target, codec, first, stop)
        dtype = DTYPES[target.dtype]
        start, stop = first * dtype.carrier, min(stop * dtype.carrier, target.nbytes)
        with self._stream():
            (old, host_old), (new, host_new) = self._bytes(base, start, stop, "base"), self._bytes(target, start, stop, "target")
            if host_old is None and codec == "context":
                host_old = self._copied(old, "base")
            positions, distances = find_changes(units_of(old, dtype), units_of(new, dtype), dtype)  # waits for the stream
            where, zigzags = positions.int().cpu().numpy(), zigzag(distances).cpu().numpy().view(dtype.unit)
        coded = self._code(host_old, where, zigzags, target, codec, first, stop - start)
        base_leaves, leaves = self._leaves_of(base, host_old, start, stop), self._leaves_of(target, host_new, start, stop)
        return EncodedBlocks(coded, len(where), leaves, base_leaves, stop - start)

    def _code(self, old: Bytes | None, where: Any, zigzags: Any, target: Tensor, codec: str, first: int, nbytes: int) -> list[bytes]:
        """The coded blocks, from changes of all of them."""
        dtype, width, coded = DTYPES[target.dtype], row_width(target), []
        per_block = BLOCK // dtype.carrier
        bounds = np.searchsorted(where, np.arange(0, nbytes // dtype.carrier + per_block, per_block))
        for k in range(-(-nbytes // BLOCK)):
            here = slice(bounds[k], bounds[k + 1])
            positions = where[here] - np.int32(k * per_block)
            if codec == "sparse" or old is None:
                coded.append(sparse.pack(positions, zigzags[here], dtype))
            else:
                layout = BlockLayout(width, (first + k * per_block) % width) if width else WITHOUT_ROWS
                coded.append(context.pack(old[k * BLOCK : (k + 1) * BLOCK], positions, zigzags[here], dtype, layout))
        return coded

    def _there(self, tensor: Tensor) -> torch.Tensor | None:
        """The memory of a tensor that lies on the device."""
        if not isinstance(tensor.source, MemoryFile):
            return None
        data = tensor.source.view(tensor.offset, tensor.nbytes)
        return data if isinstance(data, torch.Tensor) and data.device == self.device else None

    def _bytes(self, tensor: Tensor, start: int, stop: int, name: str) -> tuple[torch.Tensor, Bytes | None]:
        """Bytes on the device, and on the host if they were read there."""
        there = self._there(tensor)
        if there is not None:
            return there[start:stop], None
        if self.device.type == "cpu":
            data = view_range(tensor, start, stop, name)
            return torch.from_numpy(data), data
        buffer = self._pinned(name, stop - start)
        tensor.readinto(start, buffer.numpy())
        return buffer.to(self.device, non_blocking=True), buffer.numpy()

    def _copied(self, there: torch.Tensor, name: str) -> Bytes:
        """Bytes of the device, which are on the host once this thread's stream was waited for."""
        return self._pinned(name, len(there)).copy_(there, non_blocking=True).numpy()

    def _pinned(self, name: str, size: int) -> torch.Tensor:
        """A buffer of this thread, which the device reads and writes while the host goes on."""
        buffer = self._mine.pinned.get(name)
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            self._mine.pinned[name] = buffer
        return buffer[:size]

    def _leaves_of(self, tensor: Tensor, host: Bytes | None, start: int, stop: int) -> list[bytes]:
        known = self._leaves.get((id(tensor.source), tensor.offset)) if tensor.nbytes else []
        if known is not None:
            return known[start // BLOCK : -(-stop // BLOCK)]
        assert host is not None
        return leaves_of(host)

    def _stream(self) -> Any:
        """Each thread's work goes to a stream of its own, so that copies and kernels of several overlap."""
        if self.device.type != "cuda":
            return nullcontext()
        if self._mine.stream is None:
            self._mine.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._mine.stream)

"""Folders of torch.distributed.checkpoint (DCP), which FSDP and Megatron write: read as one safetensors file that does not exist.

The file has the tensors of the model as the safetensors library would write them: by dtype, and by name. Its bytes are read out of the
chunks that the ranks wrote, range by range.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ckptdiff.checkpoint.contents import WeightFile
from ckptdiff.checkpoint.dcp_items import Data, locate
from ckptdiff.checkpoint.dcp_metadata import METADATA_NAME, Chunk, StoredTensor, read_state
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format import safe_paths
from ckptdiff.format.dtypes import DTYPE_ORDER, Bytes
from ckptdiff.format.safetensors import predicted_header, read_header
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import LocalFile

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_SCOPE = "model"
"""Path and scope of the file that stands for the folder."""
MAX_STRIDED = 1 << 28
"""Bytes of a chunk whose elements do not lie in order: it is read whole."""


def open_dcp(folder: Path) -> tuple[WeightFile, list[str]]:
    """Open the weights of a DCP folder; also gives the names of the entries that are left out: optimizer state, and what is no tensor.

    Raises:
        CheckpointError: the metadata is broken, a file is missing or too short, or there is no tensor that safetensors can hold.
    """
    state = read_state(folder)
    tensors = sorted(state.tensors, key=lambda tensor: (DTYPE_ORDER.index(tensor.dtype), tensor.name))
    parts = {METADATA_NAME: LocalFile(folder / METADATA_NAME)}
    try:
        for tensor in tensors:
            for chunk in tensor.chunks:
                _check_place(folder, tensor, chunk, parts)
        file = DcpFile(folder, tensors, parts)
        return WeightFile(WEIGHTS_NAME, WEIGHTS_SCOPE, file, read_header(file)), state.left_out
    except (ValueError, CheckpointError) as error:
        for part in parts.values():
            part.close()
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / METADATA_NAME}: its tensors are not those of a safetensors file: {error}") from None


def _check_place(folder: Path, tensor: StoredTensor, chunk: Chunk, parts: dict[str, LocalFile]) -> None:
    """Open the file of a chunk; raises CheckpointError if it does not exist, or ends before the chunk does."""
    where = f"{folder / METADATA_NAME}: {cut(tensor.name)}"
    if chunk.path not in parts:
        reason = safe_paths.unsafe_reason(chunk.path)
        if reason:
            raise CheckpointError(f"{where}: lies in a file whose path {reason}: {cut(chunk.path)}")
        parts[chunk.path] = LocalFile(folder / chunk.path)
    size = parts[chunk.path].size
    if chunk.start + chunk.length > size:
        raise CheckpointError(
            f"{where}: its chunk at {chunk.offsets} ends at byte {chunk.start + chunk.length:,} of {chunk.path}, which has {size:,}: "
            "truncated? fetch it again"
        )


def shape_in_file(tensor: StoredTensor) -> tuple[int, ...]:
    """The shape in elements of the safetensors dtype: an element of torch's F4 type is two of these."""
    if tensor.dtype != "F4":
        return tensor.shape
    return (*tensor.shape[:-1], 2 * tensor.shape[-1]) if tensor.shape else (2,)


class DcpFile:
    """A :class:`~ckptdiff.io.source.WeightSource`: a header, and tensors read from their chunks.

    Args:
        folder: where the DCP files lie.
        tensors: in the order in which they lie in the file.
        parts: the open files of the folder, by path.
    """

    def __init__(self, folder: Path, tensors: Sequence[StoredTensor], parts: dict[str, LocalFile]) -> None:
        self.name, self.path, self.tensors, self.parts = str(folder), folder, tensors, parts
        raw = predicted_header((t.name, t.dtype, shape_in_file(t), t.nbytes) for t in tensors)
        self.head = len(raw).to_bytes(8, "little") + raw
        self.begins = list(accumulate((tensor.nbytes for tensor in tensors), initial=len(self.head)))
        self.size = self.begins[-1]
        self._found, self._lock = dict[Chunk, Data](), threading.Lock()
        self._strided: tuple[Chunk | None, Bytes] = None, np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is what it was made of: another process opens the same files, as of :class:`LocalFile`."""
        return DcpFile, (self.path, self.tensors, self.parts)

    @property
    def stamp(self) -> list[Any]:
        """As of :class:`LocalFile`: of each file its path and its stamp."""
        return [[path, *file.stamp] for path, file in sorted(self.parts.items())]

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises CheckpointError if the file ends before, or a chunk cannot be read."""
        view = np.frombuffer(out, np.uint8) if isinstance(out, memoryview) else out
        if offset + len(view) > self.size:
            raise CheckpointError(f"{self.name}: ends at byte {self.size}, expected {offset + len(view)} or more")
        count = min(max(len(self.head) - offset, 0), len(view))
        view[:count] = np.frombuffer(self.head[offset : offset + count], np.uint8)
        while count < len(view):
            k = bisect_right(self.begins, offset + count) - 1
            stop = min(self.begins[k + 1], offset + len(view))
            self._read_tensor(self.tensors[k], offset + count - self.begins[k], view[count : stop - offset])
            count = stop - offset

    def _read_tensor(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Fill ``out`` with a tensor's bytes from ``start`` on."""
        for chunk in tensor.chunks:
            for run in runs(tensor, chunk, start, start + len(out)):
                self._read_run(tensor, chunk, run, start, out)

    def _read_run(self, tensor: StoredTensor, chunk: Chunk, run: Run, start: int, out: Bytes) -> None:
        """Fill the parts of ``out`` that a run of rows of a chunk gives."""
        begin, stop = max(run.place, start), min(run.place + (run.rows - 1) * run.step + run.length, start + len(out))
        first, skipped = divmod(begin - run.place, run.step)
        last, kept = divmod(stop - run.place, run.step)  # of row number ``last`` so many bytes are wanted
        skipped, kept = min(skipped, run.length), min(kept, run.length)
        low, high = first * run.length + skipped, last * run.length + kept
        if low >= high:
            return
        if run.rows == 1:
            self._read_chunk(tensor, chunk, run.at + low, out[begin - start : stop - start])
            return
        data = scratch("rows of a chunk", high - low, np.uint8)
        self._read_chunk(tensor, chunk, run.at + low, data)
        taken, place = 0, run.place - start
        if skipped:
            taken = min(run.length - skipped, len(data))
            at = place + first * run.step + skipped
            out[at : at + taken] = data[:taken]
            first += 1
        if last > first:
            whole = (last - first) * run.length
            rows = as_strided(out[place + first * run.step :], (last - first, run.length), (run.step, 1))
            rows[:] = data[taken : taken + whole].reshape(last - first, run.length)
            taken += whole
        if taken < len(data):
            at = place + last * run.step
            out[at : at + len(data) - taken] = data[taken:]

    def _read_chunk(self, tensor: StoredTensor, chunk: Chunk, start: int, out: Bytes) -> None:
        """Fill ``out`` with a chunk's bytes from ``start`` on."""
        part = self.parts[chunk.path]
        found = self._found.get(chunk)
        if found is None:  # two threads may both look: they find the same
            found = self._found[chunk] = locate(part, chunk, tensor.width, cut(tensor.name))
        if found.strides is None:
            part.readinto(found.start + start, out)
        else:
            out[:] = self._in_order(tensor, chunk, found.start, found.strides)[start : start + len(out)]

    def _in_order(self, tensor: StoredTensor, chunk: Chunk, start: int, strides: Sequence[int]) -> Bytes:
        """The bytes of a chunk whose elements do not lie in order, such as one that was saved transposed; the last one is kept."""
        with self._lock:
            if self._strided[0] is not chunk:
                data = np.empty(math.prod(chunk.sizes) * tensor.width, np.uint8)
                if len(data) > MAX_STRIDED:
                    raise CheckpointError(
                        f"{self.name}: {cut(tensor.name)}: a chunk of {len(data):,} bytes was saved with the strides {tuple(strides)}, out "
                        f"of order, expected at most {MAX_STRIDED:,} bytes of such: save it with .contiguous()"
                    )
                self.parts[chunk.path].readinto(start, data)
                ordered = as_strided(data.view(f"V{tensor.width}"), chunk.sizes, [stride * tensor.width for stride in strides])
                self._strided = chunk, np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)
            return self._strided[1]

    def view(self, offset: int, size: int) -> None:
        """None: the chunks must be read."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError if one of the files was written to since it was opened."""
        for file in self.parts.values():
            file.check_unchanged()

    def close(self) -> None:
        """Close all files."""
        for file in self.parts.values():
            file.close()


class Run:
    """Rows of a chunk that lie at equal distances in the tensor, and end to end in the chunk."""

    __slots__ = ("at", "length", "place", "rows", "step")

    def __init__(self, place: int, step: int, at: int, length: int, rows: int) -> None:
        self.place, self.step = place, step
        """Where the first row begins in the tensor, and how far apart rows begin there, in bytes."""
        self.at, self.length, self.rows = at, length, rows
        """Where the first row begins in the chunk, how many bytes a row has, and how many rows there are."""


def runs(tensor: StoredTensor, chunk: Chunk, start: int, stop: int) -> Iterator[Run]:
    """The runs of a chunk that may have some of a tensor's bytes from ``start`` to ``stop``."""
    shape, sizes, offsets = tensor.shape, chunk.sizes, chunk.offsets
    steps = [math.prod(shape[k + 1 :]) * tensor.width for k in range(len(shape))]
    axis = max((k for k in range(len(shape)) if sizes[k] != shape[k]), default=0)
    if axis == 0:  # the chunk is one range of the tensor
        length = math.prod(sizes) * tensor.width
        place = offsets[0] * steps[0] if shape else 0
        if place < stop and start < place + length:
            yield Run(place, length, 0, length, 1)
        return
    length, rows = sizes[axis] * steps[axis], sizes[axis - 1]
    inner = offsets[axis - 1] * steps[axis - 1] + offsets[axis] * steps[axis]
    outer, box = shape[: axis - 1], sizes[: axis - 1]
    size = math.prod(shape[axis - 1 :]) * tensor.width
    for number in range(start // size, -(-stop // size)):
        index = np.unravel_index(number, outer) if outer else ()
        inside = [int(i) - first for i, first in zip(index, offsets, strict=False)]
        if all(0 <= i < n for i, n in zip(inside, box, strict=True)):
            before = int(np.ravel_multi_index(inside, box)) if outer else 0
            yield Run(number * size + inner, steps[axis - 1], before * rows * length, length, rows)

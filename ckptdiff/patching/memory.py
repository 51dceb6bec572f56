"""Tensors in memory as a checkpoint of one file: the file that safetensors would write of them, read in place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ckptdiff.checkpoint.contents import Checkpoint, WeightFile
from ckptdiff.errors import CheckpointError, UnsupportedError
from ckptdiff.format.dtypes import DTYPE_ORDER, Bytes
from ckptdiff.format.safetensors import Header, predicted_header
from ckptdiff.format.tensor_type import MAX_NAME, MAX_RANK, TensorInfo
from ckptdiff.lazy import torch
from ckptdiff.patching.torch_dtypes import Array, dtype_of, flat_bytes, memory_range, shape_of

MEMORY_FILE_NAME = "model.safetensors"
MEMORY_SCOPE = "model"
State = Mapping[str, Array]
"""Tensors by name: torch's, on any device, or numpy's."""


class MemoryFile:
    """A :class:`~ckptdiff.io.source.WeightSource` over tensors in memory, which are read in place: a file of a header and their bytes.

    Args:
        name: what messages call it.
        header: its offsets are those of the file that is not written.
        parts: the memory of each tensor, in the order of the header.
    """

    def __init__(self, name: str, header: Header, parts: list[Bytes | torch.Tensor]) -> None:
        self.name, self.path, self.parts = name, Path(name), parts
        self.begins = [header.data_start + tensor.begin for tensor in header.tensors]
        self.size = header.data_start + header.data_size

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``, which must lie in one tensor."""
        if len(out) == 0:
            return
        data = self.view(offset, len(out))
        if isinstance(data, np.ndarray):
            out[:] = data
        else:
            torch.from_numpy(np.frombuffer(out, np.uint8)).copy_(data)

    def view(self, offset: int, size: int) -> Bytes | torch.Tensor:
        """Memory at ``offset``, without a copy: numpy's on the host, torch's on another device. It must lie in one tensor."""
        k = bisect_right(self.begins, offset) - 1
        start, part = offset - self.begins[k], self.parts[k]
        return part if start == 0 and size == len(part) else part[start : start + size]  # whose address is known without asking NumPy

    def check_unchanged(self) -> None:
        """Do nothing: changes of memory leave no trace, as a file's do in its modification time."""

    def close(self) -> None:
        """Do nothing: nothing was opened."""


class BytesFile:
    """A :class:`~ckptdiff.io.source.ByteSource` over a bytes object."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.size = memoryview(data), name, len(data)

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Fill ``out``; raises CheckpointError if the bytes end before."""
        view = memoryview(out)
        if offset + len(view) > self.size:
            raise CheckpointError(f"{self.name}: ends at byte {self.size}, expected {offset + len(view)} or more: truncated?")
        view[:] = self.data[offset : offset + len(view)]

    def close(self) -> None:
        """Do nothing: nothing was opened."""


def state_of(model: Any, where: str) -> dict[str, Array]:
    """The tensors of a module, or of a state dict, by name.

    Raises:
        CheckpointError: it is neither, or it holds something that is not a tensor with content.
    """
    state = model.state_dict() if hasattr(model, "state_dict") else model
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{where}: expected a module or a state dict, found {type(model).__name__}")
    for name, array in state.items():
        if not isinstance(name, str) or name == "__metadata__" or not 1 <= len(name.encode(errors="replace")) <= MAX_NAME:
            raise CheckpointError(f"{where}: expected names of 1 to {MAX_NAME} bytes, but not __metadata__, found {name!r:.80}")
        if name.encode(errors="replace") != name.encode(errors="surrogatepass"):
            raise CheckpointError(f"{where}: the name {name!r:.80} is not Unicode text")
        kind = type(array).__name__
        if not (isinstance(array, np.ndarray) or hasattr(type(array), "is_meta")) or kind.startswith("Uninitialized"):
            raise CheckpointError(f"{where}: {name}: expected a tensor with content, found {kind}: give a dict of tensors without it")
    return {name: local_part(array) for name, array in state.items()}


def local_part(array: Array) -> Array:
    """This rank's part of a DTensor; any other tensor unchanged."""
    return array.to_local() if hasattr(array, "to_local") else array


def open_state(state: State, where: str, wanted: Collection[str] = (), scope: str = MEMORY_SCOPE) -> Checkpoint:
    """Tensors in memory as a checkpoint.

    Several names of one tensor, that is of the same memory, dtype and shape, count once: under the first name in the state's order, as in
    torch's ``named_parameters`` and in the files of transformers.

    Args:
        state: the tensors by name.
        where: what messages call them.
        wanted: names that count each for itself, even if they name one tensor.
        scope: the id of the checkpoint's only scope.

    Raises:
        UnsupportedError: a tensor has a dtype, layout or device that cannot be read in place, or too many dimensions.
    """
    rows, tied = list[Row](), dict[str, str]()
    first: dict[tuple[object, ...], str] = {}
    for name, array in sorted(state.items(), key=lambda row: row[0] not in wanted):
        dtype = dtype_of(array, f"{where}: {name}")
        shape, flat = shape_of(array, dtype), flat_bytes(array, f"{where}: {name}")
        if len(shape) > MAX_RANK:
            raise UnsupportedError(f"{where}: {name}: has {len(shape)} dimensions, a patch at most {MAX_RANK}: reshape it")
        known = first.setdefault((*memory_range(flat), dtype, shape), name) if len(flat) else name
        if known != name and name not in wanted:
            tied[name] = known
            continue
        rows.append(Row(name, dtype, shape, flat))
    return open_rows(rows, where, scope, tied)


class Row(NamedTuple):
    """A tensor in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """In elements."""
    flat: Bytes | torch.Tensor
    """Its memory as bytes."""


def open_rows(rows: Iterable[Row], where: str, scope: str = MEMORY_SCOPE, tied: Mapping[str, str] | None = None) -> Checkpoint:
    """As :func:`open_state`, of tensors that are known as their bytes. ``tied``: further names, and what they are stored under."""
    ordered = sorted(rows, key=lambda row: (DTYPE_ORDER.index(row.dtype), row.name))
    ends = accumulate((len(row.flat) for row in ordered), initial=0)
    tensors = tuple(TensorInfo(*row[:3], begin, end) for row, (begin, end) in zip(ordered, pairwise(ends), strict=False))
    raw = predicted_header((*row[:3], len(row.flat)) for row in ordered)
    header = Header(raw, {"format": "pt"}, tensors)
    file = MemoryFile(where, header, [row.flat for row in ordered])
    return Checkpoint(Path(where), True, [WeightFile(MEMORY_FILE_NAME, scope, file, header)], {}, in_memory=True, tied=dict(tied or {}))

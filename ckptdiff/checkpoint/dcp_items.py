"""Where the bytes of a tensor lie in an item of a ``.distcp`` file: a zip archive by ``torch.save``, which stores them as they are."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

from ckptdiff.checkpoint.dcp_metadata import Chunk
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPE_OF_NAME
from ckptdiff.io.source import ByteSource, read_bytes

MAX_AROUND = 1 << 20
"""Bytes of an item beside those of its tensor; torch's archives have some 1.5 kB."""
MAX_PICKLE = 1 << 16
"""Bytes of the pickle in an archive, which describes one tensor."""
LOCAL_HEADER = 30
"""Bytes of the fixed part of a zip's local header."""


class Data(NamedTuple):
    """The bytes of a chunk."""

    start: int
    """Where they begin in the file."""
    strides: tuple[int, ...] | None
    """Strides in elements, if they do not lie in the order of the chunk's elements."""


def locate(source: ByteSource, chunk: Chunk, width: int, where: str) -> Data:
    """Find the bytes of a chunk.

    Args:
        source: the file.
        chunk: the chunk, whose item lies within the file.
        width: bytes of an element.
        where: what messages call the tensor.

    Raises:
        CheckpointError: the item is not an archive of just this tensor, or cannot be read.
    """
    nbytes = math.prod(chunk.sizes) * width
    where = f"{source.name}: {where}: the item at byte {chunk.start}"
    if not nbytes <= chunk.length <= nbytes + MAX_AROUND:
        raise CheckpointError(f"{where} has {chunk.length:,} bytes for a chunk of {nbytes:,}: fetch the checkpoint again")
    try:
        archive = zipfile.ZipFile(_Window(source, chunk.start, chunk.length))
        described = _described(archive)
        info = archive.getinfo(described.member)
        start = _start_of(source, chunk, info)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and pickle raise anything for broken input
        raise CheckpointError(f"{where} is not a tensor as torch.save writes it: {cut(str(error) or type(error).__name__)}") from None
    if described.shape != chunk.sizes or info.file_size != nbytes or described.offset:
        found = f"{described.shape} in {info.file_size:,} bytes"
        raise CheckpointError(f"{where} holds a tensor of {found}, expected {chunk.sizes} in {nbytes:,}: fetch the checkpoint again")
    return Data(start, _strides(described, where))


class _Described(NamedTuple):
    """What an archive's pickle says of its tensor."""

    member: str
    """The member of the archive that holds its bytes."""
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _described(archive: zipfile.ZipFile) -> _Described:
    """Read the pickle of an archive; raises ValueError, or anything else."""
    folder = archive.namelist()[0].split("/")[0]
    info = archive.getinfo(f"{folder}/data.pkl")
    if info.file_size > MAX_PICKLE:
        raise ValueError(f"its pickle has {info.file_size:,} bytes")
    order = f"{folder}/byteorder"
    if order in archive.namelist() and archive.getinfo(order).file_size < MAX_PICKLE and archive.read(order) != b"little":
        raise ValueError("its bytes are not in little-endian order")
    tensor = _Unpickler(archive.read(info)).load()
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"its pickle gives a {type(tensor).__name__}, no plain tensor")
    key, offset, shape, strides = tensor
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} and strides {strides}")
    return _Described(f"{folder}/data/{key}", offset, tuple(shape), tuple(strides))


def _start_of(source: ByteSource, chunk: Chunk, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin in the file; raises ValueError if they are not stored as they are, within the item."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise ValueError("its bytes are compressed or encrypted")
    if not 0 <= info.header_offset <= chunk.length - LOCAL_HEADER:
        raise ValueError("a member lies outside of it")
    local = read_bytes(source, chunk.start + info.header_offset, LOCAL_HEADER)
    before = LOCAL_HEADER + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if local[:4] != b"PK\x03\x04" or info.header_offset + before + info.file_size > chunk.length:
        raise ValueError("a member lies outside of it")
    return chunk.start + info.header_offset + before


def _strides(described: _Described, where: str) -> tuple[int, ...] | None:
    """None for a tensor whose elements lie in order; raises CheckpointError if they reach beyond it."""
    expected = [math.prod(described.shape[k + 1 :]) for k in range(len(described.shape))]
    if all(n == 1 or a == b for n, a, b in zip(described.shape, described.strides, expected, strict=True)):
        return None
    last = sum((n - 1) * stride for n, stride in zip(described.shape, described.strides, strict=True))
    if last >= math.prod(described.shape):
        raise CheckpointError(f"{where}: the strides {described.strides} reach beyond a tensor of {described.shape}")
    return described.strides


class _Tensor(tuple[Any, ...]):
    """What a pickled tensor was made from: key of its bytes, offset, shape and strides."""

    __slots__ = ()


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands for torch's functions that make a tensor."""
    return _Tensor((storage, offset, shape, strides))


class _Unpickler(pickle._Unpickler):  # as of dcp_metadata
    """Reads what torch.save pickles of a tensor, and makes nothing of torch's."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function; raises UnpicklingError for one that a plain tensor has not."""
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return lambda *arguments: _rebuilt(*arguments)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and (name in DTYPE_OF_NAME or (name.endswith("Storage") and name.isidentifier())):
            return name
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return name
        raise pickle.UnpicklingError(f"its pickle names {module}.{name}, which is no part of a plain tensor")

    def persistent_load(self, pid: Any) -> str:
        """The key of the bytes."""
        kind, _, key, *_ = pid
        if kind != "storage" or type(key) is not str or not key.isalnum():
            raise pickle.UnpicklingError("its pickle has no plain storage")
        return key


class _Window:
    """An item of a file as a file of its own, of which little is read at once."""

    def __init__(self, source: ByteSource, start: int, size: int) -> None:
        self.source, self.start, self.size, self.position = source, start, size, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = (0, self.position, self.size)[whence] + offset
        if self.position < 0:
            raise OSError("a position before its start")
        return self.position

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.position, 0)
        count = left if count < 0 else min(count, left)
        if count > MAX_AROUND:
            raise OSError(f"{count:,} bytes of it would describe a tensor")
        self.position += count
        return read_bytes(self.source, self.start + self.position - count, count)

"""What the ``.metadata`` of a torch.distributed.checkpoint (DCP) folder says: the tensors, and where the chunks of each lie.

The file is a pickle, which anybody may have written. It is read by Python's own unpickler, given nothing that torch or Python would run:
each class that DCP names there, and no other, stands for a record without behaviour, made for this one reading.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPE_OF_NAME, DTYPES, MAX_FILE
from ckptdiff.format.tensor_type import MAX_RANK

METADATA_NAME = ".metadata"
PART_ENDING = ".distcp"
"""How the names of the files end that hold the chunks."""
MAX_METADATA = 1 << 26
"""Bytes of a ``.metadata``."""
MAX_CELLS = 1 << 22
"""Cells of the grid in which the chunks of one tensor are checked."""

OPTIMIZER = re.compile(r"optim|optimizers?(_[0-9]+)?")
"""How the first or second part of the name of optimizer state reads."""

_METADATA = "torch.distributed.checkpoint.metadata"
RECORDS = {
    *((_METADATA, name) for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    *((_METADATA, name) for name in ("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch", "Size"), ("torch.serialization", "_get_layout")),
    *((module, f"{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("Posix", "PurePosix", "Windows", "PureWindows")),
}
"""The classes and functions that DCP's metadata names, but for dtypes."""


class Chunk(NamedTuple):
    """A box of a tensor, and the item of a file that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    """Where the box begins, and how long it is, in each dimension, in elements."""
    path: str
    """The file, relative to the folder."""
    start: int
    length: int
    """Where the item lies in the file, in bytes."""


class StoredTensor(NamedTuple):
    """A tensor of a DCP folder."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    """In elements of torch's dtype."""
    width: int
    """Bytes of such an element."""
    chunks: tuple[Chunk, ...]
    """Boxes that cover the tensor without gaps and overlaps; none has no elements."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.width


class StoredState(NamedTuple):
    """What of a DCP folder is a model."""

    tensors: list[StoredTensor]
    left_out: list[str]
    """Names of entries that are optimizer state, or no tensors."""


def is_dcp_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a path is a local folder that torch.distributed.checkpoint wrote."""
    try:
        return os.path.isfile(os.path.join(folder, METADATA_NAME)) and any(name.endswith(PART_ENDING) for name in os.listdir(folder))
    except OSError:
        return False


def is_dcp_part(name: str) -> bool:
    """Whether a path in a DCP folder is that of the metadata, or of a file of chunks."""
    return name == METADATA_NAME or ("/" not in name and name.endswith(PART_ENDING))


def read_state(folder: Path) -> StoredState:
    """The tensors of a DCP folder in the order of their names; optimizer state is left out by its name.

    Raises:
        CheckpointError: the metadata cannot be read, names other classes, or does not say where every part of a tensor lies.
    """
    path = folder / METADATA_NAME
    metadata = _members(_unpickled(path), "Metadata", path)
    entries, places = metadata.get("state_dict_metadata"), metadata.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(places, dict):
        raise CheckpointError(f"{path}: expected the tensors and their places, found none: was the checkpoint written to the end?")
    where = dict(_places(places, path))
    state = StoredState([], [])
    for name in sorted(_text(name, path) for name in entries):
        entry = entries[name]
        if _kind(entry) != "TensorStorageMetadata" or any(map(OPTIMIZER.fullmatch, name.split(".")[:2])):
            state.left_out.append(name)
        else:
            state.tensors.append(_tensor(name, _members(entry, "TensorStorageMetadata", path), where, path))
    if not state.tensors:
        raise CheckpointError(f"{path}: holds no tensors of a model, only {len(state.left_out):,} entries of other state")
    return state


# --- the pickle ---


class _Record:
    """Stands for an object of DCP's: what it was made from."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(str):
    """Stands for a torch dtype: its name."""

    __slots__ = ()


class _Unpickler(pickle._Unpickler):  # Python's own: C's allocates what a memo's number asks for
    """Reads DCP's metadata; the classes are made anew each time, so that no pickle can leave anything behind in them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.made: dict[tuple[str, str], type[_Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class that the pickle names; raises UnpicklingError for one that is not DCP's."""
        if module == "torch" and name in DTYPE_OF_NAME:
            return _Dtype(name)
        if (module, name) not in RECORDS:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is no part of torch.distributed.checkpoint's metadata")
        return self.made.setdefault((module, name), type(name, (_Record,), {}))


def _unpickled(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_METADATA:
            raise CheckpointError(f"{path}: has {size:,} bytes, expected at most {MAX_METADATA:,}")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _Unpickler(data).load()
    except Exception as error:  # a broken pickle raises anything
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: not the metadata of torch.distributed.checkpoint: {cut(reason)}") from None


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, _Record) else ""


def _members(value: Any, kind: str, path: Path) -> Mapping[str, Any]:
    """The members of a record; raises CheckpointError if it is not one of that kind."""
    if _kind(value) != kind or not isinstance(value.state, dict):
        raise CheckpointError(f"{path}: expected a {kind}, found {cut(_kind(value) or type(value).__name__)}")
    return value.state


def _text(value: Any, path: Path) -> str:
    if type(value) is not str:
        raise CheckpointError(f"{path}: expected a name, found {cut(type(value).__name__)}")
    return value


def _dims(value: Any, path: Path) -> tuple[int, ...]:
    """A ``torch.Size``: at most :data:`~ckptdiff.format.tensor_type.MAX_RANK` numbers, none below zero."""
    dims = value.args[0] if _kind(value) == "Size" and len(value.args) == 1 else value
    if not isinstance(dims, (tuple, list)) or len(dims) > MAX_RANK or not all(type(dim) is int and 0 <= dim <= MAX_FILE for dim in dims):
        raise CheckpointError(f"{path}: expected a size of at most {MAX_RANK} dimensions, found {cut(dims)}")
    return tuple(dims)


# --- tensors ---

_Place = tuple[str, int, int]
"""Path of a file, and start and length of an item in it."""


def _places(places: Mapping[Any, Any], path: Path) -> Iterator[tuple[tuple[str, tuple[int, ...]], _Place]]:
    """Where the chunk of each tensor that begins at some offsets lies."""
    for index, info in places.items():
        key, place = _members(index, "MetadataIndex", path), _members(info, "_StorageInfo", path)
        if key.get("offset") is None:
            continue  # an entry that is no tensor
        name, found = _text(key.get("fqn"), path), [place.get(member) for member in ("offset", "length")]
        if place.get("transform_descriptors"):
            raise CheckpointError(
                f"{path}: {cut(name)} was written through a transform (an extension of DCP), which ckptdiff does not undo"
            )
        if not all(type(number) is int and 0 <= number <= MAX_FILE for number in found):
            raise CheckpointError(f"{path}: {cut(name)}: expected start and length of an item, found {cut(found)}")
        yield (name, _dims(key["offset"], path)), (_text(place.get("relative_path"), path), *found)  # type: ignore[misc]


def _tensor(name: str, entry: Mapping[str, Any], where: Mapping[tuple[str, tuple[int, ...]], _Place], path: Path) -> StoredTensor:
    """One tensor, whose chunks are checked."""
    dtype, shape, chunks = _dtype(entry.get("properties"), name, path), _dims(entry.get("size"), path), list[Chunk]()
    listed = entry.get("chunks")
    if not isinstance(listed, list):
        raise CheckpointError(f"{path}: {cut(name)}: expected a list of chunks")
    for row in listed:
        box = _members(row, "ChunkStorageMetadata", path)
        offsets, sizes = _dims(box.get("offsets"), path), _dims(box.get("sizes"), path)
        if not len(offsets) == len(sizes) == len(shape) or any(a + n > m for a, n, m in zip(offsets, sizes, shape, strict=True)):
            raise CheckpointError(f"{path}: {cut(name)}: the chunk at {offsets} of {sizes} lies outside of the shape {shape}")
        if not math.prod(sizes):
            continue
        place = where.get((name, offsets))
        if place is None:
            raise CheckpointError(f"{path}: {cut(name)}: nothing says where its chunk at {offsets} lies: fetch the checkpoint again")
        chunks.append(Chunk(offsets, sizes, *place))
    _check_tiled(name, shape, chunks, path)
    return StoredTensor(name, dtype, shape, 1 if dtype == "F4" else DTYPES[dtype].bits // 8, tuple(chunks))


def _dtype(properties: Any, name: str, path: Path) -> str:
    state = properties.state if _kind(properties) == "TensorProperties" else None
    first = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(first, _Dtype):
        raise CheckpointError(f"{path}: {cut(name)}: expected a dtype that safetensors has, found {cut(first)}")
    return DTYPE_OF_NAME[first]


def _check_tiled(name: str, shape: Sequence[int], chunks: Sequence[Chunk], path: Path) -> None:
    """Raise CheckpointError unless chunks cover a shape without gaps and overlaps."""
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise CheckpointError(f"{path}: {cut(name)}: its chunks do not cover the shape {tuple(shape)}: they have gaps, or overlap")
    if len(chunks) < 2:
        return
    edges = [sorted({0, *(c.offsets[d] for c in chunks), *(c.offsets[d] + c.sizes[d] for c in chunks)}) for d in range(len(shape))]
    if math.prod(map(len, edges)) > MAX_CELLS:
        raise CheckpointError(
            f"{path}: {cut(name)}: its {len(chunks):,} chunks are cut too unevenly: save it sharded along fewer dimensions"
        )
    grid, places = np.zeros([len(row) - 1 for row in edges], np.uint8), [{at: k for k, at in enumerate(row)} for row in edges]
    for chunk in chunks:
        box = tuple(slice(p[a], p[a + n]) for p, a, n in zip(places, chunk.offsets, chunk.sizes, strict=True))
        if grid[box].any():
            raise CheckpointError(f"{path}: {cut(name)}: its chunk at {chunk.offsets} overlaps another one")
        grid[box] = 1

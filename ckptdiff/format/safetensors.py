"""safetensors bytes: the strict header parser (spec 5.3), the predicted header (5.2) and positioned reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ckptdiff.errors import cut
from ckptdiff.format import canonical
from ckptdiff.format.dtypes import DTYPES, MAX_FILE, MAX_SIZE
from ckptdiff.format.header_scan import plain_header
from ckptdiff.format.json_scan import WHITE_SPACE
from ckptdiff.format.tensor_type import MAX_NAME, MAX_RANK, MAX_TENSORS, TensorInfo, tensor_type
from ckptdiff.format.wrong_file import HEAD_BYTES, describe_wrong_file
from ckptdiff.io.source import ByteSource, read_bytes

MAX_HEADER = 1 << 25
"""Limit of a header in bytes."""
MAX_MEMBER_NODES = 1 << 16
"""Limit of the braces, brackets and commas of one member of a header: a tensor needs 40, ``__metadata__`` one for each of its members."""
MEMBERS = {"dtype", "shape", "data_offsets"}
"""Members of a tensor's object in a header."""


class UnusualHeaderError(ValueError):
    """A header that breaks a rule of spec 5.3 which the safetensors library does not have, so that it opens the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header."""

    raw: bytes
    """Its N bytes as stored, padding included."""
    metadata: dict[str, str] | None
    """The member ``__metadata__``; None if there is none."""
    tensors: tuple[TensorInfo, ...]
    """In the order of their data."""

    @property
    def data_start(self) -> int:
        """Where the data begin in the file."""
        return 8 + len(self.raw)

    @property
    def data_size(self) -> int:
        """Bytes of all tensors."""
        return self.tensors[-1].end if self.tensors else 0


def parse_header(raw: bytes, data_size: int) -> Header:
    """Parse the N header bytes of a file whose data has ``data_size`` bytes.

    Raises:
        ValueError: with one line that says which rule of spec 5.3 is broken; UnusualHeaderError where the safetensors library has no such
            rule.
    """
    if data_size > MAX_FILE:
        raise ValueError(f"it has {data_size} bytes of data, more than {MAX_FILE}")
    text = raw.rstrip(WHITE_SPACE)
    if text.lstrip(WHITE_SPACE).startswith(b"{") and not text.startswith(b"{"):
        raise UnusualHeaderError("white space stands before the JSON of its header")
    if not (text.startswith(b"{") and text.endswith(b"}")):
        raise ValueError("the header is not a JSON object and then white space")
    plain = plain_header(text, data_size)
    if plain is not None:
        return Header(raw, *plain)
    parsed: list[TensorInfo] = []
    has_metadata, metadata = False, None
    for _, name, value in canonical.members(text, {}, MAX_MEMBER_NODES, depth=3):
        if name == "__metadata__":
            has_metadata, metadata = True, value
        elif len(parsed) == MAX_TENSORS:
            raise ValueError(f"it holds more than {MAX_TENSORS} tensors")
        else:
            parsed.append(_parse_tensor(name, value))
    if has_metadata and metadata is None:
        raise UnusualHeaderError("its __metadata__ is null")
    if has_metadata and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("__metadata__ is not an object of strings")
    tensors = tuple(sorted(parsed, key=lambda t: (t.begin, t.end)))
    _check_offsets(tensors, data_size)
    return Header(raw, metadata, tensors)


def _check_offsets(tensors: Iterable[TensorInfo], data_size: int) -> None:
    """Raise ValueError unless tensors, in the order of their data, cover it without a hole or an overlap."""
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            raise ValueError(f"tensor {cut(tensor.name)}: its data begins at {tensor.begin}, expected {position} (a hole or an overlap)")
        position = tensor.end
    if position != data_size:
        raise ValueError(f"its tensors end at byte {position} of the data, but the file holds {data_size}: truncated, or padded")


def _is_count(value: Any) -> bool:
    """Whether a JSON value is an integer that a dimension, or an offset in a tensor's limits, may be."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE


def _parse_tensor(name: str, entry: Any) -> TensorInfo:
    """A tensor from its member of the header; raises ValueError as :func:`parse_header`."""
    if not name:
        raise UnusualHeaderError("a tensor has an empty name")
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"a tensor name has {len(name.encode())} bytes, expected 1 to {MAX_NAME}")
    if not isinstance(entry, dict) or not MEMBERS <= set(entry):
        raise ValueError(f"tensor {cut(name)}: expected an object of dtype, shape and data_offsets")
    if set(entry) != MEMBERS:
        raise UnusualHeaderError(f"tensor {cut(name)}: has a further member {canonical.quoted(min(set(entry) - MEMBERS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {cut(name)}: unknown dtype {cut(repr(dtype))}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_count, shape)):
        raise ValueError(f"tensor {cut(name)}: bad shape {cut(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"tensor {cut(name)}: bad data_offsets {cut(offsets)}")
    type_ = tensor_type(dtype, tuple(shape))
    nbytes = None if type_ is None else type_.nbytes
    if nbytes is None or offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"tensor {cut(name)}: dtype {dtype} and shape {cut(shape)} need {nbytes} bytes, its offsets give {offsets[1] - offsets[0]}"
        )
    return TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])


def read_header(source: ByteSource) -> Header:
    """Read and parse the header of a safetensors file.

    Raises:
        ValueError: with one line that says which rule of spec 5.3 is broken.
    """
    if source.size < 8:
        raise ValueError(f"it has {source.size} bytes, too few for a safetensors file")
    head = read_bytes(source, 0, min(source.size, HEAD_BYTES))
    n = int.from_bytes(head[:8], "little")
    if n > MAX_HEADER or n > source.size - 8:
        raise ValueError(
            describe_wrong_file(head)
            or f"its header would have {n} bytes, but the file has {source.size} (limit {MAX_HEADER}): truncated, or not safetensors"
        )
    return parse_header(read_bytes(source, 8, n), source.size - 8 - n)


def header_json(first: Iterable[tuple[str, str]], tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """The bytes of a header whose tensors lie end to end, padded with spaces to a multiple of 8.

    Args:
        first: members that come first: their keys, and their values as JSON.
        tensors: name, dtype, shape and size in bytes of each.
    """
    members, position, begin = [f"{canonical.quote(key)}:{text}" for key, text in first], 0, "0"
    quote, form = canonical.quote, _form
    for name, dtype, shape, nbytes in tensors:
        position += nbytes
        end = str(position)
        members.append(f"{quote(name)}:{form(dtype, tuple(shape))}{begin},{end}]}}")
        begin = end
    raw = f"{{{','.join(members)}}}".encode()
    return raw + b" " * (-len(raw) % 8)


@lru_cache(maxsize=1 << 14)
def _form(dtype: str, shape: tuple[int, ...]) -> str:
    """The member of a tensor up to its offsets."""
    return f'{{"dtype":"{dtype}","shape":[{",".join(map(str, shape))}],"data_offsets":['


def predicted_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """The header that common writers would give these tensors (spec 5.2), each of name, dtype, shape and size in bytes."""
    return header_json([("__metadata__", '{"format":"pt"}')], tensors)

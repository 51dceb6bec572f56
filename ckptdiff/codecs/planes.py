"""Varints and planes (spec sections 2 and 7.1)."""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import numpy as np
import zstandard
from zstandard import CONTENTSIZE_UNKNOWN, get_frame_parameters

from ckptdiff.format.dtypes import Bytes, Units
from ckptdiff.machine import machine_error

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""The first bytes of a zstd frame, which a plane's frame is stored without."""
PLANE_LEVEL = 3
"""The level of zstd that planes are compressed at."""
MAX_PLANE_WINDOW = 1 << 21
"""Limit of the window of a plane's frame in bytes."""
MIN_COMPRESSED = 16
"""Planes of fewer bytes are stored as they are: no zstd frame is smaller."""


class _ZstdContexts(threading.local):
    """One zstd compressor and decompressor for each thread: they are costly to make, and threads must not share them."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            PLANE_LEVEL, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _ZstdContexts()


def write_varint(value: int) -> bytes:
    """A number as a varint (spec section 2): seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """A cursor over one coded block. Every method raises ValueError, with one line, where bytes are missing or break a rule of the spec."""

    __slots__ = "data", "position"

    def __init__(self, data: memoryview | bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> memoryview | bytes:
        """The next bytes."""
        end = self.position + count
        if end > len(self.data):
            raise ValueError(f"it ends after {len(self.data)} bytes, {end} are needed")
        start, self.position = self.position, end
        return self.data[start:end]

    def varint(self) -> int:
        """The next number."""
        value, shift, at, data = 0, 0, self.position, self.data
        end = len(data)
        while at < end:
            byte = data[at]
            at += 1
            if byte < 0x80:
                value |= byte << shift
                if (byte == 0 and shift) or value >> 32:
                    raise ValueError("a varint is too large or not minimal")
                self.position = at
                return value
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift == 35:
                raise ValueError("a varint is longer than 5 bytes")
        raise ValueError(f"it ends after {end} bytes, {end + 1} are needed")

    def plane(self, length: int) -> bytes:
        """The next plane, of so many bytes."""
        if length == 0:
            return b""
        size = self.varint()
        return _decompress(ZSTD_MAGIC + self.take(size), length) if size else bytes(self.take(length))

    def end(self) -> None:
        """Raise ValueError unless all bytes are read."""
        if self.position != len(self.data):
            raise ValueError(f"{len(self.data) - self.position} bytes are left over")


def _decompress(frame: bytes, length: int) -> bytes:
    """The content of a plane's frame, which must have so many bytes."""
    try:
        stated = get_frame_parameters(frame)
        if stated.content_size not in (CONTENTSIZE_UNKNOWN, length) or stated.has_checksum or stated.dict_id:
            raise ValueError("the zstd frame states another size, a checksum or a dictionary")
        if stated.window_size > MAX_PLANE_WINDOW:
            raise ValueError(f"the zstd frame has a window of {stated.window_size} bytes, more than {MAX_PLANE_WINDOW}")
        data = _zstd.decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise machine_error(error) or ValueError(f"bad zstd frame: {error}") from None
    if len(data) != length:
        raise ValueError(f"a plane has {len(data)} bytes, expected {length}")
    return data


def write_plane(plane: Bytes | memoryview) -> bytes:
    """The stored form of a plane (spec section 7.1): compressed where that makes it shorter."""
    if len(plane) == 0:
        return b""
    data = memoryview(plane)
    if len(data) >= MIN_COMPRESSED:
        frame = _zstd.compressor.compress(data)
        if len(frame) < len(data):
            return write_varint(len(frame)) + frame
    return b"\x00" + data


def split(values: Units, width: int) -> list[Bytes]:
    """The lowest ``width`` bytes of each value, as that many planes."""
    columns = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize)
    return [np.ascontiguousarray(columns[:, k]) for k in range(width)]


def join(planes: list[bytes], count: int, unit: np.dtype[Any]) -> Units:
    """Inverse of :func:`split`: values of the type ``unit``, with zeros in the bytes that have no plane."""
    values = np.zeros(count, unit)
    columns = values.view(np.uint8).reshape(count, unit.itemsize)
    for k, plane in enumerate(planes):
        columns[:, k] = np.frombuffer(plane, np.uint8)
    return values


# --- escaped values (spec section 7.1), as planes ---


PlaneCounts: TypeAlias = tuple[int, int, int, int, int]
"""How many changes a block has; how many low planes its gaps have, and how many escapes; the same of values."""


class BlockError(ValueError):
    """A block of several breaks a rule: one line says which.

    Attributes:
        block: its number among them.
    """

    def __init__(self, block: int, text: str) -> None:
        super().__init__(text)
        self.block = block


def read_planes(reader: Reader, count: int, width: int, low: int, planes: list[bytes]) -> int:
    """Read the planes of ``count`` escaped values.

    Args:
        reader: stands before the planes.
        width: bytes of a value.
        low: how many low planes there are.
        planes: to append them to.

    Returns:
        How many values are the escape.

    Raises:
        ValueError: with one line that says which rule of spec 7.1 the planes break.
    """
    if low == 1 < width:  # as nearly all have
        planes.append(reader.plane(count))
        escaped = planes[-1].count(255)
    else:
        found = [reader.plane(count) for _ in range(low)]
        planes += found
        escaped = 0 if low == width else int(np.all([np.frombuffer(plane, np.uint8) == 255 for plane in found], axis=0).sum())
    if escaped:
        planes += [reader.plane(escaped) for _ in range(width)]
    return escaped

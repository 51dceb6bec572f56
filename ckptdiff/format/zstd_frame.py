"""zstd frames of tables, target headers and reports (spec sections 2 and 5)."""

from __future__ import annotations

import zstandard

from ckptdiff.errors import FormatError
from ckptdiff.machine import machine_error

FRAME_LEVEL = 6
"""The level of zstd that tables and target headers are compressed at."""


def compress(content: bytes, prefix: bytes = b"") -> bytes:
    """One zstd frame that states its content size; ``prefix`` is a raw-content dictionary."""
    if not prefix:
        return zstandard.ZstdCompressor(level=FRAME_LEVEL, write_content_size=True).compress(content)
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        FRAME_LEVEL, dict_size=len(dictionary), source_size=len(content), write_content_size=True, write_dict_id=False
    )
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(content)


def decompress(stored: bytes, limit: int, where: str, prefix: bytes = b"") -> bytes:
    """The content of one zstd frame with nothing behind it.

    Args:
        stored: the frame, which must state its content size.
        limit: the most bytes of content, checked before anything is allocated.
        where: its path, for messages.
        prefix: a raw-content dictionary.

    Raises:
        FormatError: it is not such a frame. ResourceError: there is not memory enough.
    """
    try:
        size = zstandard.get_frame_parameters(stored).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN or size > limit:
            raise FormatError(f"{where}: a zstd frame must state a content size of at most {limit}")
        dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
        data = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise machine_error(error) or FormatError(f"{where}: bad zstd frame: {error}") from None
    if len(data) != size:
        raise FormatError(f"{where}: a zstd frame of {len(data)} bytes states {size}")
    return data

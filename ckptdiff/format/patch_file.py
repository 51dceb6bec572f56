"""A patch file (spec section 5): the only module that knows where things stand in one."""

from __future__ import annotations

import errno
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from ckptdiff.errors import FormatError, IntegrityError, cut
from ckptdiff.format.canonical import quote
from ckptdiff.format.digests import xxh128
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.safetensors import MAX_HEADER, Header, TensorInfo, header_json, parse_header, predicted_header, read_header
from ckptdiff.format.table import MAX_TABLE, TABLE_LEVEL, Entry, Table, decompress
from ckptdiff.io.parallel import CHUNK
from ckptdiff.io.source import ByteSource, read_bytes

KEY = "ckptdiff"
"""The key of ``__metadata__`` that makes a safetensors file a patch file."""
TABLE = "ckptdiff/table"
REPORT = "ckptdiff/report"
PAYLOADS = "ckptdiff/payloads"
MAX_STORED_TABLE = MAX_TABLE + (MAX_TABLE >> 6)
MAX_STORED_HEADER = MAX_HEADER + (MAX_HEADER >> 6)
MAX_STORED_REPORT = 1 << 24


def is_patch_header(header: Header) -> bool:
    """Whether a safetensors file is a patch file."""
    return KEY in (header.metadata or {})


def _header_tensor(target: str) -> str:
    return f"ckptdiff/header/{target.rpartition('/')[2]}"


def _heads(metadata: Metadata) -> dict[str, tuple[bytes, str, int]]:
    """The tensors before the payloads, in the order of their data: digest, what to call it, and the most bytes it may have."""
    heads = {
        TABLE: (metadata.table, "its table", MAX_STORED_TABLE),
        _header_tensor(metadata.target_path): (metadata.header, "the target's header", MAX_STORED_HEADER),
    }
    if metadata.report is not None:
        heads[REPORT] = (metadata.report, "its report", MAX_STORED_REPORT)
    return heads


def _members(metadata: Metadata, heads: Sequence[bytes], entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """Names and sizes of a patch file's tensors, in the order of their data."""
    return [*zip(_heads(metadata), map(len, heads), strict=True), (PAYLOADS, sum(entry.payload_size for entry in entries))]


def _container_header(metadata: bytes, members: Sequence[tuple[str, int]]) -> bytes:
    first = [("__metadata__", f'{{"{KEY}":{quote(metadata.decode())}}}')]
    return header_json(first, ((name, "U8", [size], size) for name, size in members))


def _rows(entries: Sequence[Entry]) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(entry.name, entry.dtype, entry.shape, entry.nbytes) for entry in entries]


def _laid_out(entries: Sequence[Entry]) -> tuple[TensorInfo, ...]:
    """The tensors of the predicted header."""
    ends = itertools.accumulate((entry.nbytes for entry in entries), initial=0)
    return tuple(TensorInfo(e.name, e.dtype, e.shape, begin, begin + e.nbytes) for e, begin in zip(entries, ends, strict=False))


# --- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spooled:
    """A patch file but for its metadata: its table, the target's header, a report, and where each payload lies in the spool."""

    table: Table
    header: bytes
    report: bytes | None
    spool: BinaryIO
    offsets: dict[str, int]


def encode_target_header(raw: bytes, entries: Sequence[Entry]) -> bytes:
    """The stored form of a target file's header (spec 5.2)."""
    prefix = zstandard.ZstdCompressionDict(predicted_header(_rows(entries)), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        TABLE_LEVEL, dict_size=len(prefix), source_size=len(raw), write_content_size=True, write_dict_id=False
    )
    return zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(raw)


@dataclass(frozen=True, slots=True)
class Written:
    """A written patch file: size in bytes, SHA-256, its metadata's digest, and decoded bytes of table and header together."""

    size: int
    sha256: str
    digest: bytes
    described: int


def write_patch_file(out: BinaryIO, metadata: Metadata, parts: Spooled) -> Written:
    """Write one patch file; ``metadata`` comes without digests."""
    table, header = parts.table.to_bytes(), encode_target_header(parts.header, parts.table.entries)
    report = None if parts.report is None else xxh128(parts.report)
    metadata = replace(metadata, table=xxh128(table), header=xxh128(header), report=report)
    heads = [table, header] if parts.report is None else [table, header, parts.report]
    sealed = metadata.to_bytes()
    raw = _container_header(sealed, _members(metadata, heads, parts.table.entries))
    sha, size = hashlib.sha256(), 0
    for piece in _pieces(raw, heads, parts):
        out.write(piece)
        sha.update(piece)
        size += len(piece)
    return Written(size, sha.hexdigest(), Metadata.digest_of(sealed), _described(table, parts.header))


def _described(table: bytes, header: bytes) -> int:
    """Decoded bytes of a stored table and a header."""
    return int(zstandard.frame_content_size(table)) + len(header)


def _pieces(raw: bytes, heads: Sequence[bytes], parts: Spooled) -> Iterator[bytes]:
    yield len(raw).to_bytes(8, "little") + raw
    yield from heads
    for entry in parts.table.entries:
        if entry.has_payload:
            parts.spool.seek(parts.offsets[entry.name])
            left = entry.payload_size
            while left:
                piece = parts.spool.read(min(left, CHUNK))
                if not piece:
                    raise OSError(errno.EIO, "the spooled payloads are gone")
                left -= len(piece)
                yield piece


# --- reading -------------------------------------------------------------------------------------------------------


class PatchFile:
    """An open patch file whose header, metadata, table and target header have been read and checked (spec 10, step 1).

    ``metadata``, ``table``, ``header`` (the target file's) and ``report`` (as stored) are what a caller reads; payloads stay on the disk.
    ``described``: decoded bytes of table and header together.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        try:
            container = read_header(source)
        except ValueError as error:
            raise FormatError(f"{source.name}: not a ckptdiff patch: {error}") from None
        if not is_patch_header(container):
            raise FormatError(f"{source.name}: not a ckptdiff patch, but a plain safetensors file; are base and patch the wrong way round?")
        text = (container.metadata or {})[KEY]
        self.metadata = Metadata.from_bytes(text.encode(), f"{source.name}: metadata")
        self.digest = Metadata.digest_of(text.encode())
        self._start = container.data_start
        heads = self._read_heads(container)
        self.table = Table.from_bytes(heads[0], f"{source.name}: table", self.metadata.target_size)
        if container.raw != _container_header(text.encode(), _members(self.metadata, heads, self.table.entries)):
            raise FormatError(f"{source.name}: its header is not the one that its table calls for")
        self.header = self._decode_header(heads[1])
        self.report = heads[2] if self.metadata.report is not None else None
        self.described = _described(heads[0], self.header.raw)
        ends = itertools.accumulate((e.payload_size for e in self.table.entries), initial=self._start + sum(map(len, heads)))
        self.offsets = {entry.name: begin for entry, begin in zip(self.table.entries, ends, strict=False)}
        self._begins: dict[str, npt.NDArray[np.int64]] = {}
        if self.table.totals != self.metadata.totals:
            raise FormatError(f"{source.name}: its totals do not agree with its table")
        needs_base = self.table.removed or any(entry.base_name is not None for entry in self.table.entries)
        if needs_base and self.metadata.base_scope is None:
            raise FormatError(f"{source.name}: its table needs a base, but its metadata names no scope of it")

    def _read_heads(self, container: Header) -> list[bytes]:
        """What stands before the payloads, read and checked."""
        heads, where = _heads(self.metadata), self.source.name
        tensors = container.tensors[: len(heads)]
        if [tensor.name for tensor in tensors] != list(heads):
            raise FormatError(f"{where}: expected the tensors {' and '.join(heads)} first")
        for tensor in tensors:
            if tensor.nbytes > heads[tensor.name][2]:
                raise FormatError(f"{where}: {tensor.name} has {tensor.nbytes} bytes, expected at most {heads[tensor.name][2]}")
        data = [read_bytes(self.source, container.data_start + tensor.begin, tensor.nbytes) for tensor in tensors]
        for part, (expected, what, _) in zip(data, heads.values(), strict=True):
            found = xxh128(part)
            if found != expected:
                raise IntegrityError(
                    f"{where}: {what} has the digest {found.hex()}, expected {expected.hex()}: corrupted? fetch the patch again"
                )
        return data

    def _decode_header(self, stored: bytes) -> Header:
        where = f"{self.source.name}: target header"
        entries = self.table.entries
        predicted = predicted_header(_rows(entries))
        raw = decompress(stored, MAX_HEADER, where, predicted)
        if raw == predicted and all(entry.name != "__metadata__" for entry in entries):
            return self._checked(Header(raw, {"format": "pt"}, _laid_out(entries)), where)
        try:
            header = parse_header(raw, sum(entry.nbytes for entry in entries))
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from None
        if len(header.tensors) != len(entries) or any(
            (t.name, t.dtype, t.shape) != (e.name, e.dtype, e.shape) for t, e in zip(header.tensors, entries, strict=True)
        ):
            raise FormatError(f"{where}: its tensors are not those of the table")
        places = zip(entries, header.tensors, strict=True)  # names and shapes stand in memory once
        tensors = tuple(TensorInfo(e.name, e.dtype, e.shape, t.begin, t.end) for e, t in places)
        return self._checked(replace(header, tensors=tensors), where)

    def _checked(self, header: Header, where: str) -> Header:
        size = header.data_start + header.data_size
        if size != self.metadata.target_size:
            raise FormatError(f"{where}: with its tensors it makes {size} bytes, expected {self.metadata.target_size}")
        return header

    def read_blocks(self, entry: Entry, first: int, last: int) -> list[memoryview]:
        """The coded forms of blocks ``first`` to ``last`` - 1 of an entry."""
        sizes = entry.blocks[first:last]
        begins = self._begins.get(entry.name)
        if begins is None:
            begins = self._begins[entry.name] = np.cumsum([0, *entry.blocks], dtype=np.int64)
        data = memoryview(read_bytes(self.source, self.offsets[entry.name] + int(begins[first]), sum(sizes)))
        views, position = [], 0
        for size in sizes:
            views.append(data[position : position + size])
            position += size
        return views

    def payload_error(self, entry: Entry) -> IntegrityError | None:
        """What is wrong with an entry's payload, if it does not have its digest."""
        hasher, done = xxhash.xxh3_64(), 0
        while done < entry.payload_size:
            count = min(CHUNK, entry.payload_size - done)
            hasher.update(read_bytes(self.source, self.offsets[entry.name] + done, count))
            done += count
        if hasher.digest() == entry.payload_digest:
            return None
        return IntegrityError(
            f"{self.source.name}: tensor {cut(entry.name)}: its payload has the digest {hasher.hexdigest()}, "
            f"expected {entry.payload_digest.hex()}: corrupted? fetch the patch again"
        )

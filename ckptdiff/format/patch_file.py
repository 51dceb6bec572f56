"""A patch file (spec section 5). Only this module knows where things stand in one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import zstandard

from ckptdiff.errors import FormatError, IntegrityError
from ckptdiff.format import zstd_frame
from ckptdiff.format.canonical import quote
from ckptdiff.format.digests import xxh128
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.payloads import Payloads
from ckptdiff.format.safetensors import MAX_HEADER, Header, header_json, parse_header, predicted_header, read_header
from ckptdiff.format.table import MAX_TABLE, Table
from ckptdiff.format.tensor_type import TensorInfo
from ckptdiff.io.source import ByteSource, read_bytes

METADATA_KEY = "ckptdiff"
"""The key of ``__metadata__`` that makes a safetensors file a patch file."""
TABLE_NAME = "ckptdiff/table"
REPORT_NAME = "ckptdiff/report"
PAYLOADS_NAME = "ckptdiff/payloads"
"""Names of the tensors of a patch file; that of the target's header: :func:`_header_name`."""
MAX_STORED_TABLE = MAX_TABLE + (MAX_TABLE >> 6)
"""Limit of the frame of a table in bytes: a little more than the table, as what does not compress takes."""
MAX_STORED_HEADER = MAX_HEADER + (MAX_HEADER >> 6)
"""The same of a target header."""
MAX_STORED_REPORT = 1 << 24
"""Limit of the frame of a report in bytes."""


def is_patch_header(header: Header) -> bool:
    """Whether a safetensors file is a patch file."""
    return METADATA_KEY in (header.metadata or {})


def _header_name(target: str) -> str:
    return f"ckptdiff/header/{target.rpartition('/')[2]}"


def _front_tensors(metadata: Metadata) -> dict[str, tuple[bytes, str, int]]:
    """The tensors before the payloads, in the order of their data: digest, what messages call it, and the limit of its bytes."""
    front = {
        TABLE_NAME: (metadata.table, "its table", MAX_STORED_TABLE),
        _header_name(metadata.target_path): (metadata.header, "the target's header", MAX_STORED_HEADER),
    }
    if metadata.report is not None:
        front[REPORT_NAME] = (metadata.report, "its report", MAX_STORED_REPORT)
    return front


def _all_tensors(metadata: Metadata, front: Sequence[bytes], table: Table) -> list[tuple[str, int]]:
    """Names and sizes of a patch file's tensors, in the order of their data."""
    return [*zip(_front_tensors(metadata), map(len, front), strict=True), (PAYLOADS_NAME, sum(table.columns.payloads))]


def _container_header(metadata: bytes, tensors: Sequence[tuple[str, int]]) -> bytes:
    """The header of the patch file itself, given its metadata and the names and sizes of its tensors."""
    first = [("__metadata__", f'{{"{METADATA_KEY}":{quote(metadata.decode())}}}')]
    return header_json(first, ((name, "U8", [size], size) for name, size in tensors))


def _predicted_header(table: Table) -> bytes:
    """The header that common writers would give the target file (spec 5.2)."""
    columns = table.columns
    dtypes, shapes = [type_.dtype for type_ in columns.types], [type_.shape for type_ in columns.types]
    return predicted_header(zip(columns.names, dtypes, shapes, columns.nbytes, strict=True))


def _laid_out(table: Table) -> tuple[TensorInfo, ...]:
    """The tensors of the predicted header, which lie end to end."""
    sizes = table.columns.nbytes
    rows = zip(table.columns.names, table.columns.types, itertools.accumulate(sizes, initial=0), sizes, strict=False)
    return tuple(TensorInfo(name, type_.dtype, type_.shape, begin, begin + size) for name, type_, begin, size in rows)


# --- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PatchParts:
    """What a patch file is written from, beside its metadata."""

    table: Table
    header: bytes
    """The target file's header, padding included."""
    report: bytes | None
    """The report's frame, if there is one."""
    payload: Iterable[bytes]
    """The payloads of all entries, in the table's order, piece by piece."""


def encode_target_header(raw: bytes, table: Table) -> bytes:
    """The stored form of a target file's header (spec 5.2)."""
    return zstd_frame.compress(raw, _predicted_header(table))


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A patch file that is written."""

    size: int
    """Bytes."""
    sha256: str
    digest: bytes
    """The digest in its metadata, 16 bytes."""
    described: int
    """Bytes of table and target header together, decoded: a reader limits their sum over a folder."""


class Output(Protocol):
    """What a patch file is written to: a file, or an object of a store."""

    def write(self, data: bytes, /) -> object:
        """Write behind what was written before."""


def write_patch_file(out: Output, metadata: Metadata, parts: PatchParts) -> WrittenFile:
    """Write one patch file; its metadata is given without the digests of its parts."""
    table, header = parts.table.to_bytes(), encode_target_header(parts.header, parts.table)
    report = None if parts.report is None else xxh128(parts.report)
    metadata = replace(metadata, table=xxh128(table), header=xxh128(header), report=report)
    front = [table, header] if parts.report is None else [table, header, parts.report]
    sealed = metadata.to_bytes()
    raw = _container_header(sealed, _all_tensors(metadata, front, parts.table))
    sha, size = hashlib.sha256(), 0
    for piece in _pieces(raw, front, parts):
        out.write(piece)
        sha.update(piece)
        size += len(piece)
    return WrittenFile(size, sha.hexdigest(), Metadata.digest_of(sealed), _described(table, parts.header))


def _described(table: bytes, header: bytes) -> int:
    """Bytes of a stored table, once it is decoded, and of a header."""
    return int(zstandard.frame_content_size(table)) + len(header)


def _pieces(raw: bytes, front: Sequence[bytes], parts: PatchParts) -> Iterator[bytes]:
    """The bytes of a patch file, piece by piece."""
    yield len(raw).to_bytes(8, "little") + raw
    yield from front
    yield from parts.payload


# --- reading -------------------------------------------------------------------------------------------------------


class PatchFile:
    """An open patch file whose header, metadata, table and target header have been read and checked (spec 10, step 1).

    Attributes:
        source: the file.
        metadata: as read.
        digest: the digest in the metadata.
        table: as read.
        report: the report's frame, if there is one.
        payloads: the payloads, which stay on the disk until they are asked for.
        described: bytes of table and target header together, decoded.
    """

    def __init__(self, source: ByteSource) -> None:
        """Read and check the file.

        Raises:
            FormatError, UnsupportedError, IntegrityError: for the first rule that is broken.
        """
        self.source = source
        try:
            container = read_header(source)
        except ValueError as error:
            raise FormatError(f"{source.name}: not a ckptdiff patch: {error}") from None
        if not is_patch_header(container):
            raise FormatError(f"{source.name}: not a ckptdiff patch, but a plain safetensors file; give what ckptdiff make wrote")
        text = (container.metadata or {})[METADATA_KEY]
        self.metadata = Metadata.from_bytes(text.encode(), f"{source.name}: metadata")
        self.digest = Metadata.digest_of(text.encode())
        front = self._read_front(container)
        self.table = Table.from_bytes(front[0], f"{source.name}: table", self.metadata.target_size)
        if container.raw != _container_header(text.encode(), _all_tensors(self.metadata, front, self.table)):
            raise FormatError(f"{source.name}: its header is not the one that its table calls for")
        self._header, self._parsed = self._decode_header(front[1])
        self.report = front[2] if self.metadata.report is not None else None
        self.described = _described(front[0], self._header)
        self.payloads = Payloads(source, self.table.columns, container.data_start + sum(map(len, front)))
        totals = self.table.totals
        if totals != self.metadata.totals:
            raise FormatError(f"{source.name}: its totals do not agree with its table")
        needs_base = self.table.removed or totals.same or totals.delta
        if needs_base and self.metadata.base_scope is None:
            raise FormatError(f"{source.name}: its table needs a base, but its metadata names no scope of it")

    @cached_property
    def header(self) -> Header:
        """The target file's header."""
        return self._parsed or Header(self._header, {"format": "pt"}, _laid_out(self.table))

    def _read_front(self, container: Header) -> list[bytes]:
        """The tensors before the payloads, as stored, with a check of their sizes and digests."""
        front, where = _front_tensors(self.metadata), self.source.name
        tensors = container.tensors[: len(front)]
        if [tensor.name for tensor in tensors] != list(front):
            raise FormatError(f"{where}: expected the tensors {' and '.join(front)} first")
        for tensor in tensors:
            if tensor.nbytes > front[tensor.name][2]:
                raise FormatError(f"{where}: {tensor.name} has {tensor.nbytes} bytes, expected at most {front[tensor.name][2]}")
        data = [read_bytes(self.source, container.data_start + tensor.begin, tensor.nbytes) for tensor in tensors]
        for part, (expected, what, _) in zip(data, front.values(), strict=True):
            digest = xxh128(part)
            if digest != expected:
                raise IntegrityError(
                    f"{where}: {what} has the digest {digest.hex()}, expected {expected.hex()}: corrupted? fetch the patch again"
                )
        return data

    def _decode_header(self, stored: bytes) -> tuple[bytes, Header | None]:
        """The target file's header, which must hold the tensors of the table: its bytes, and, unless predicted, what they say."""
        where, sizes = f"{self.source.name}: target header", self.table.columns.nbytes
        predicted = _predicted_header(self.table)
        raw = zstd_frame.decompress(stored, MAX_HEADER, where, predicted)
        header = None
        if raw != predicted or "__metadata__" in self.table.columns.names:
            header = self._parsed_header(raw, sum(sizes), where)
        size = 8 + len(raw) + sum(sizes)
        if size != self.metadata.target_size:
            raise FormatError(f"{where}: with its tensors it makes {size} bytes, expected {self.metadata.target_size}")
        return raw, header

    def _parsed_header(self, raw: bytes, data_size: int, where: str) -> Header:
        """What a header says; raises FormatError unless its tensors are those of the table."""
        try:
            header = parse_header(raw, data_size)
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from None
        names, types = self.table.columns.names, self.table.columns.types
        if len(header.tensors) != len(names) or any(
            (t.name, t.dtype, t.shape) != (name, *type_[:2]) for t, name, type_ in zip(header.tensors, names, types, strict=True)
        ):
            raise FormatError(f"{where}: its tensors are not those of the table")
        rows = zip(header.tensors, names, types, strict=True)  # the table's names and shapes, so that each stands in memory once
        return replace(header, tensors=tuple(TensorInfo(name, type_.dtype, type_.shape, t.begin, t.end) for t, name, type_ in rows))

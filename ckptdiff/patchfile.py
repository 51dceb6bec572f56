"""The container (spec sections 5 and 9): the only module that knows where things stand in a patch."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import xxhash
import zstandard

from ckptdiff.canonical import quote
from ckptdiff.digests import identity, xxh128
from ckptdiff.errors import FormatError, IntegrityError
from ckptdiff.manifest import MAX_INDEX, FileRef, Index, Metadata, OtherFile
from ckptdiff.parallel import CHUNK
from ckptdiff.stfile import MAX_HEADER, ByteSource, Header, LocalFile, header_json, parse_header, predicted_header, read_bytes, read_header
from ckptdiff.table import MAX_TABLE, TABLE_LEVEL, Entry, Table, Totals, decompress

INDEX_NAME = "ckptdiff.json"
TABLE = "ckptdiff/table"
PAYLOADS = "ckptdiff/payloads"
MAX_STORED_TABLE = MAX_TABLE + (MAX_TABLE >> 6)
MAX_STORED_HEADER = MAX_HEADER + (MAX_HEADER >> 6)


def _header_tensor(target: str) -> str:
    return f"ckptdiff/header/{target.rpartition('/')[2]}"


def _members(metadata: Metadata, table_size: int, header_size: int, entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """Names and sizes of a patch file's tensors, in the order of their data."""
    payloads = sum(entry.payload_size for entry in entries)
    return [(TABLE, table_size), (_header_tensor(metadata.target.path), header_size), (PAYLOADS, payloads)]


def _container_header(metadata: bytes, members: Sequence[tuple[str, int]]) -> bytes:
    first = [("__metadata__", f'{{"ckptdiff":{quote(metadata.decode())}}}')]
    return header_json(first, ((name, "U8", [size], size) for name, size in members))


def _rows(entries: Sequence[Entry]) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(entry.name, entry.dtype, entry.shape, entry.nbytes) for entry in entries]


# --- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spooled:
    """A patch file but for its metadata: its table, the target's header, and where each payload lies in the spool."""

    table: Table
    header: bytes
    spool: BinaryIO
    offsets: dict[str, int]


def encode_target_header(raw: bytes, entries: Sequence[Entry]) -> bytes:
    """The stored form of a target file's header (spec 5.2)."""
    prefix = zstandard.ZstdCompressionDict(predicted_header(_rows(entries)), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        TABLE_LEVEL, dict_size=len(prefix), source_size=len(raw), write_content_size=True, write_dict_id=False
    )
    return zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(raw)


def write_patch_file(path: Path, metadata: Metadata, parts: Spooled) -> tuple[FileRef, bytes]:
    """Write one patch file; ``metadata`` comes without digests. Returns size and SHA-256, and the metadata's digest."""
    table, header = parts.table.to_bytes(), encode_target_header(parts.header, parts.table.entries)
    sealed = replace(metadata, table=xxh128(table), header=xxh128(header)).to_bytes()
    raw = _container_header(sealed, _members(metadata, len(table), len(header), parts.table.entries))
    sha = hashlib.sha256()
    with open(path, "wb") as out:
        for piece in _pieces(raw, table, header, parts):
            out.write(piece)
            sha.update(piece)
        size = out.tell()
    return FileRef(path=path.name, size=size, sha256=sha.hexdigest()), Metadata.digest_of(sealed)


def _pieces(raw: bytes, table: bytes, header: bytes, parts: Spooled) -> Iterator[bytes]:
    yield len(raw).to_bytes(8, "little") + raw + table + header
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

    ``metadata``, ``table`` and ``header`` (the target file's) are what a caller reads; payloads stay on the disk.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        try:
            container = read_header(source)
        except ValueError as error:
            raise FormatError(f"{source.name}: not a ckptdiff patch: {error}") from None
        text = (container.metadata or {}).get("ckptdiff")
        if text is None:
            raise FormatError(f"{source.name}: not a ckptdiff patch, but a plain safetensors file; are base and patch the wrong way round?")
        self.metadata = Metadata.from_bytes(text.encode(), f"{source.name}: metadata")
        self.digest = Metadata.digest_of(text.encode())
        self._start = container.data_start
        names = [TABLE, _header_tensor(self.metadata.target.path)]
        if [tensor.name for tensor in container.tensors[:2]] != names:
            raise FormatError(f"{source.name}: expected the tensors {names[0]} and {names[1]} first")
        for tensor, limit in zip(container.tensors[:2], (MAX_STORED_TABLE, MAX_STORED_HEADER), strict=True):
            if tensor.nbytes > limit:
                raise FormatError(f"{source.name}: {tensor.name} has {tensor.nbytes} bytes, expected at most {limit}")
        table, header = (self._read(tensor.begin, tensor.nbytes) for tensor in container.tensors[:2])
        self._check_digest(table, self.metadata.table, "its table")
        self._check_digest(header, self.metadata.header, "the target's header")
        self.table = Table.from_bytes(table, f"{source.name}: table")
        members = _members(self.metadata, len(table), len(header), self.table.entries)
        if container.raw != _container_header(text.encode(), members):
            raise FormatError(f"{source.name}: its header is not the one that its table calls for")
        self.header = self._decode_header(header)
        ends = itertools.accumulate((e.payload_size for e in self.table.entries), initial=self._start + len(table) + len(header))
        self.offsets = {entry.name: begin for entry, begin in zip(self.table.entries, ends, strict=False)}
        if self.table.totals != self.metadata.totals:
            raise FormatError(f"{source.name}: its totals do not agree with its table")
        needs_base = self.table.removed or any(entry.base_name is not None for entry in self.table.entries)
        if needs_base and self.metadata.base_scope is None:
            raise FormatError(f"{source.name}: its table needs a base, but its metadata names no scope of it")

    def _read(self, begin: int, size: int) -> bytes:
        return read_bytes(self.source, self._start + begin, size)

    def _check_digest(self, data: bytes, expected: bytes, what: str) -> None:
        found = xxh128(data)
        if found != expected:
            raise IntegrityError(
                f"{self.source.name}: {what} has the digest {found.hex()}, expected {expected.hex()}: corrupted? fetch the patch again"
            )

    def _decode_header(self, stored: bytes) -> Header:
        where = f"{self.source.name}: target header"
        entries = self.table.entries
        raw = decompress(stored, MAX_HEADER, where, predicted_header(_rows(entries)))
        try:
            header = parse_header(raw, sum(entry.nbytes for entry in entries))
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from None
        if [(t.name, t.dtype, t.shape) for t in header.tensors] != [(e.name, e.dtype, e.shape) for e in entries]:
            raise FormatError(f"{where}: its tensors are not those of the table")
        if header.data_start + header.data_size != self.metadata.target.size:
            raise FormatError(
                f"{where}: with its tensors it makes {header.data_start + header.data_size} bytes, expected {self.metadata.target.size}"
            )
        return header

    def read_blocks(self, entry: Entry, first: int, last: int) -> list[memoryview]:
        """The coded forms of blocks ``first`` to ``last`` - 1 of an entry."""
        sizes = entry.blocks[first:last]
        data = memoryview(read_bytes(self.source, self.offsets[entry.name] + sum(entry.blocks[:first]), sum(sizes)))
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
            f"{self.source.name}: tensor {entry.name}: its payload has the digest {hasher.hexdigest()}, "
            f"expected {entry.payload_digest.hex()}: corrupted? fetch the patch again"
        )


@dataclass(slots=True)
class Patch:
    """An open patch: one file, or a folder with its ``index``; ``entries`` maps (scope, name) of target tensors."""

    path: Path
    index: Index | None
    files: list[PatchFile]
    entries: dict[tuple[str, str], tuple[PatchFile, Entry]] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = {(file.metadata.target_scope, e.name): (file, e) for file in self.files for e in file.table.entries}
        if len(self.entries) != sum(len(file.table.entries) for file in self.files):
            raise FormatError(f"{self.path}: two of its shards hold the same tensor of one scope")
        self._check_copies()
        self._check_removed()
        self._check_identity()

    def _check_copies(self) -> None:
        for (scope, name), (file, entry) in self.entries.items():
            if entry.kind == "copy":
                found = self.entries.get((scope, entry.of or ""))
                if not found or found[1].kind == "copy" or (found[1].dtype, found[1].shape) != (entry.dtype, entry.shape):
                    raise FormatError(f"{file.source.name}: tensor {name}: it cannot be a copy of {quote(str(entry.of)[:80])}")

    def _check_removed(self) -> None:
        used = {(file.metadata.target_scope, name) for file in self.files for e in file.table.entries for name in (e.name, e.base_name)}
        seen: dict[str, str | None] = {}
        for file in self.files:
            scope, removed = file.metadata.target_scope, file.table.removed
            if removed and scope in seen:
                raise FormatError(f"{file.source.name}: only the first file of a scope may list removed tensors")
            if seen.setdefault(scope, file.metadata.base_scope) != file.metadata.base_scope:
                raise FormatError(f"{file.source.name}: its scope has two base scopes, {seen[scope]} and {file.metadata.base_scope}")
            for name in removed:
                if (scope, name) in used:
                    raise FormatError(f"{file.source.name}: the tensor {name} is listed as removed, but is in the target, or a base")

    def _check_identity(self) -> None:
        """A file of a folder, opened alone, lacks what the identity is made of."""
        if self.index is None and self.files[0].metadata.base_files is None:
            return
        made = {(scope, e.name): self.entries[scope, e.of][1] if e.of is not None else e for (scope, _), (_, e) in self.entries.items()}
        found = identity((scope, name, e.dtype, e.shape, e.digest) for (scope, name), e in made.items())  # a copy is what it is of
        if found != self.target_identity:
            raise FormatError(f"{self.path}: its tensors have the identity {found.hex()}, but it states {self.target_identity.hex()}")

    @property
    def paths(self) -> list[Path]:
        """The patch's own path and those of all its files."""
        return [self.path, *(Path(file.source.name) for file in self.files), *(self.path / other.member for other in self.others)]

    @property
    def base_identity(self) -> bytes:
        return self.index.base_identity if self.index else self.files[0].metadata.base_identity

    @property
    def target_identity(self) -> bytes:
        return self.index.target_identity if self.index else self.files[0].metadata.target_identity

    @property
    def base_scopes(self) -> set[str]:
        """The base scopes that the patch needs."""
        return {file.metadata.base_scope for file in self.files if file.metadata.base_scope is not None}

    @property
    def base_files(self) -> tuple[FileRef, ...]:
        return (self.index.base_files if self.index else self.files[0].metadata.base_files) or ()

    @property
    def others(self) -> tuple[OtherFile, ...]:
        return self.index.files if self.index else ()

    @property
    def totals(self) -> Totals:
        return sum((file.table.totals for file in self.files), Totals())

    @property
    def output_size(self) -> int:
        """Bytes of the rebuilt checkpoint."""
        return sum(file.metadata.target.size for file in self.files) + sum(other.size for other in self.others)

    @property
    def stored_size(self) -> int:
        """Bytes of the patch, all its files together."""
        size = sum(file.source.size for file in self.files) + sum(other.stored for other in self.others)
        return size + ((self.path / INDEX_NAME).stat().st_size if self.index else 0)


@contextmanager
def open_patch(path: str | os.PathLike[str]) -> Iterator[Patch]:
    """Open a patch file or folder and check all but its payloads (spec 10, step 1).

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
        FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch.
    """
    path = Path(path)
    with ExitStack() as stack:
        if not os.path.isdir(path):
            yield Patch(path, None, [_open_file(path, stack)])
            return
        index = _open_index(path)
        files = []
        for shard in index.shards:
            _check_member(path / shard.path, shard.size)
            file = _open_file(path / shard.path, stack)
            files.append(file)
            if file.digest != shard.digest:
                raise IntegrityError(f"{path / shard.path}: is not the file that {INDEX_NAME} lists: fetch the patch again")
            found = file.metadata
            if (found.target.path, found.base_identity, found.target_identity, found.base_files) != (
                shard.target,
                index.base_identity,
                index.target_identity,
                None,
            ):
                raise FormatError(f"{path / shard.path}: its metadata does not agree with {INDEX_NAME}")
        patch = Patch(path, index, files)
        _check_folder(patch, index)
        yield patch


def _open_file(path: Path, stack: ExitStack) -> PatchFile:
    file = LocalFile(path)
    stack.callback(file.close)
    return PatchFile(file)


def _open_index(folder: Path) -> Index:
    path = folder / INDEX_NAME
    if not os.path.isfile(path):
        swapped = "; are base and patch the wrong way round?" if any(folder.glob("*.safetensors")) else ""
        raise FormatError(f"{folder}: not a ckptdiff patch: it has no {INDEX_NAME}{swapped}")
    with ExitStack() as stack:
        file = LocalFile(path)
        stack.callback(file.close)
        if file.size > MAX_INDEX:
            raise FormatError(f"{path}: has {file.size} bytes, more than {MAX_INDEX}")
        return Index.from_bytes(read_bytes(file, 0, file.size), str(path))


def _check_folder(patch: Patch, index: Index) -> None:
    if patch.totals != index.totals:
        raise FormatError(f"{patch.path / INDEX_NAME}: its totals do not agree with its shards")
    for other in index.files:
        if other.kind != "same":
            _check_member(patch.path / other.member, other.stored)


def _check_member(path: Path, size: int) -> None:
    if not os.path.isfile(path):
        raise FormatError(f"{path}: is missing: fetch the patch again")
    if path.stat().st_size != size:
        raise IntegrityError(f"{path}: has {path.stat().st_size} bytes, expected {size}: fetch the patch again")

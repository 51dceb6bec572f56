"""The files of a checkpoint that hold no weights (spec section 9): their paths, and how they are encoded and rebuilt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import IO, BinaryIO, Protocol, cast

import xxhash
import zstandard

from ckptdiff.codecs.planes import ZSTD_MAGIC
from ckptdiff.errors import BaseMismatchError, CheckpointError, CkptdiffError, FormatError, IntegrityError
from ckptdiff.format import safe_paths
from ckptdiff.format.index import OtherFile
from ckptdiff.format.sealed import MAX_DELTA_FILE, MAX_FILE_WINDOW
from ckptdiff.io.parallel import READ_BYTES, sha256_file
from ckptdiff.io.places import Place, create_file, is_file, open_file, read_file
from ckptdiff.io.source import ByteSource, chunks, read_bytes
from ckptdiff.io.store_upload import StoreWriter
from ckptdiff.machine import machine_error

ZSTD_LEVEL = 19
ZSTD_LEVEL_MEDIUM_FILES = 9
ZSTD_LEVEL_LARGE_FILES = 3
"""Levels of zstd for small files, for other files that may have a prefix, and for those too large for one."""
SMALL_FILE = 1 << 21
"""Up to so many bytes, with its prefix, a file is small: the highest level takes a second and more for a MB of an index of tensors."""
MAX_FRAME_HEADER = 18
"""Bytes of the longest zstd frame header (RFC 8878, section 3.1.1)."""
INPUT_BYTES = 1 << 12
"""How much of a frame is decompressed at once, which bounds how much it can decode to before its size is looked at."""


class HasFrames(Protocol):
    """A patch, or the stored forms of its files."""

    def where(self, other: OtherFile) -> str:
        """What messages call the stored form of a file."""

    def open_other(self, other: OtherFile) -> AbstractContextManager[ByteSource]:
        """Open the stored form of a file."""


def check_paths(names: Sequence[str], weights: Sequence[str]) -> None:
    """Raise CheckpointError for a path that a patch may not name: ``names`` are of other files, ``weights`` of weight files."""
    for name in (*names, *weights):
        reason = safe_paths.unsafe_reason(name)
        if reason:
            raise CheckpointError(f"{name!r}: the path {reason}: rename the file, or leave it out with --exclude")
    stored = safe_paths.conflicting_path(f"{name}.zst" for name in names)
    if stored:
        raise CheckpointError(f"{stored!r} would be a file and a folder in the patch: rename one, or leave it out with --exclude")


def encode(path: str, target: Place, base: Place | None, folder: Place) -> OtherFile:
    """Encode one file into ``folder``/files.

    Args:
        path: its path in the checkpoint.
        target: where it is.
        base: where the base's file of the same path is, to encode against; None if there is none.
        folder: the patch folder.
    """
    content, sha256, size = _read(target)
    before, base_sha256, base_size = _read(base) if base else (None, None, 0)
    if sha256 == base_sha256:
        return OtherFile(path=path, size=size, sha256=sha256, kind="same")
    delta = base is not None and 0 < base_size <= MAX_DELTA_FILE and size <= MAX_DELTA_FILE
    entry = OtherFile(path=path, size=size, sha256=sha256, kind="delta" if delta else "new", base_sha256=base_sha256 if delta else None)
    with create_file(folder / entry.stored_path, size) as out:
        sink = _HashedOutput(out)
        if content is not None:
            sink.write(_compressor(size, before if before and delta else b"").compress(content))
        else:
            with closing(open_file(target)) as source:
                zstandard.ZstdCompressor(level=ZSTD_LEVEL_LARGE_FILES).copy_stream(
                    cast(IO[bytes], _Input(source)), cast(IO[bytes], sink), size=size
                )
    return OtherFile(
        path=path,
        size=size,
        sha256=sha256,
        kind=entry.kind,
        base_sha256=entry.base_sha256,
        stored=sink.size,
        digest=sink.hasher.digest(),
    )


class _HashedOutput:
    """Writes to a file, and hashes and counts what it writes."""

    def __init__(self, out: BinaryIO | StoreWriter) -> None:
        self._out, self.hasher, self.size = out, xxhash.xxh3_128(), 0

    def write(self, data: bytes) -> int:
        self.hasher.update(data)
        self.size += len(data)
        return self._out.write(data)


class _Input:
    """A source as a file that is read from its beginning on."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._position = source, 0

    def read(self, size: int) -> bytes:
        data = read_bytes(self._source, self._position, min(size, self._source.size - self._position))
        self._position += len(data)
        return data


def _compressor(size: int, prefix: bytes) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL if size + len(prefix) <= SMALL_FILE else ZSTD_LEVEL_MEDIUM_FILES,
        source_size=size,
        dict_size=len(prefix),
        window_log=min(27, max(10, (size + len(prefix)).bit_length())),
        write_content_size=True,
        write_dict_id=False,
    )
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)


def _read(path: Place) -> tuple[bytes | None, str, int]:
    """A file's content, its SHA-256 and its size; of one that is too large to be coded against another, no content."""
    with closing(open_file(path)) as file:
        if file.size > MAX_DELTA_FILE:
            return None, sha256_file(file), file.size
        content = read_bytes(file, 0, file.size)
        return content, hashlib.sha256(content).hexdigest(), file.size


def _hash(path: Place) -> tuple[str, int]:
    with closing(open_file(path)) as file:
        return sha256_file(file), file.size


def _digest(pieces: Iterable[bytes]) -> bytes:
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def stored_error(patch: HasFrames, other: OtherFile) -> IntegrityError | None:
    """The error of a stored frame without the size and digest that the index states; None if there is none."""
    if other.kind == "same":
        return None
    where = patch.where(other)
    try:
        with patch.open_other(other) as source:
            size, digest = source.size, _digest(chunks(source, READ_BYTES))
    except CheckpointError as error:
        return IntegrityError(f"{error}: fetch the patch again")
    if (size, digest) == (other.stored, other.digest):
        return None
    return IntegrityError(f"{where}: has the digest {digest.hex()}, expected {other.digest.hex()}: corrupted? fetch the patch again")


def rebuild(patch: HasFrames, other: OtherFile, base: Place | None, out: Place) -> None:
    """Write one file of the target to ``out``; ``base`` is the base's file of the same path.

    Raises:
        BaseMismatchError: the base's file is missing, or has another content.
        FormatError, IntegrityError: the stored frame is broken, or does not give the file that the index states.
    """
    error = base_error(other, base)
    if error:
        raise error
    with create_file(out, other.size) as sink:
        for piece in decode(patch, other, base):
            sink.write(piece)


def base_error(other: OtherFile, base: Place | None) -> CkptdiffError | None:
    """The error of a base without the file that ``other`` needs; None if it has it, or none is needed."""
    wanted = other.sha256 if other.kind == "same" else other.base_sha256
    if wanted is None:
        return None
    if base is None or not is_file(base):
        return BaseMismatchError(f"{other.path}: the base has no such file, which the patch needs (SHA-256 {wanted})")
    try:
        found, size = _hash(base)
    except CheckpointError as error:
        return error
    if other.kind == "delta" and size > MAX_DELTA_FILE:
        return FormatError(f"{other.path}: is encoded against a base file of {size} bytes, more than {MAX_DELTA_FILE}")
    if found != wanted:
        return BaseMismatchError(f"{base}: is not the file that the patch needs: its SHA-256 is {found}, expected {wanted}")
    return None


def decode(patch: HasFrames, other: OtherFile, base: Place | None) -> Iterator[bytes]:
    """The bytes of one file of the target, piece by piece.

    Raises:
        FormatError: the stored frame is broken.
        IntegrityError: the bytes do not have the size and SHA-256 that the index states. All pieces may have been given by then.
    """
    sha, size = hashlib.sha256(), 0
    for piece in _pieces(patch, other, base):
        size += len(piece)
        if size > other.size:
            raise IntegrityError(f"{other.path}: decodes to more than the {other.size} bytes of the index: do not trust this patch")
        sha.update(piece)
        yield piece
    if (size, sha.hexdigest()) != (other.size, other.sha256):
        raise IntegrityError(
            f"{other.path}: decodes to {size} bytes with SHA-256 {sha.hexdigest()}, expected {other.size} with {other.sha256}: "
            "fetch the patch again"
        )


def decoding_error(patch: HasFrames, other: OtherFile, base: Place | None) -> CkptdiffError | None:
    """The error of a stored file that does not decode to the file that the index states; None if it does."""
    try:
        for _ in decode(patch, other, base):
            pass
    except (FormatError, IntegrityError) as error:
        return error
    except CheckpointError as error:
        return IntegrityError(f"{error}: fetch the patch again")
    except OSError as error:
        return IntegrityError(f"{error.filename or patch.where(other)}: cannot be read: {error.strerror}: fetch the patch again")
    return None


def _pieces(patch: HasFrames, other: OtherFile, base: Place | None) -> Iterable[bytes]:
    if other.kind == "same":
        assert base is not None
        with closing(open_file(base)) as file:
            yield from chunks(file, READ_BYTES)
        return
    prefix = read_file(base) if other.kind == "delta" and base else b""
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    with patch.open_other(other) as source:
        where = patch.where(other)
        _check_frame(read_bytes(source, 0, min(MAX_FRAME_HEADER, source.size)), where)
        pieces = (piece[at : at + INPUT_BYTES] for piece in chunks(source, READ_BYTES) for at in range(0, len(piece), INPUT_BYTES))
        yield from _decompressed(pieces, dictionary, where)


def _check_frame(head: bytes, where: str) -> None:
    try:
        stated = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        raise FormatError(f"{where}: bad zstd frame: {error}") from None
    if not head.startswith(ZSTD_MAGIC) or stated.window_size > MAX_FILE_WINDOW or stated.dict_id:
        raise FormatError(f"{where}: expected a zstd frame with a window of at most {MAX_FILE_WINDOW} bytes and no dictionary id")


def _decompressed(pieces: Iterable[bytes], dictionary: zstandard.ZstdCompressionDict | None, where: str) -> Iterable[bytes]:
    """The content of exactly one frame, whose pieces have at most :data:`INPUT_BYTES`."""
    decoder = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=MAX_FILE_WINDOW).decompressobj()
    try:
        for piece in pieces:
            if decoder.eof:
                raise FormatError(f"{where}: bytes after its zstd frame")
            yield decoder.decompress(piece)
    except zstandard.ZstdError as error:
        raise machine_error(error) or FormatError(f"{where}: bad zstd frame: {error}") from None
    if not decoder.eof or decoder.unused_data:
        raise FormatError(f"{where}: expected one whole zstd frame")

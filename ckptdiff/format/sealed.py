"""Canonical JSON that holds its own digest: what the metadata of a patch file (spec 5.1) and the index of a folder (9) share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format import canonical
from ckptdiff.format.canonical import JsonObject, quoted
from ckptdiff.format.digests import xxh128
from ckptdiff.format.dtypes import MAX_FILE
from ckptdiff.format.fields import Fields, as_text
from ckptdiff.format.safe_paths import safe_path
from ckptdiff.format.table import check_sorted

VERSION = 1
"""The version of the format that is written and read."""
MAX_INDEX = 1 << 24
"""Limit of an index, and of a patch file's metadata, in bytes."""
MAX_INFO = 1 << 16
"""Limit of ``info`` in bytes of canonical JSON."""
MAX_REPO = 256
"""Limit of the name of a repo or revision in ``info``, in bytes."""
MAX_FILES = 1 << 15
"""Limit of the files that an index names, in all its lists together, or the metadata of a patch file."""
MAX_DELTA_FILE = 1 << 26
"""Limit of a file that is coded as a delta, and of its base, in bytes."""
MAX_FILE_WINDOW = 1 << 27
"""Limit of the window of a frame under ``files/`` in bytes."""
INFO_NAMES = {"base_repo", "base_revision", "target_repo", "target_revision"}
"""Known members of ``info`` that name a repo or revision."""


def short_text(value: Any, where: str, most: int) -> str:
    """A string of at most so many bytes; raises FormatError for anything else."""
    text = as_text(value, where)
    if len(text.encode()) > most:
        raise FormatError(f"{where}: has {len(text.encode())} bytes, expected at most {most}")
    return text


def seal(value: JsonObject) -> bytes:
    """Canonical JSON of an object with the member ``digest``, which covers all others.

    Raises:
        CheckpointError: it is larger, or names more files, than a reader accepts.
    """
    sealed = canonical.dumps({**value, "digest": xxh128(canonical.dumps(value)).hex()})
    lists = [value["base"].get("files", ()), *(value.get(key, ()) for key in ("shards", "files", "removed"))]
    info = len(canonical.dumps(value["info"]))
    if info > MAX_INFO:
        raise CheckpointError(
            f"the further names of tensors that share memory take {info} bytes, a patch has room for {MAX_INFO}: "
            "leave them out of the target"
        )
    if len(sealed) > MAX_INDEX or sum(map(len, lists)) > MAX_FILES:
        raise CheckpointError(
            f"a patch of {sum(map(len, lists))} files, which take {len(sealed)} bytes to name, expected at most {MAX_FILES} files and "
            f"{MAX_INDEX} bytes: leave files out with --exclude"
        )
    return sealed


def open_sealed(data: bytes, where: str, expected_format: str, known: str) -> Fields:
    """Read sealed JSON, and check structure, format, version, unknown members, digest and ``info``, in this order (spec 13).

    Args:
        data: the JSON.
        where: its path, for messages.
        expected_format: what the member ``format`` must be.
        known: names of the members beside those that every sealed object has, with spaces between.

    Raises:
        FormatError, UnsupportedError, IntegrityError: for the first rule that is broken.
    """
    if len(data) > MAX_INDEX:
        raise FormatError(f"{where}: has {len(data)} bytes, expected at most {MAX_INDEX}")
    value = canonical.load_object(data, where)
    if value.get("format") != expected_format:
        raise FormatError(f"{where}.format: expected {quoted(expected_format)}, found {cut(value.get('format'))}")
    version = value.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise FormatError(f"{where}.version: expected an integer")
    if version != VERSION:
        raise UnsupportedError(f"{where}: format version {version}, this ckptdiff reads {VERSION}: upgrade ckptdiff")
    members = Fields(value, where, f"digest format info version {known}")
    stated = members.hexadecimal("digest", 16)
    digest = xxh128(canonical.dumps({k: v for k, v in value.items() if k != "digest"}))
    if stated != digest:
        raise IntegrityError(f"{where}: its digest is {digest.hex()}, expected {stated.hex()}: corrupted? fetch it again")
    _check_info(members.object("info"), where)
    return members


def _check_info(info: JsonObject, where: str) -> None:
    """Check the size of ``info`` and its known members."""
    size = len(canonical.dumps(info))
    if size > MAX_INFO:
        raise FormatError(f"{where}.info: has {size} bytes, expected at most {MAX_INFO}")
    for key in INFO_NAMES & set(info):
        short_text(info[key], f"{where}.info.{key}", MAX_REPO)
    tied = info.get("tied", {})
    if not isinstance(tied, dict):
        raise FormatError(f"{where}.info.tied: expected an object, found {type(tied).__name__}")
    for name, kept in tied.items():
        as_text(kept, f"{where}.info.tied.{cut(name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A weight file of the base."""

    path: str
    size: int
    """Bytes."""
    sha256: str
    """In lower-case hexadecimal."""

    def to_json(self) -> JsonObject:
        """Its object in ``base.files``."""
        return {"path": self.path, "sha256": self.sha256, "size": self.size}

    @classmethod
    def read(cls, value: Any, where: str) -> FileRef:
        """Read an object of ``base.files``; raises FormatError and UnsupportedError."""
        f = Fields(value, where, "path sha256 size")
        return cls(
            path=safe_path(f.text("path"), f"{where}.path"), size=f.integer("size", high=MAX_FILE), sha256=f.hexadecimal("sha256", 32).hex()
        )


def read_files(parent: Fields) -> tuple[FileRef, ...]:
    """The member ``files`` of an object; raises FormatError unless it is sorted by path and has at most :data:`MAX_FILES`."""
    files = parent.array("files", FileRef.read)
    if len(files) > MAX_FILES:
        raise FormatError(f"{parent.where}.files: names {len(files)} files, expected at most {MAX_FILES}")
    check_sorted((file.path for file in files), f"{parent.where}.files")
    return files

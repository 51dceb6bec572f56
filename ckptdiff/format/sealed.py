"""Canonical JSON that carries its own digest: what metadata (spec 5.1) and index (9) share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format import canonical
from ckptdiff.format.canonical import Fields, JsonObject, quoted
from ckptdiff.format.digests import xxh128
from ckptdiff.format.dtypes import MAX_FILE
from ckptdiff.format.safe_paths import safe_path
from ckptdiff.format.table import check_sorted

VERSION = 1
MAX_INDEX = 1 << 24
"""Bytes of an index, and of a patch file's metadata."""
MAX_INFO = 1 << 16
MAX_REPO = 256
"""Bytes of the name of a repo or revision in ``info``."""
MAX_FILES = 1 << 15
"""Files that an index names, in all its lists together, or the metadata of a patch file."""
MAX_PREFIX = 1 << 26
MAX_WINDOW = 1 << 27
INFO = {"base_repo", "base_revision", "target_repo", "target_revision"}


def short_text(value: Any, where: str, most: int) -> str:
    """A string of at most so many bytes; raises FormatError for anything else."""
    text = canonical.as_text(value, where)
    if len(text.encode()) > most:
        raise FormatError(f"{where}: has {len(text.encode())} bytes, expected at most {most}")
    return text


def seal(value: JsonObject) -> bytes:
    """Canonical JSON with the member ``digest`` over all the rest; raises CheckpointError if a reader would not take so much."""
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
    """Check structure, format, version, unknown members and digest, in this order (spec 13)."""
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
    found = xxh128(canonical.dumps({k: v for k, v in value.items() if k != "digest"}))
    if stated != found:
        raise IntegrityError(f"{where}: its digest is {found.hex()}, expected {stated.hex()}: corrupted? fetch the patch again")
    info = members.object("info")
    size = len(canonical.dumps(info))
    if size > MAX_INFO:
        raise FormatError(f"{where}.info: has {size} bytes, expected at most {MAX_INFO}")
    for key in INFO & set(info):
        short_text(info[key], f"{where}.info.{key}", MAX_REPO)
    tied = info.get("tied", {})
    if not isinstance(tied, dict):
        raise FormatError(f"{where}.info.tied: expected an object, found {type(tied).__name__}")
    for name, kept in tied.items():
        canonical.as_text(kept, f"{where}.info.tied.{cut(name)}")
    return members


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file by path, size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str

    def to_json(self) -> JsonObject:
        return {"path": self.path, "sha256": self.sha256, "size": self.size}

    @classmethod
    def read(cls, value: Any, where: str) -> FileRef:
        f = Fields(value, where, "path sha256 size")
        return cls(
            path=safe_path(f.text("path"), f"{where}.path"), size=f.integer("size", high=MAX_FILE), sha256=f.hexadecimal("sha256", 32).hex()
        )


def read_files(parent: Fields) -> tuple[FileRef, ...]:
    """The member ``files`` of an object: sorted by path, at most :data:`MAX_FILES`."""
    files = parent.array("files", FileRef.read)
    if len(files) > MAX_FILES:
        raise FormatError(f"{parent.where}.files: names {len(files)} files, expected at most {MAX_FILES}")
    check_sorted((file.path for file in files), f"{parent.where}.files")
    return files

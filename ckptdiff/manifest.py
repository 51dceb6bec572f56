"""Metadata of a patch file (spec 5.1) and index of a patch folder (9): frozen dataclasses and their canonical JSON.

Reading is strict: every fault is one FormatError, UnsupportedError or IntegrityError that says where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ckptdiff import canonical, paths
from ckptdiff.canonical import Fields, JsonObject, quoted
from ckptdiff.digests import xxh128
from ckptdiff.dtypes import MAX_FILE
from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.table import Totals, check_sorted

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


def safe_path(path: Any, where: str) -> str:
    """A path that may be written below an output folder (spec 9); raises FormatError for any other."""
    text = canonical.as_text(path, where)
    reason = paths.unsafe_reason(text)
    if reason:
        raise FormatError(f"{where}: the path {quoted(text)} {reason}: do not trust this patch")
    return text


def _short(value: Any, where: str, most: int) -> str:
    """A string of at most so many bytes; raises FormatError for anything else."""
    text = canonical.as_text(value, where)
    if len(text.encode()) > most:
        raise FormatError(f"{where}: has {len(text.encode())} bytes, expected at most {most}")
    return text


def _sealed(value: JsonObject) -> bytes:
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


def _open_sealed(data: bytes, where: str, expected_format: str, known: str) -> Fields:
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
        _short(info[key], f"{where}.info.{key}", MAX_REPO)
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


def _read_files(parent: Fields) -> tuple[FileRef, ...]:
    files = parent.array("files", FileRef.read)
    if len(files) > MAX_FILES:
        raise FormatError(f"{parent.where}.files: names {len(files)} files, expected at most {MAX_FILES}")
    check_sorted((file.path for file in files), f"{parent.where}.files")
    return files


# --- metadata of a patch file --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What stands in a patch file's ``__metadata__`` (spec 5.1)."""

    base_identity: bytes
    base_scope: str | None
    base_files: tuple[FileRef, ...] | None
    target_path: str
    target_size: int
    target_sha256: str | None
    target_identity: bytes
    target_scope: str
    table: bytes = b""
    header: bytes = b""
    report: bytes | None = None
    totals: Totals
    info: JsonObject = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        base: JsonObject = {"identity": self.base_identity.hex(), "scope": self.base_scope}
        if self.base_files is not None:
            base["files"] = [file.to_json() for file in self.base_files]
        target: JsonObject = {
            "identity": self.target_identity.hex(),
            "path": self.target_path,
            "scope": self.target_scope,
            "size": self.target_size,
        }
        if self.target_sha256 is not None:
            target["sha256"] = self.target_sha256
        value: JsonObject = {
            "format": "ckptdiff",
            "version": VERSION,
            "base": base,
            "target": target,
            "table": self.table.hex(),
            "header": self.header.hex(),
            "totals": self.totals.to_json(),
            "info": self.info,
        }
        if self.report is not None:
            value["report"] = self.report.hex()
        return _sealed(value)

    @staticmethod
    def digest_of(sealed: bytes) -> bytes:
        """The digest that :meth:`to_bytes` wrote."""
        return bytes.fromhex(canonical.loads(sealed)["digest"])

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Metadata:
        f = _open_sealed(data, where, "ckptdiff", "base header report table target totals")
        base, target = f.child("base", "files identity scope"), f.child("target", "identity path scope sha256 size")
        if "scope" in base and base.value["scope"] is None:
            scope = None
        else:
            scope = _short(base.text("scope"), f"{where}.base.scope", paths.MAX_PATH)
        return cls(
            base_identity=base.hexadecimal("identity", 16),
            base_scope=scope,
            base_files=_read_files(base) if "files" in base else None,
            target_path=safe_path(target.text("path"), f"{where}.target.path"),
            target_size=target.integer("size", high=MAX_FILE),
            target_sha256=target.hexadecimal("sha256", 32).hex() if "sha256" in target else None,
            target_identity=target.hexadecimal("identity", 16),
            target_scope=_short(target.text("scope"), f"{where}.target.scope", paths.MAX_PATH),
            table=f.hexadecimal("table", 16),
            header=f.hexadecimal("header", 16),
            report=f.hexadecimal("report", 16) if "report" in f else None,
            totals=Totals.read(f),
            info=f.object("info"),
        )


# --- index of a patch folder ---------------------------------------------------------------------------------------


def shard_path(target: str) -> str:
    """Where a patch folder keeps the patch file of a weight file."""
    return f"patch/{target}"


def member_path(path: str) -> str:
    """Where a patch folder keeps what it stores of another file."""
    return f"files/{path}.zst"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """A patch file of a folder."""

    target: str
    size: int
    sha256: str
    digest: bytes

    @property
    def path(self) -> str:
        return shard_path(self.target)

    def to_json(self) -> JsonObject:
        return {"digest": self.digest.hex(), "path": self.path, "sha256": self.sha256, "size": self.size, "target": self.target}

    @classmethod
    def read(cls, value: Any, where: str) -> ShardRef:
        f = Fields(value, where, "digest path sha256 size target")
        target = safe_path(f.text("target"), f"{where}.target")
        if not target.endswith(".safetensors"):
            raise FormatError(f"{where}.target: {quoted(target)} is not a weight file")
        shard = cls(
            target=target,
            size=f.integer("size", high=MAX_FILE),
            sha256=f.hexadecimal("sha256", 32).hex(),
            digest=f.hexadecimal("digest", 16),
        )
        if f.text("path") != shard.path:
            raise FormatError(f"{where}.path: expected {quoted(shard.path)}, found {quoted(f.text('path'))}")
        return shard


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherFile:
    """A file of the target that holds no weights (spec 9)."""

    path: str
    size: int
    sha256: str
    kind: Literal["same", "new", "delta"]
    base_sha256: str | None = None
    stored: int = 0
    digest: bytes = b""

    @property
    def member(self) -> str:
        return member_path(self.path)

    def to_json(self) -> JsonObject:
        value: JsonObject = {"kind": self.kind, "path": self.path, "sha256": self.sha256, "size": self.size}
        if self.kind != "same":
            value |= {"stored": self.stored, "digest": self.digest.hex()}
        if self.kind == "delta":
            value["base_sha256"] = self.base_sha256
        return value

    @classmethod
    def read(cls, value: Any, where: str) -> OtherFile:
        f = Fields(value, where, "kind path sha256 size stored digest base_sha256")
        kind = f.kind({"same": "", "new": "stored digest", "delta": "stored digest base_sha256"}, "kind path sha256 size")
        path = safe_path(f.text("path"), f"{where}.path")
        if path.endswith(".safetensors"):
            raise FormatError(f"{where}.path: {quoted(path)} is a weight file, which belongs in a shard")
        stored = f.integer("stored", high=MAX_FILE) if kind != "same" else 0
        size = f.integer("size", high=MAX_PREFIX if kind == "delta" else MAX_FILE)
        return cls(
            path=path,
            size=size,
            sha256=f.hexadecimal("sha256", 32).hex(),
            kind=kind,
            base_sha256=f.hexadecimal("base_sha256", 32).hex() if kind == "delta" else None,
            stored=stored,
            digest=f.hexadecimal("digest", 16) if kind != "same" else b"",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """``ckptdiff.json`` of a patch folder (spec 9)."""

    base_identity: bytes
    base_files: tuple[FileRef, ...]
    target_identity: bytes
    shards: tuple[ShardRef, ...]
    files: tuple[OtherFile, ...]
    removed: tuple[str, ...]
    totals: Totals
    info: JsonObject = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return _sealed(
            {
                "format": "ckptdiff-index",
                "version": VERSION,
                "base": {"files": [file.to_json() for file in self.base_files], "identity": self.base_identity.hex()},
                "target": {"identity": self.target_identity.hex()},
                "shards": [shard.to_json() for shard in self.shards],
                "files": [file.to_json() for file in self.files],
                "removed": list(self.removed),
                "totals": self.totals.to_json(),
                "info": self.info,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Index:
        f = _open_sealed(data, where, "ckptdiff-index", "base files removed shards target totals")
        base = f.child("base", "files identity")
        index = cls(
            base_identity=base.hexadecimal("identity", 16),
            base_files=_read_files(base),
            target_identity=f.child("target", "identity").hexadecimal("identity", 16),
            shards=f.array("shards", ShardRef.read),
            files=f.array("files", OtherFile.read),
            removed=f.array("removed", safe_path),
            totals=Totals.read(f),
            info=f.object("info"),
        )
        named = sum(map(len, (index.base_files, index.shards, index.files, index.removed)))
        if named > MAX_FILES:
            raise FormatError(f"{where}: names {named} files, expected at most {MAX_FILES}")
        check_sorted((shard.target for shard in index.shards), f"{where}.shards")
        check_sorted((file.path for file in index.files), f"{where}.files")
        check_sorted(index.removed, f"{where}.removed")
        outputs = [shard.target for shard in index.shards] + [file.path for file in index.files]
        clash = paths.clash(outputs)
        if clash:
            raise FormatError(f"{where}: two outputs share the path {quoted(clash)}: do not trust this patch")
        clash = paths.clash(file.member for file in index.files if file.kind != "same")
        if clash:
            raise FormatError(f"{where}: {quoted(clash)} would be a file and a folder")
        if set(outputs) & set(index.removed):
            raise FormatError(f"{where}.removed: names the output {quoted(min(set(outputs) & set(index.removed)))}")
        return index

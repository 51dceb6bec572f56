"""The index of a patch folder (spec section 9): frozen dataclasses and their canonical JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ckptdiff.errors import FormatError
from ckptdiff.format.canonical import JsonObject, quoted
from ckptdiff.format.dtypes import MAX_FILE
from ckptdiff.format.entry import Totals
from ckptdiff.format.fields import Fields
from ckptdiff.format.safe_paths import conflicting_path, safe_path
from ckptdiff.format.sealed import MAX_DELTA_FILE, MAX_FILES, VERSION, FileRef, open_sealed, read_files, seal
from ckptdiff.format.table import check_sorted

INDEX_NAME = "ckptdiff.json"
"""The path of the index in a patch folder."""


def shard_path(target: str) -> str:
    """Where a patch folder keeps the patch file of a weight file."""
    return f"patch/{target}"


def other_file_path(path: str) -> str:
    """Where a patch folder keeps the frame of a file that holds no weights."""
    return f"files/{path}.zst"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """A patch file of a folder (spec 9)."""

    target: str
    """Path of the weight file that it rebuilds."""
    size: int
    """Bytes of the patch file."""
    sha256: str
    """SHA-256 of the patch file."""
    digest: bytes
    """The digest in the patch file's metadata, 16 bytes."""

    @property
    def path(self) -> str:
        """Path of the patch file in the folder."""
        return shard_path(self.target)

    def to_json(self) -> JsonObject:
        """Its object in ``shards``."""
        return {"digest": self.digest.hex(), "path": self.path, "sha256": self.sha256, "size": self.size, "target": self.target}

    @classmethod
    def read(cls, value: Any, where: str) -> ShardRef:
        """Read an object of ``shards``; raises FormatError and UnsupportedError."""
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
    """Path in the target, and in the base for the kinds ``same`` and ``delta``."""
    size: int
    """Bytes of the file."""
    sha256: str
    """SHA-256 of the file."""
    kind: Literal["same", "new", "delta"]
    base_sha256: str | None = None
    """SHA-256 of the base's file, for the kind ``delta``."""
    stored: int = 0
    """Bytes of the frame; 0 for the kind ``same``."""
    digest: bytes = b""
    """XXH3-128 of the frame, 16 bytes; empty for the kind ``same``."""

    @property
    def stored_path(self) -> str:
        """Path of the frame in the patch folder."""
        return other_file_path(self.path)

    def to_json(self) -> JsonObject:
        """Its object in ``files``."""
        value: JsonObject = {"kind": self.kind, "path": self.path, "sha256": self.sha256, "size": self.size}
        if self.kind != "same":
            value |= {"stored": self.stored, "digest": self.digest.hex()}
        if self.kind == "delta":
            value["base_sha256"] = self.base_sha256
        return value

    @classmethod
    def read(cls, value: Any, where: str) -> OtherFile:
        """Read an object of ``files``; raises FormatError and UnsupportedError."""
        f = Fields(value, where, "kind path sha256 size stored digest base_sha256")
        kind = f.kind({"same": "", "new": "stored digest", "delta": "stored digest base_sha256"}, "kind path sha256 size")
        path = safe_path(f.text("path"), f"{where}.path")
        if path.endswith(".safetensors"):
            raise FormatError(f"{where}.path: {quoted(path)} is a weight file, which belongs in a shard")
        stored = f.integer("stored", high=MAX_FILE) if kind != "same" else 0
        size = f.integer("size", high=MAX_DELTA_FILE if kind == "delta" else MAX_FILE)
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
    """Identity of the base checkpoint, 16 bytes."""
    base_files: tuple[FileRef, ...]
    """The base's weight files, sorted by path."""
    target_identity: bytes
    """Identity of the target checkpoint, 16 bytes."""
    shards: tuple[ShardRef, ...]
    """The patch files, sorted by target."""
    files: tuple[OtherFile, ...]
    """The target's files that hold no weights, sorted by path."""
    removed: tuple[str, ...]
    """Paths of the base's files that the target does not have, sorted."""
    totals: Totals
    """Sums over all shards."""
    info: JsonObject = field(default_factory=dict)
    """What a reader need not understand: where base and target came from."""

    def to_bytes(self) -> bytes:
        """The canonical JSON, with its digest; raises CheckpointError if a reader would not accept it."""
        return seal(
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
        """Read an index; raises FormatError, UnsupportedError or IntegrityError, for the first rule that is broken."""
        f = open_sealed(data, where, "ckptdiff-index", "base files removed shards target totals")
        base = f.child("base", "files identity")
        index = cls(
            base_identity=base.hexadecimal("identity", 16),
            base_files=read_files(base),
            target_identity=f.child("target", "identity").hexadecimal("identity", 16),
            shards=f.array("shards", ShardRef.read),
            files=f.array("files", OtherFile.read),
            removed=f.array("removed", safe_path),
            totals=Totals.read(f),
            info=f.object("info"),
        )
        index._check_paths(where)
        return index

    def _check_paths(self, where: str) -> None:
        """Raise FormatError unless the lists of files are sorted, within the limit, and agree with each other."""
        named = sum(map(len, (self.base_files, self.shards, self.files, self.removed)))
        if named > MAX_FILES:
            raise FormatError(f"{where}: names {named} files, expected at most {MAX_FILES}")
        check_sorted((shard.target for shard in self.shards), f"{where}.shards")
        check_sorted((file.path for file in self.files), f"{where}.files")
        check_sorted(self.removed, f"{where}.removed")
        outputs = [shard.target for shard in self.shards] + [file.path for file in self.files]
        shared = conflicting_path(outputs)
        if shared:
            raise FormatError(f"{where}: two outputs share the path {quoted(shared)}: do not trust this patch")
        shared = conflicting_path(file.stored_path for file in self.files if file.kind != "same")
        if shared:
            raise FormatError(f"{where}: {quoted(shared)} would be a file and a folder: do not trust this patch")
        if set(outputs) & set(self.removed):
            raise FormatError(f"{where}.removed: names the output {quoted(min(set(outputs) & set(self.removed)))}")

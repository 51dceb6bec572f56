"""The index of a patch folder (spec section 9): frozen dataclasses and their canonical JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ckptdiff.errors import FormatError
from ckptdiff.format.canonical import Fields, JsonObject, quoted
from ckptdiff.format.dtypes import MAX_FILE
from ckptdiff.format.safe_paths import clash, safe_path
from ckptdiff.format.sealed import MAX_FILES, MAX_PREFIX, VERSION, FileRef, open_sealed, read_files, seal
from ckptdiff.format.table import Totals, check_sorted

INDEX_NAME = "ckptdiff.json"


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
        named = sum(map(len, (index.base_files, index.shards, index.files, index.removed)))
        if named > MAX_FILES:
            raise FormatError(f"{where}: names {named} files, expected at most {MAX_FILES}")
        check_sorted((shard.target for shard in index.shards), f"{where}.shards")
        check_sorted((file.path for file in index.files), f"{where}.files")
        check_sorted(index.removed, f"{where}.removed")
        outputs = [shard.target for shard in index.shards] + [file.path for file in index.files]
        shared = clash(outputs)
        if shared:
            raise FormatError(f"{where}: two outputs share the path {quoted(shared)}: do not trust this patch")
        shared = clash(file.member for file in index.files if file.kind != "same")
        if shared:
            raise FormatError(f"{where}: {quoted(shared)} would be a file and a folder")
        if set(outputs) & set(index.removed):
            raise FormatError(f"{where}.removed: names the output {quoted(min(set(outputs) & set(index.removed)))}")
        return index

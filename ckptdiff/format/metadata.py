"""The metadata of a patch file (spec section 5.1): a frozen dataclass and its canonical JSON.

Reading is strict: every fault is one FormatError, UnsupportedError or IntegrityError that says where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ckptdiff.format import canonical, safe_paths
from ckptdiff.format.canonical import JsonObject
from ckptdiff.format.dtypes import MAX_FILE
from ckptdiff.format.entry import Totals
from ckptdiff.format.safe_paths import safe_path
from ckptdiff.format.sealed import VERSION, FileRef, open_sealed, read_files, seal, short_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What stands in ``__metadata__`` of a patch file."""

    base_identity: bytes
    """Identity of the base checkpoint, 16 bytes."""
    base_scope: str | None
    """The scope of the base that this file's scope was paired with; None if there was none."""
    base_files: tuple[FileRef, ...] | None
    """The base's weight files; None in a patch file that is part of a folder, whose index has them."""
    target_path: str
    """Path of the rebuilt file."""
    target_size: int
    """Bytes of the rebuilt file."""
    target_sha256: str | None
    """SHA-256 of the rebuilt file; None if the target was never a file, but tensors in memory."""
    target_identity: bytes
    """Identity of the whole target checkpoint, 16 bytes."""
    target_scope: str
    table: bytes = b""
    """XXH3-128 of the stored table, 16 bytes."""
    header: bytes = b""
    """XXH3-128 of the stored target header, 16 bytes."""
    report: bytes | None = None
    """XXH3-128 of the stored report, 16 bytes; None if there is none."""
    totals: Totals
    info: JsonObject = field(default_factory=dict)
    """What a reader need not understand: where base and target came from."""

    def to_bytes(self) -> bytes:
        """The canonical JSON, with its digest; raises CheckpointError if a reader would not accept it."""
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
        return seal(value)

    @staticmethod
    def digest_of(sealed: bytes) -> bytes:
        """The digest in metadata that :meth:`to_bytes` wrote, or :meth:`from_bytes` has read."""
        return bytes.fromhex(canonical.loads(sealed)["digest"])

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Metadata:
        """Read metadata; raises FormatError, UnsupportedError or IntegrityError, for the first rule that is broken."""
        f = open_sealed(data, where, "ckptdiff", "base header report table target totals")
        base, target = f.child("base", "files identity scope"), f.child("target", "identity path scope sha256 size")
        if "scope" in base and base.value["scope"] is None:
            scope = None
        else:
            scope = short_text(base.text("scope"), f"{where}.base.scope", safe_paths.MAX_PATH)
        return cls(
            base_identity=base.hexadecimal("identity", 16),
            base_scope=scope,
            base_files=read_files(base) if "files" in base else None,
            target_path=safe_path(target.text("path"), f"{where}.target.path"),
            target_size=target.integer("size", high=MAX_FILE),
            target_sha256=target.hexadecimal("sha256", 32).hex() if "sha256" in target else None,
            target_identity=target.hexadecimal("identity", 16),
            target_scope=short_text(target.text("scope"), f"{where}.target.scope", safe_paths.MAX_PATH),
            table=f.hexadecimal("table", 16),
            header=f.hexadecimal("header", 16),
            report=f.hexadecimal("report", 16) if "report" in f else None,
            totals=Totals.read(f),
            info=f.object("info"),
        )

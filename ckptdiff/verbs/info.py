"""``info``: what a patch says of itself, from its headers and tables alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdiff.format.entry import Totals
from ckptdiff.patching.patch import open_patch


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the target: ``changed`` of ``units`` differ, coded in ``payload`` bytes; ``base`` is its base tensor or copy."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    codec: str | None
    changed: int
    units: int
    payload: int
    base: str | None


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of the target: sizes in bytes, ``stored`` in the patch; ``kind`` is ``weights``, ``same``, ``new`` or ``delta``;
    ``sha256`` is None of a target that was never a file."""

    path: str
    size: int
    sha256: str | None
    kind: str
    stored: int


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """What a patch says of itself. Sizes in bytes, identities and SHA-256 in hexadecimal."""

    path: Path
    is_folder: bool
    base_identity: str
    base_files: tuple[dict[str, Any], ...]
    target_identity: str
    totals: Totals
    patch_size: int
    target_size: int
    files: tuple[FileRow, ...]
    removed_files: tuple[str, ...]
    removed_tensors: tuple[str, ...]
    tensors: tuple[TensorRow, ...]
    has_report: bool
    extra: dict[str, Any]


def info(patch: str | os.PathLike[str]) -> PatchInfo:
    """Read a patch's headers and tables, of the Hub by range requests; payloads are not read.

    Raises:
        FormatError, UnsupportedError, IntegrityError: it is not a valid patch.
        CheckpointError: it does not exist or cannot be read.
    """
    with open_patch(patch, by_ranges=True) as opened:
        weights = [
            FileRow(f.metadata.target_path, f.metadata.target_size, f.metadata.target_sha256, "weights", f.source.size)
            for f in opened.files
        ]
        tensors = [
            TensorRow(
                f.metadata.target_path, e.name, e.dtype, e.shape, e.kind, e.codec, e.changed, e.units, e.payload_size, e.of or e.base_name
            )
            for f in opened.files
            for e in f.table.entries
        ]
        return PatchInfo(
            path=Path(patch),
            is_folder=opened.index is not None,
            base_identity=opened.base_identity.hex(),
            base_files=tuple(file.to_json() for file in opened.base_files),
            target_identity=opened.target_identity.hex(),
            totals=opened.totals,
            patch_size=opened.stored_size,
            target_size=opened.output_size,
            files=(*weights, *(FileRow(o.path, o.size, o.sha256, o.kind, o.stored) for o in opened.others)),
            removed_files=opened.index.removed if opened.index else (),
            removed_tensors=tuple(name for f in opened.files for name in f.table.removed),
            tensors=tuple(tensors),
            has_report=opened.report is not None,
            extra=opened.info,
        )

"""``info`` shows what a patch says about itself, from its headers and tables alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from ckptdiff.format.entry import Entry, Totals
from ckptdiff.format.table import Table
from ckptdiff.hub.ids import HubId
from ckptdiff.io.places import Place, place_of
from ckptdiff.patching.patch import open_patch


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the target."""

    file: str
    """Path of the target's file that holds it."""
    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    """``same``, ``delta``, ``new`` or ``copy`` (spec 6)."""
    codec: str | None
    """Codec of its payload, if it has one."""
    changed: int
    """Units that differ from the base's."""
    units: int
    """All units: elements, except for types of less than a byte (spec 4)."""
    payload: int
    """Bytes of its payload in the patch."""
    bases: tuple[str, ...]
    """Names of its base tensors, or of the target's tensor that it is a copy of."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of the target."""

    path: str
    size: int
    """Its size in bytes."""
    sha256: str | None
    """In hexadecimal; None for a target that was never a file."""
    kind: str
    """``weights``, ``same``, ``new`` or ``delta``."""
    stored: int
    """Bytes that the patch stores for it."""


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """What a patch says about itself. Sizes are in bytes, identities and SHA-256 in hexadecimal."""

    path: Place
    is_folder: bool
    """Whether the patch is a folder, and so gives a folder."""
    base_identity: str
    """Identity of the base that the patch needs (spec 3.2)."""
    base_repo: str | None
    """The repo on the Hub that has the base, pinned to its commit (``org/name@commit``), if the patch records it."""
    base_files: tuple[dict[str, Any], ...]
    """Path, size and SHA-256 of the base's weight files."""
    target_identity: str
    target_repo: str | None
    """The repo on the Hub that has the target, pinned to its commit, if the patch records it."""
    totals: Totals
    """Counts of tensors and units."""
    patch_size: int
    target_size: int
    files: tuple[FileRow, ...]
    removed_files: tuple[str, ...]
    """Files of the base that the target lacks."""
    removed_tensors: tuple[str, ...]
    """Tensors of the base that the target lacks."""
    tensors: Sequence[TensorRow]
    replaced: int
    """How many tensors are stored whole though the base has one."""
    has_report: bool
    """Whether a report is stored in the patch."""
    extra: dict[str, Any]
    """Facts that the patch records and that a reader need not understand (spec 5.1), as they stand there."""


class _TensorRows(Sequence[TensorRow]):
    """The tensors of tables, each with its file's path in the target; they are made when they are first looked at."""

    def __init__(self, tables: Sequence[tuple[str, Table]]) -> None:
        self._tables = tables

    @cached_property
    def _rows(self) -> list[TensorRow]:
        return [_tensor_row(path, entry) for path, table in self._tables for entry in table.entries]

    def __len__(self) -> int:
        return sum(len(table) for _, table in self._tables)

    @overload
    def __getitem__(self, index: int) -> TensorRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TensorRow]: ...
    def __getitem__(self, index: int | slice) -> TensorRow | list[TensorRow]:
        return self._rows[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} tensors>"


def info(patch: str | os.PathLike[str]) -> PatchInfo:
    """Read a patch's headers and tables, on the Hub and in a store by range requests, but not its payloads.

    Raises:
        FormatError, UnsupportedError, IntegrityError: it is not a valid patch.
        CheckpointError: it does not exist or cannot be read.
    """
    with open_patch(patch, by_ranges=True) as opened:
        weights = [
            FileRow(f.metadata.target_path, f.metadata.target_size, f.metadata.target_sha256, "weights", f.source.size)
            for f in opened.files
        ]
        columns = [f.table.columns for f in opened.files]
        return PatchInfo(
            path=place_of(patch),
            is_folder=opened.index is not None,
            base_identity=opened.base_identity.hex(),
            base_repo=_pinned(opened.base_repo),
            base_files=tuple(file.to_json() for file in opened.base_files),
            target_identity=opened.target_identity.hex(),
            target_repo=_pinned(opened.target_repo),
            totals=opened.totals,
            patch_size=opened.stored_size,
            target_size=opened.output_size,
            files=(*weights, *(FileRow(o.path, o.size, o.sha256, o.kind, o.stored) for o in opened.others)),
            removed_files=opened.index.removed if opened.index else (),
            removed_tensors=tuple(name for f in opened.files for name in f.table.removed),
            tensors=_TensorRows([(f.metadata.target_path, f.table) for f in opened.files]),
            replaced=sum((kind, codec) == ("delta", "raw") for c in columns for kind, codec in zip(c.kinds, c.codecs, strict=True)),
            has_report=opened.report is not None,
            extra=opened.info,
        )


def _tensor_row(path: str, entry: Entry) -> TensorRow:
    bases = entry.base_names if entry.of is None else (entry.of,)
    counts = entry.changed, entry.units, entry.payload_size
    return TensorRow(path, entry.name, entry.dtype, entry.shape, entry.kind, entry.codec, *counts, bases)


def _pinned(repo: HubId | None) -> str | None:
    return None if repo is None else str(repo)

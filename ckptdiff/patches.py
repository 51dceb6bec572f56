"""A patch (spec sections 5 and 9): one patch file, or a folder of them with an index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.canonical import quote
from ckptdiff.digests import identity
from ckptdiff.errors import FormatError, IntegrityError
from ckptdiff.manifest import MAX_INDEX, FileRef, Index, OtherFile
from ckptdiff.patchfile import PatchFile
from ckptdiff.stfile import LocalFile, read_bytes
from ckptdiff.table import Entry, Totals

INDEX_NAME = "ckptdiff.json"


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
    def report(self) -> bytes | None:
        """The stored report (spec 5.4)."""
        return self.files[0].report if self.files else None

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
            if file.report is not None and file is not files[0]:
                raise FormatError(f"{path / shard.path}: has a report, which only the first patch file of a folder may have")
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

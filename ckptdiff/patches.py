"""A patch (spec sections 5 and 9): one patch file, or a folder of them with an index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ckptdiff.canonical import quote
from ckptdiff.digests import identity
from ckptdiff.errors import FormatError, IntegrityError
from ckptdiff.hub import RemoteFolder, Repo, download, open_repo
from ckptdiff.hubid import parse_id
from ckptdiff.manifest import MAX_INDEX, FileRef, Index, OtherFile
from ckptdiff.patchfile import PatchFile
from ckptdiff.stfile import ByteSource, LocalFile, read_bytes
from ckptdiff.table import Entry, Totals

INDEX_NAME = "ckptdiff.json"


@dataclass(slots=True)
class OpenPatch:
    """An open patch: one file, or a folder with its ``index``; ``entries`` maps (scope, name) of target tensors."""

    path: Path
    index: Index | None
    files: list[PatchFile]
    index_size: int = 0
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
    def info(self) -> dict[str, Any]:
        """What is recorded beside: repos and their commits (spec 5.1)."""
        return self.index.info if self.index else self.files[0].metadata.info

    @property
    def tied(self) -> dict[str, str]:
        """Further names of the target's tensors in memory (spec 5.1)."""
        return dict(self.info.get("tied", {}))

    @property
    def report(self) -> bytes | None:
        """The stored report (spec 5.4)."""
        return self.files[0].report if self.files else None

    @property
    def output_size(self) -> int:
        """Bytes of the rebuilt checkpoint."""
        return sum(file.metadata.target_size for file in self.files) + sum(other.size for other in self.others)

    @property
    def stored_size(self) -> int:
        """Bytes of the patch, all its files together."""
        size = sum(file.source.size for file in self.files) + sum(other.stored for other in self.others)
        return size + self.index_size


class Closable(ByteSource, Protocol):
    """A :class:`ByteSource` that holds something open."""

    def close(self) -> None: ...


class Folder(Protocol):
    """Where the files of a patch folder lie: here, or on the Hub."""

    name: str

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""

    def open(self, path: str) -> Closable: ...


class LocalFolder:
    """A :class:`Folder` on this machine."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""
        found = self._path / path
        return found.stat().st_size if os.path.isfile(found) else None

    def open(self, path: str) -> LocalFile:
        return LocalFile(self._path / path)


@contextmanager
def open_patch(path: str | os.PathLike[str], *, by_ranges: bool = False) -> Iterator[OpenPatch]:
    """Open a patch file or folder, here or on the Hub, and check all but its payloads (spec 10, step 1).

    ``by_ranges``: of a patch on the Hub read just what is asked for, instead of fetching its files first.

    Raises:
        CheckpointError: there is no such file, or it cannot be read. HubError: the same of the Hub.
        FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch.
    """
    hub_id = parse_id(path)
    with ExitStack() as stack:
        if hub_id is not None:
            repo = open_repo(hub_id)
            paths = patch_paths(repo)
            folder = RemoteFolder(repo) if by_ranges and not repo.cache else LocalFolder(download(repo, paths))
            lone = paths[0] if INDEX_NAME not in paths else None
            yield _open_folder(folder, stack) if lone is None else OpenPatch(Path(folder.name) / lone, None, [_open(folder, lone, stack)])
        elif os.path.isdir(path):
            yield _open_folder(LocalFolder(Path(path)), stack)
        else:
            yield OpenPatch(Path(path), None, [_open(LocalFolder(Path(path).parent), Path(path).name, stack)])


def patch_paths(repo: Repo) -> list[str]:
    """The files of a repo that make its patch: those of a patch folder, or one lone patch file."""
    found = [path for path in repo.files if path == INDEX_NAME or path.startswith(("patch/", "files/"))]
    lone = [path for path in repo.files if path.endswith(".safetensors")]
    if INDEX_NAME in found or not lone:
        return found if INDEX_NAME in found else _no_patch(repo)
    alone = [path for path in lone if path.startswith("patch/")] or lone
    return alone if len(alone) == 1 else _no_patch(repo)


def _no_patch(repo: Repo) -> list[str]:
    raise FormatError(f"{repo.pinned}: not a ckptdiff patch: it has no {INDEX_NAME}")


def _open_folder(folder: Folder, stack: ExitStack) -> OpenPatch:
    index, index_size = _open_index(folder, stack)
    files = []
    for shard in index.shards:
        where = f"{folder.name}/{shard.path}"
        _check_member(folder, shard.path, shard.size)
        file = _open(folder, shard.path, stack)
        files.append(file)
        if file.digest != shard.digest:
            raise IntegrityError(f"{where}: is not the file that {INDEX_NAME} lists: fetch the patch again")
        found = file.metadata
        identities = (index.base_identity, index.target_identity)
        if (found.target_path, found.base_identity, found.target_identity, found.base_files) != (shard.target, *identities, None):
            raise FormatError(f"{where}: its metadata does not agree with {INDEX_NAME}")
        if file.report is not None and file is not files[0]:
            raise FormatError(f"{where}: has a report, which only the first patch file of a folder may have")
    patch = OpenPatch(Path(folder.name), index, files, index_size)
    if patch.totals != index.totals:
        raise FormatError(f"{folder.name}/{INDEX_NAME}: its totals do not agree with its shards")
    for other in index.files:
        if other.kind != "same":
            _check_member(folder, other.member, other.stored)
    return patch


def _open(folder: Folder, path: str, stack: ExitStack) -> PatchFile:
    file = folder.open(path)
    stack.callback(file.close)
    return PatchFile(file)


def _open_index(folder: Folder, stack: ExitStack) -> tuple[Index, int]:
    where = f"{folder.name}/{INDEX_NAME}"
    if folder.size(INDEX_NAME) is None:
        swapped = "; are base and patch the wrong way round?" if any(Path(folder.name).glob("*.safetensors")) else ""
        raise FormatError(f"{folder.name}: not a ckptdiff patch: it has no {INDEX_NAME}{swapped}")
    file = folder.open(INDEX_NAME)
    stack.callback(file.close)
    if file.size > MAX_INDEX:
        raise FormatError(f"{where}: has {file.size} bytes, more than {MAX_INDEX}")
    return Index.from_bytes(read_bytes(file, 0, file.size), where), file.size


def _check_member(folder: Folder, path: str, size: int) -> None:
    found = folder.size(path)
    if found is None:
        raise FormatError(f"{folder.name}/{path}: is missing: fetch the patch again")
    if found != size:
        raise IntegrityError(f"{folder.name}/{path}: has {found} bytes, expected {size}: fetch the patch again")

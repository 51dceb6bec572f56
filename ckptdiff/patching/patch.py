"""A patch (spec sections 5 and 9): one patch file, or a folder of them with an index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptdiff.checkpoint.recognition import check_exists, files_to_examine, patch_members
from ckptdiff.errors import FormatError, IntegrityError, cut
from ckptdiff.format.canonical import quoted
from ckptdiff.format.digests import identity
from ckptdiff.format.entry import Entry, Totals
from ckptdiff.format.index import INDEX_NAME, Index, OtherFile
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.sealed import MAX_INDEX, FileRef
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import RemoteFolder, download, open_repo
from ckptdiff.io.folder import list_store
from ckptdiff.io.places import Place, place_of
from ckptdiff.io.source import ByteSource, read_bytes
from ckptdiff.io.store_path import StorePath
from ckptdiff.patching.patch_limits import add_to_sums
from ckptdiff.patching.source_folder import Frames, ListedFolder, LocalFolder, SourceFolder


@dataclass
class OpenPatch:
    """An open patch, whose files agree with each other."""

    path: Place
    index: Index | None
    """The index of a patch folder; None for one patch file."""
    files: list[PatchFile]
    index_size: int = 0
    """Size of the index in bytes."""
    folder: SourceFolder | None = None
    """Where its files lie; None for a patch file in memory."""
    names: dict[str, set[str]] = field(init=False)
    """Names of the target's tensors that count (spec 3.1), by scope."""

    def __post_init__(self) -> None:
        self.names, count = dict[str, set[str]](), 0
        for file in self.files:
            names = file.table.columns.names if file.table.columns.are_plain else [e.name for e in file.table.entries if e.counts]
            if names:
                self.names.setdefault(file.metadata.target_scope, set()).update(names)
                count += len(names)
        if sum(map(len, self.names.values())) != count:
            raise FormatError(f"{self.path}: two of its shards hold the same tensor of one scope, and both count")
        self._check_uncounted()
        self._check_copies()
        self._check_removed()
        self._check_identity()
        self._check_base_files()

    @property
    def scopes(self) -> frozenset[str]:
        """Scopes of the target."""
        return frozenset(self.names)

    @cached_property
    def entries(self) -> dict[tuple[str, str], tuple[PatchFile, Entry]]:
        """The entry of each target tensor that counts (spec 3.1), with the file that it is in, by scope and name."""
        return {(file.metadata.target_scope, e.name): (file, e) for file in self.files for e in file.table.entries if e.counts}

    @property
    def _unusual_files(self) -> list[PatchFile]:
        """The files that may hold copies, or tensors that do not count."""
        return [file for file in self.files if not file.table.columns.are_plain]

    def _check_uncounted(self) -> None:
        """Where a tensor does not count, another file of its scope must have the one that does; a file by itself has no other."""
        for file in self._unusual_files:
            alone, known = file.metadata.base_files is not None, self.names.get(file.metadata.target_scope, ())
            for entry in file.table.entries:
                if not entry.counts and (alone or (self.index is not None and entry.name not in known)):
                    raise FormatError(f"{file.source.name}: tensor {cut(entry.name)}: it does not count, but no other of its name does")

    def _check_copies(self) -> None:
        for file in self._unusual_files:
            for entry in file.table.entries:
                if entry.kind == "copy":
                    found = self.entries.get((file.metadata.target_scope, entry.of or ""))
                    if not found or found[1].kind == "copy" or (found[1].dtype, found[1].shape) != (entry.dtype, entry.shape):
                        raise FormatError(f"{file.source.name}: tensor {cut(entry.name)}: it cannot be a copy of {quoted(entry.of)}")

    def _check_removed(self) -> None:
        base_scopes: dict[str, str | None] = {}
        listed = set[str | None]()
        for file in self.files:
            scope, base_scope = file.metadata.target_scope, file.metadata.base_scope
            if file.table.removed and base_scope in listed:
                raise FormatError(f"{file.source.name}: only the first file with its base scope may list removed tensors")
            listed.add(base_scope)
            if base_scopes.setdefault(scope, base_scope) != base_scope:
                raise FormatError(f"{file.source.name}: its scope has two base scopes, {cut(base_scopes[scope])} and {cut(base_scope)}")
        gone = {(file.metadata.base_scope, name) for file in self.files for name in file.table.removed}
        for file in self.files if gone else ():
            for name in (name for e in file.table.entries for name in (e.name, *e.base_names)):
                if (file.metadata.base_scope, name) in gone:
                    raise FormatError(f"{file.source.name}: the tensor {cut(name)} is listed as removed, but is in the target, or a base")

    def _check_identity(self) -> None:
        """The identity that is stated must be that of the tensors. It cannot be told from one file of a folder that was opened alone."""
        if self.index is None and self.files[0].metadata.base_files is None:
            return
        found = identity(row for file in self.files for row in self._contents(file))
        if found != self.target_identity:
            raise FormatError(f"{self.path}: its tensors have the identity {found.hex()}, but it states {self.target_identity.hex()}")

    def _contents(self, file: PatchFile) -> Iterable[tuple[str, str, str, tuple[int, ...], bytes]]:
        """Scope, name, dtype, shape and digest of the tensors of a file that count."""
        scope, columns = file.metadata.target_scope, file.table.columns
        if columns.are_plain:
            rows = zip(columns.names, columns.types, columns.digests, strict=True)
            return ((scope, name, type_.dtype, type_.shape, digest) for name, type_, digest in rows)
        counting = (entry for entry in file.table.entries if entry.counts)
        contents = ((entry, entry if entry.of is None else self.entries[scope, entry.of][1]) for entry in counting)
        return ((scope, entry.name, entry.dtype, entry.shape, content.digest) for entry, content in contents)

    def _check_base_files(self) -> None:
        """A patch of files that takes tensors from a base must say from which files (spec 5.1 and 9)."""
        listed = self.index.base_files if self.index else self.files[0].metadata.base_files
        if listed is not None and not listed:
            for file in self.files:
                totals = file.table.totals
                if (totals.same or totals.delta) and file.metadata.target_sha256 is not None:
                    raise FormatError(f"{file.source.name}: its table needs a base, but the patch lists no file of it: make it again")

    @property
    def frames(self) -> Frames:
        """The stored forms of its files without weights."""
        assert self.folder is not None  # only a patch folder has an index, which lists such files
        return Frames(self.path, self.folder)

    def where(self, other: OtherFile) -> str:
        """As of :class:`Frames`."""
        return self.frames.where(other)

    def open_other(self, other: OtherFile) -> AbstractContextManager[ByteSource]:
        """As of :class:`Frames`."""
        return self.frames.open_other(other)

    @property
    def paths(self) -> list[Place]:
        """The patch's own path and those of all its files."""
        if isinstance(self.path, StorePath):
            return [self.path]
        return [self.path, *(Path(file.source.name) for file in self.files), *(self.path / other.stored_path for other in self.others)]

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
        """Further facts that the patch records, such as the repos of base and target (spec 5.1)."""
        return self.index.info if self.index else self.files[0].metadata.info

    @property
    def base_repo(self) -> HubId | None:
        """The repo of the base and its commit, if the patch records them (spec 5.1)."""
        return self._repo_of("base")

    @property
    def target_repo(self) -> HubId | None:
        """The repo of the target and its commit, if the patch records them (spec 5.1)."""
        return self._repo_of("target")

    def _repo_of(self, side: str) -> HubId | None:
        name = self.info.get(f"{side}_repo")
        return HubId(name, self.info.get(f"{side}_revision")) if name is not None else None

    @property
    def tied(self) -> dict[str, str]:
        """Further names of a target's tensors that was in memory, and the names that they are stored under (spec 5.1)."""
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


@contextmanager
def open_patch(path: str | os.PathLike[str], *, by_ranges: bool = False) -> Iterator[OpenPatch]:
    """Open a patch file or folder, here, in a store or on the Hub, and check all but its payloads (spec 10, step 1).

    Args:
        path: a file, a folder, the URL of either, or an id on the Hub.
        by_ranges: read only the ranges that are asked for of a patch on the Hub, instead of fetching its files first.

    Raises:
        CheckpointError: there is no such file, or it cannot be read. HubError: the repo on the Hub cannot be read. StoreError: the store
            cannot be read.
        FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch.
    """
    hub_id = parse_id(path)
    with ExitStack() as stack:
        folder: SourceFolder
        if hub_id is not None:
            repo = open_repo(hub_id)
            members, is_file = list(repo.files) if repo.is_file else patch_members(repo.files), repo.is_file
            _check_members(members, str(repo.pinned), list(repo.files))
            folder = RemoteFolder(repo) if by_ranges and not repo.cache else LocalFolder(download(repo, members))
        else:
            folder, members, is_file = _located(place_of(path))
        is_folder = INDEX_NAME in members and not is_file
        yield _open_folder(folder, stack) if is_folder else _open_file(folder, members[0], is_file, stack)


@contextmanager
def open_patch_in(folder: SourceFolder, file: str | None = None) -> Iterator[OpenPatch]:
    """As :func:`open_patch`, of a patch whose files lie anywhere else: a patch folder, or the patch file of this path in it."""
    with ExitStack() as stack:
        yield _open_folder(folder, stack) if file is None else _open_file(folder, file, True, stack)


def _located(place: Place) -> tuple[SourceFolder, list[str], bool]:
    """Where the files of a patch lie that is no repo, their paths there, and whether the patch was named as one file."""
    folder: SourceFolder
    if isinstance(place, StorePath):
        files = list_store(place).files
        folder, candidates, is_file = ListedFolder(place, files), list(files), "" in files
        members = candidates if is_file else patch_members(candidates)
    elif os.path.isdir(place):
        candidates, is_file = files_to_examine(place), False
        folder, members = LocalFolder(place), patch_members(candidates)
    else:
        check_exists(place)
        return LocalFolder(place.parent), [place.name], True
    _check_members(members, str(place), candidates)
    return folder, members, is_file


def _check_members(members: list[str], where: str, paths: list[str]) -> None:
    if not members:
        is_checkpoint = any(path.endswith(".safetensors") for path in paths)
        what = ", but safetensors files, as a checkpoint has; give what ckptdiff make wrote" if is_checkpoint else ""
        raise FormatError(f"{where}: not a ckptdiff patch: it has no {INDEX_NAME}{what}")


def _open_file(folder: SourceFolder, path: str, is_named: bool, stack: ExitStack) -> OpenPatch:
    """One patch file, which was named itself, or is the only one in a folder or repo; a file of a patch folder must be named."""
    file = _open(folder, path, stack)
    if file.metadata.base_files is None and not is_named:
        raise FormatError(f"{file.source.name}: belongs to a patch folder, but its {INDEX_NAME} is missing: fetch the patch again")
    return OpenPatch(folder.path / path if path else folder.path, None, [file])


def _open_folder(folder: SourceFolder, stack: ExitStack) -> OpenPatch:
    index, index_size = _open_index(folder, stack)
    files: list[PatchFile] = []
    sums: dict[str, int] = {}
    for shard in index.shards:
        where = f"{folder.name}/{shard.path}"
        _check_member(folder, shard.path, shard.size)
        file = _open(folder, shard.path, stack)
        files.append(file)
        add_to_sums(sums, file, where)
        if file.digest != shard.digest:
            raise IntegrityError(f"{where}: is not the file that {INDEX_NAME} lists: fetch the patch again")
        stated, expected = file.metadata, (shard.target, index.base_identity, index.target_identity, None)
        if (stated.target_path, stated.base_identity, stated.target_identity, stated.base_files) != expected:
            raise FormatError(f"{where}: its metadata does not agree with {INDEX_NAME}")
        if file.report is not None and file is not files[0]:
            raise FormatError(f"{where}: has a report, which only the first patch file of a folder may have")
    patch = OpenPatch(folder.path, index, files, index_size, folder)
    if patch.totals != index.totals:
        raise FormatError(f"{folder.name}/{INDEX_NAME}: its totals do not agree with its shards")
    for other in index.files:
        if other.kind != "same":
            _check_member(folder, other.stored_path, other.stored)
    return patch


def _open(folder: SourceFolder, path: str, stack: ExitStack) -> PatchFile:
    file = folder.open(path)
    stack.callback(file.close)
    return PatchFile(file)


def _open_index(folder: SourceFolder, stack: ExitStack) -> tuple[Index, int]:
    where = f"{folder.name}/{INDEX_NAME}"
    file = folder.open(INDEX_NAME)
    stack.callback(file.close)
    if file.size > MAX_INDEX:
        raise FormatError(f"{where}: has {file.size} bytes, expected at most {MAX_INDEX}")
    return Index.from_bytes(read_bytes(file, 0, file.size), where), file.size


def _check_member(folder: SourceFolder, path: str, size: int) -> None:
    found = folder.size(path)
    if found is None:
        raise FormatError(f"{folder.name}/{path}: is missing: fetch the patch again")
    if found != size:
        raise IntegrityError(f"{folder.name}/{path}: has {found} bytes, expected {size}: fetch the patch again")

"""How ``make`` writes a patch: the tensors' tables and payloads, then the index and the other files (spec sections 4 to 9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ckptdiff.checkpoint.contents import Checkpoint, WeightFile
from ckptdiff.checkpoint.recognition import is_patch_repo
from ckptdiff.checkpoint.scopes import is_index
from ckptdiff.errors import CheckpointError
from ckptdiff.format import safe_paths
from ckptdiff.format.entry import Totals
from ckptdiff.format.index import INDEX_NAME, Index, OtherFile, ShardRef
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.patch_file import PatchParts, WrittenFile, write_patch_file
from ckptdiff.format.safetensors import MAX_TENSORS
from ckptdiff.format.sealed import FileRef
from ckptdiff.format.table import Table
from ckptdiff.hub.repo import Repo, check_files
from ckptdiff.patching import other_files
from ckptdiff.patching.chain import repo_gives
from ckptdiff.patching.encode_pair import PairEncoder
from ckptdiff.patching.patch import MAX_ALL_BYTES, MAX_ALL_DESCRIBED, MAX_ALL_TENSORS


class StorableReport(Protocol):
    """A report that ``make`` can store in a patch, such as the one of :func:`ckptdiff.report`."""

    def to_bytes(self) -> bytes:
        """The stored form (spec 5.4)."""

    @property
    def changes(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Number of elements, and of changed ones, by scope and name of the target's tensors: shows which pair the report is of."""


class PatchMaker:
    """The steps of one ``make``: encode all tensors of a pair, then write a patch file or folder, which may hold a report of the pair.

    Attributes:
        repos: the repos of ``base`` and ``target`` that the patch records, by these words.
        totals, codecs: sums over the tables, and the number of tensors by codec; complete after writing.
        removed_files: paths of base files that the target no longer has; complete after writing a folder.
        stored: bytes that each other file takes in the patch, by path; complete after writing a folder.
    """

    def __init__(self, pair: PairEncoder, report: StorableReport | None) -> None:
        self.pair, self.base, self.target, self.report = pair, pair.base, pair.target, report
        self.repos: dict[str, Repo | None] = {}
        self._check_size()
        self.stored_report = report.to_bytes() if report is not None else None  # here, as a large one is refused before anything is encoded
        self.totals = Totals()
        self.codecs: dict[str, int] = {}
        self.removed_files: tuple[str, ...] = ()
        self.stored: dict[str, int] = {}

    def _check_size(self) -> None:
        """Raise CheckpointError for a target that no reader would rebuild (spec 11)."""
        tensors, size = [len(file.header.tensors) for file in self.target.weights], sum(file.file.size for file in self.target.weights)
        sums = (max(tensors, default=0), MAX_TENSORS), (sum(tensors), MAX_ALL_TENSORS), (size, MAX_ALL_BYTES)
        for (count, limit), what in zip(sums, ("tensors in one file", "tensors", "bytes"), strict=True):
            if count > limit:
                raise CheckpointError(f"{self.target.path}: has {count} {what}, a patch at most {limit}: patch its parts one by one")

    def write_file(self, out: BinaryIO) -> int:
        """Encode all tensors and write a patch file; returns its size in bytes."""
        self._encode()
        refs = self._refs(file for file in self.base.weights if file.scope in self.pair.base_scopes)
        return self._write(self.target.weights[0], out, refs).size

    def write_folder(self, built: Path, names: Sequence[str]) -> int:
        """Encode all tensors and write a patch folder.

        Args:
            built: the folder, which exists.
            names: paths of the target's files without weights that go in.

        Returns:
            The size of all its files, in bytes.
        """
        self._encode()
        shards = self._write_shards(built)
        files = [other_files.encode(name, self.target.others[name], self._base_file(name), built) for name in names]
        self.stored = {file.path: file.stored for file in files}
        self.removed_files = self._removed_files({*names, *(file.path for file in self.target.weights)})
        data = self._index(shards, files).to_bytes()
        (built / INDEX_NAME).write_bytes(data)
        return len(data) + sum(shard.size for shard in shards) + sum(file.stored for file in files)

    # --- tensors ---

    def _encode(self) -> None:
        self.pair.encode()
        if self.report is not None:
            self._check_report(self.report)
        self.pair.use_copies()

    def _check_report(self, report: StorableReport) -> None:
        """Raise CheckpointError for a report of other checkpoints.

        Entries count carrier units, so that tensors with elements of less than a byte are not compared.
        """
        scopes = self.pair.scopes
        for (scope, name), (elements, changed) in report.changes.items():
            entry = scopes[scope].entries.get(name) if scope in scopes else None
            if entry is None or (entry.units == elements and entry.changed != changed):
                found = "there is no such tensor" if entry is None else f"found {entry.changed:,}"
                raise CheckpointError(
                    f"the report is not of this base and target: tensor {name}: it says that {changed:,} of {elements:,} elements changed, "
                    f"{found}; make it with the same include, exclude and rename"
                )

    # --- patch files ---

    def _write_shards(self, built: Path) -> list[ShardRef]:
        shards, described = [], 0
        for file in self.target.weights:
            path = built / "patch" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as out:
                written = self._write(file, out, None)
            described += written.described
            if described > MAX_ALL_DESCRIBED:
                raise CheckpointError(
                    f"{self.target.path}: its tables and headers have more than {MAX_ALL_DESCRIBED} bytes: patch its parts one by one"
                )
            shards.append(ShardRef(target=file.path, size=written.size, sha256=written.sha256, digest=written.digest))
        return shards

    def _write(self, file: WeightFile, out: BinaryIO, base_files: tuple[FileRef, ...] | None) -> WrittenFile:
        """Write the patch file of one weight file; ``base_files`` is None in a folder, whose index lists them."""
        scope = self.pair.scopes[file.scope]
        table = Table(tuple(scope.entries[info.name] for info in file.header.tensors), self._removed(file))
        metadata = Metadata(
            base_identity=self.pair.base_identity,
            base_scope=scope.base_id,
            base_files=base_files,
            target_path=file.path,
            target_size=file.file.size,
            target_sha256=self._sha256(file),
            target_identity=self.pair.target_identity,
            target_scope=file.scope,
            totals=table.totals,
            info={} if base_files is None else self._info,
        )
        self.totals += table.totals
        for entry in table.entries:
            if entry.codec:
                self.codecs[entry.codec] = self.codecs.get(entry.codec, 0) + 1
        offsets = {entry.name: self.pair.offsets[file.scope, entry.name] for entry in table.entries if entry.has_payload}
        report = self.stored_report if file is self.target.weights[0] else None
        return write_patch_file(out, metadata, PatchParts(table, file.header.raw, report, self.pair.spool, offsets))

    def _removed(self, file: WeightFile) -> tuple[str, ...]:
        """Base tensors that the target scope neither has nor uses as a base; listed by the first file of the scope alone."""
        scope = self.pair.scopes[file.scope]
        if file is not next(first for first in self.target.weights if first.scope == file.scope):
            return ()
        used = {name for entry in scope.entries.values() for name in (entry.name, entry.base_name)}
        return tuple(sorted(set(scope.base) - used, key=str.encode))

    # --- the index ---

    def _index(self, shards: Sequence[ShardRef], files: Sequence[OtherFile]) -> Index:
        return Index(
            base_identity=self.pair.base_identity,
            base_files=self._refs(self.base.weights),
            target_identity=self.pair.target_identity,
            shards=tuple(shards),
            files=tuple(files),
            removed=self.removed_files,
            totals=self.totals,
            info=self._info,
        )

    def _base_file(self, name: str) -> Path | None:
        """The base's file of the same path; none for an index, since a base in other shards would not have the same one."""
        return None if is_index(name) else self.base.others.get(name)

    def _removed_files(self, present: set[str]) -> tuple[str, ...]:
        names = {*self.base.kept, *(file.path for file in self.base.weights)} - present
        return tuple(sorted((name for name in names if safe_paths.unsafe_reason(name) is None), key=str.encode))

    # --- where base and target come from ---

    def _refs(self, files: Iterable[WeightFile]) -> tuple[FileRef, ...]:
        hashed = ((file, self._sha256(file)) for file in files)
        return tuple(FileRef(path=file.path, size=file.file.size, sha256=sha256) for file, sha256 in hashed if sha256 is not None)

    def _sha256(self, file: WeightFile) -> str | None:
        """SHA-256 of a weight file; None if its tensors are in memory."""
        hasher = self.pair.hashers.get(id(file.file))
        return hasher.hexdigest() if hasher else None

    @cached_property
    def _info(self) -> dict[str, Any]:
        """Further names of tied tensors, and the repos and commits of both sides, whose content is compared with the Hub's first."""
        info: dict[str, Any] = {"tied": self.target.tied} if self.target.tied else {}
        for side, checkpoint in (("base", self.base), ("target", self.target)):
            repo = self.repos.get(side)
            if repo is not None:
                self._check_repo(repo, checkpoint, self.pair.base_identity if side == "base" else self.pair.target_identity)
                info |= {f"{side}_repo": repo.name, f"{side}_revision": repo.commit}
        return info

    def _check_repo(self, repo: Repo, checkpoint: Checkpoint, identity: bytes) -> None:
        """Raise an error unless a repo holds a checkpoint, or a patch that gives it."""
        if not is_patch_repo(repo):
            check_files(repo, {file.path: file.sha256 for file in self._refs(checkpoint.weights)}, str(checkpoint.path))
        elif not repo_gives(repo, identity):
            raise CheckpointError(f"{checkpoint.path}: is not what the patch in {repo.pinned} gives")

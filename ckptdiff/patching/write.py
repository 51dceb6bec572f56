"""How ``make`` writes a patch: its tensors coded, then its files, in the order of the spec (sections 3 to 9, from the writer's side)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ckptdiff.checkpoint.pairing import Rename, pair_scopes, pair_tied
from ckptdiff.checkpoint.reader import Checkpoint, Tensor, WeightFile
from ckptdiff.checkpoint.recognition import is_patch_repo
from ckptdiff.checkpoint.scopes import is_index
from ckptdiff.errors import CheckpointError
from ckptdiff.format import safe_paths
from ckptdiff.format.digests import BLOCK, identity, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry, Totals
from ckptdiff.format.index import INDEX_NAME, Index, OtherFile, ShardRef
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.patch_file import PatchParts, WrittenFile, write_patch_file
from ckptdiff.format.safetensors import MAX_TENSORS
from ckptdiff.format.sealed import FileRef
from ckptdiff.format.table import Table
from ckptdiff.hub.repo import Repo, check_files
from ckptdiff.io.parallel import FileHasher, Progress, run_ordered
from ckptdiff.patching import other_files
from ckptdiff.patching.adapt import group_units, read_range
from ckptdiff.patching.encode import EncodedBlocks, OpenTensor, TensorEncoder, choose_codec, code, smallest
from ckptdiff.patching.patch import MAX_ALL_BYTES, MAX_ALL_DESCRIBED, MAX_ALL_TENSORS, open_patch

Step = tuple[OpenTensor, int, int, bool]
"""Units of a tensor to code, from and to, and whether they are its last."""


class Report(Protocol):
    """What ``make`` stores of a report, see :func:`ckptdiff.report`: its bytes (spec 5.4), and the pair that it is of."""

    def to_bytes(self) -> bytes: ...

    @property
    def changes(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Elements, and how many of them changed, by scope and name of a target's tensor."""


@dataclass(slots=True)
class _Scope:
    """A target scope, the base scope it is paired with, and what is known of both so far."""

    base_id: str | None
    base: dict[str, Tensor]
    entries: dict[str, Entry] = field(default_factory=dict)


class PatchMaker:
    """The steps of one ``make``. ``totals``, ``codecs``, ``removed_files`` and how much is ``stored`` of each other file are known when it
    has written."""

    def __init__(
        self,
        base: Checkpoint,
        target: Checkpoint,
        codec: str | None,
        threads: int,
        renames: Sequence[Rename],
        report: Report | None,
        spool: BinaryIO,
        progress: Progress,
        coder: TensorEncoder = code,
        groups: int = 1,
    ) -> None:
        self.base, self.target, self.codec, self.threads, self.renames = base, target, codec, threads, renames
        self.report, self.spool, self.progress = report, spool, progress
        self.coder, self.groups = coder, groups
        self.offsets: dict[tuple[str, str], int] = {}
        files = (file.file for side in (base, target) if not side.in_memory for file in side.weights)
        self.hashers = {id(file): FileHasher(file) for file in files}
        self.scopes = {
            scope: _Scope(base_id, base.scopes[base_id] if base_id is not None else {})
            for scope, base_id in pair_scopes(base, target).items()
        }
        self.base_digests: dict[tuple[str, str], bytes] = {}
        self.repos: dict[str, Repo | None] = {}
        self.done, self.total = 0, sum(file.header.data_size for file in target.weights)
        self._check_size()
        self.stored_report = report.to_bytes() if report is not None else None  # here, as a large one is refused before anything is coded
        self.totals = Totals()
        self.codecs: dict[str, int] = {}
        self.removed_files: tuple[str, ...] = ()
        self.stored: dict[str, int] = {}

    def _check_size(self) -> None:
        """Raise CheckpointError for a target that no reader would rebuild (spec 11)."""
        tensors, size = [len(file.header.tensors) for file in self.target.weights], sum(file.file.size for file in self.target.weights)
        sums = (max(tensors, default=0), MAX_TENSORS), (sum(tensors), MAX_ALL_TENSORS), (size, MAX_ALL_BYTES)
        for (found, most), what in zip(sums, ("tensors in one file", "tensors", "bytes"), strict=True):
            if found > most:
                raise CheckpointError(f"{self.target.path}: has {found} {what}, a patch at most {most}: patch its parts one by one")

    # --- coding ---

    def code(self) -> None:
        """Fill the scopes' entries, the base digests and the spool."""
        matched: list[tuple[Tensor | None, Tensor]] = []
        unmatched: list[Tensor] = []
        for scope_id, scope in self.scopes.items():
            tensors = [tensor for file in self.target.weights if file.scope == scope_id for tensor in file.tensors]
            pairs = pair_tied(scope.base, self.base.tied, tensors, self.target.tied, self.renames)
            matched += [(pairs[tensor.name], tensor) for tensor in tensors if tensor.name in pairs]
            unmatched += [tensor for tensor in tensors if tensor.name not in pairs]
        self._code_all(matched)
        rest = [t for tensors in self._base_scopes().values() for t in tensors.values() if (t.scope, t.name) not in self.base_digests]
        self.base_digests |= self._hash_all(rest)
        self._code_all([(None, tensor) for tensor in self._pair_by_content(unmatched)])
        if self.report is not None:
            self._check_report(self.report)
        for scope in self.scopes.values():
            _use_copies(scope.entries)

    def _check_report(self, report: Report) -> None:
        """Raise CheckpointError for a report of other checkpoints. Elements of less than a byte are not counted here."""
        for (scope, name), (elements, changed) in report.changes.items():
            entry = self.scopes[scope].entries.get(name) if scope in self.scopes else None
            if entry is None or (entry.units == elements and entry.changed != changed):
                found = "there is no such tensor" if entry is None else f"found {entry.changed:,}"
                raise CheckpointError(
                    f"the report is not of this base and target: tensor {name}: it says that {changed:,} of {elements:,} elements changed, "
                    f"{found}; make it with the same include, exclude and rename"
                )

    def _base_scopes(self) -> dict[str, dict[str, Tensor]]:
        """The base's scopes that count for its identity: all, or for a patch file the paired one (spec 5.1)."""
        if not self.target.is_file:
            return self.base.scopes
        paired = {scope.base_id for scope in self.scopes.values()}
        return {scope_id: tensors for scope_id, tensors in self.base.scopes.items() if scope_id in paired}

    def _code_all(self, pairs: Sequence[tuple[Tensor | None, Tensor]]) -> None:
        """Code tensors group by group; results come in order, so the spool does not depend on the threads."""

        def steps() -> Iterator[Step]:
            for base, target in pairs:
                group = group_units(target.dtype, base.dtype if base else target.dtype)
                units = max(t.nbytes // DTYPES[t.dtype].carrier for t in (target, base or target))
                codec = "raw" if base is None else self.codec
                if codec is None and base is not None and units > group:
                    codec = choose_codec(base, target)
                tensor = OpenTensor(base, target, codec)
                step = group * self.groups
                for start in range(0, max(units, 1), step):
                    yield tensor, start, start + step, start + step >= units

        jobs = (partial(self._steps, batch) for batch in self._batches(steps()))
        with closing(run_ordered(jobs, self.threads)) as results:
            for tensor, coded, last in itertools.chain.from_iterable(results):
                tensor.add(coded, self.spool)
                self._advance(coded.nbytes)
                if last:
                    self._finish(tensor)

    def _batches(self, steps: Iterable[Step]) -> Iterator[list[Step]]:
        """One step a job; where several groups are taken at once, as many steps as make so much: small tensors are many."""
        limit, batch, size = min((self.groups - 1) * BLOCK, self.total // (4 * self.threads)), list[Step](), 0
        for step in steps:
            batch.append(step)
            tensor, first, stop, _ = step
            width = DTYPES[tensor.target.dtype].carrier
            size += min(stop * width, tensor.target.nbytes) - first * width
            if size >= limit:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _steps(self, batch: Iterable[Step]) -> list[tuple[OpenTensor, EncodedBlocks, bool]]:
        return [self._step(*step) for step in batch]

    def _step(self, tensor: OpenTensor, first: int, stop: int, last: bool) -> tuple[OpenTensor, EncodedBlocks, bool]:
        base, target = tensor.base, tensor.target
        if tensor.codec is None and base is not None:
            tensor.codec, coded = next(iter(smallest(base, target, first, stop).items()))
        else:
            coded = self.coder(base, target, tensor.codec or "raw", first, stop)
        for read in (target, base or target):
            hasher = self.hashers.get(id(read.source))
            if hasher:
                hasher.advance(read.offset + min(stop * DTYPES[read.dtype].carrier, read.nbytes))
        return tensor, coded, last

    def _finish(self, tensor: OpenTensor) -> None:
        entry, target = tensor.entry(), tensor.target
        if entry.kind == "same":
            self.spool.seek(tensor.start)
            self.spool.truncate()
        if tensor.base is not None:
            self.base_digests[tensor.base.scope, tensor.base.name] = entry.base_digest
        self.scopes[target.scope].entries[target.name] = entry
        self.offsets[target.scope, target.name] = tensor.start

    def _advance(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress("comparing", self.done, self.total)

    def _hash_all(self, tensors: Sequence[Tensor]) -> dict[tuple[str, str], bytes]:
        """Tensor digests by scope and name."""

        def leaf(tensor: Tensor, start: int) -> bytes:
            return xxh128(read_range(tensor, start, start + BLOCK))

        jobs = (partial(leaf, tensor, start) for tensor in tensors for start in range(0, tensor.nbytes, BLOCK))
        with closing(run_ordered(jobs, self.threads)) as leaves:
            return {(t.scope, t.name): tensor_digest([next(leaves) for _ in range(0, t.nbytes, BLOCK)]) for t in tensors}

    def _pair_by_content(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Pair tensors of new names with base tensors of the same content; returns those that have none."""
        known: dict[tuple[str | None, bytes, str, tuple[int, ...]], Tensor] = {}
        for base_id in {scope.base_id for scope in self.scopes.values()} - {None}:
            for base in self.base.scopes[base_id or ""].values():
                known.setdefault((base_id, self.base_digests[base.scope, base.name], base.dtype, base.shape), base)
        digests, left = self._hash_all(tensors), []
        for target in tensors:
            digest, scope = digests[target.scope, target.name], self.scopes[target.scope]
            found = known.get((scope.base_id, digest, target.dtype, target.shape))
            if found is None or target.nbytes == 0:
                left.append(target)
                continue
            entry = Entry(name=target.name, dtype=target.dtype, shape=target.shape, kind="same", digest=digest, base_digest=digest)
            scope.entries[target.name] = replace(entry, base_name=found.name, base_dtype=found.dtype, base_shape=found.shape)
            self._advance(target.nbytes)
        return left

    # --- writing ---

    def write_file(self, out: BinaryIO) -> int:
        """Write a patch file; returns its size."""
        self.code()
        refs = self._refs(file for file in self.base.weights if file.scope in self._base_scopes())
        return self._write(self.target.weights[0], out, refs).size

    def write_folder(self, built: Path, names: Sequence[str]) -> int:
        """Write a patch folder with the other files ``names``; returns the size of all its files."""
        self.code()
        shards, described = [], 0
        for file in self.target.weights:
            path = built / "patch" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as out:
                done = self._write(file, out, None)
            described += done.described
            if described > MAX_ALL_DESCRIBED:
                raise CheckpointError(
                    f"{self.target.path}: its tables and headers have more than {MAX_ALL_DESCRIBED} bytes: patch its parts one by one"
                )
            shards.append(ShardRef(target=file.path, size=done.size, sha256=done.sha256, digest=done.digest))
        files = [other_files.encode(name, self.target.others[name], self._base_file(name), built) for name in names]
        self.stored = {file.path: file.stored for file in files}
        self.removed_files = self._removed_files({*names, *(file.path for file in self.target.weights)})
        data = self._index(shards, files).to_bytes()
        (built / INDEX_NAME).write_bytes(data)
        return len(data) + sum(shard.size for shard in shards) + sum(file.stored for file in files)

    def _base_file(self, name: str) -> Path | None:
        """The base's file of the same path; none for an index, which a base of other shards would not have."""
        return None if is_index(name) else self.base.others.get(name)

    def _index(self, shards: Sequence[ShardRef], files: Sequence[OtherFile]) -> Index:
        return Index(
            base_identity=self._base_identity,
            base_files=self._refs(self.base.weights),
            target_identity=self._target_identity,
            shards=tuple(shards),
            files=tuple(files),
            removed=self.removed_files,
            totals=self.totals,
            info=self._info,
        )

    def _write(self, file: WeightFile, out: BinaryIO, base_files: tuple[FileRef, ...] | None) -> WrittenFile:
        scope = self.scopes[file.scope]
        table = Table(tuple(scope.entries[info.name] for info in file.header.tensors), self._removed(file))
        metadata = Metadata(
            base_identity=self._base_identity,
            base_scope=scope.base_id,
            base_files=base_files,
            target_path=file.path,
            target_size=file.file.size,
            target_sha256=self._sha256(file),
            target_identity=self._target_identity,
            target_scope=file.scope,
            totals=table.totals,
            info={} if base_files is None else self._info,
        )
        self.totals += table.totals
        for entry in table.entries:
            if entry.codec:
                self.codecs[entry.codec] = self.codecs.get(entry.codec, 0) + 1
        offsets = {entry.name: self.offsets[file.scope, entry.name] for entry in table.entries if entry.has_payload}
        report = self.stored_report if file is self.target.weights[0] else None
        return write_patch_file(out, metadata, PatchParts(table, file.header.raw, report, self.spool, offsets))

    def _removed(self, file: WeightFile) -> tuple[str, ...]:
        """Base tensors that the scope no longer has, nor uses as a base, for the scope's first file."""
        scope = self.scopes[file.scope]
        if file is not next(first for first in self.target.weights if first.scope == file.scope):
            return ()
        used = {name for entry in scope.entries.values() for name in (entry.name, entry.base_name)}
        return tuple(sorted(set(scope.base) - used, key=str.encode))

    def _removed_files(self, present: set[str]) -> tuple[str, ...]:
        names = {*self.base.kept, *(file.path for file in self.base.weights)} - present
        return tuple(sorted((name for name in names if safe_paths.unsafe_reason(name) is None), key=str.encode))

    def _refs(self, files: Iterable[WeightFile]) -> tuple[FileRef, ...]:
        found = ((file, self._sha256(file)) for file in files)
        return tuple(FileRef(path=file.path, size=file.file.size, sha256=sha256) for file, sha256 in found if sha256 is not None)

    def _sha256(self, file: WeightFile) -> str | None:
        """None of tensors in memory."""
        hasher = self.hashers.get(id(file.file))
        return hasher.hexdigest() if hasher else None

    @cached_property
    def _info(self) -> dict[str, Any]:
        """Names of one tensor; repos and commits, after the weight files' SHA-256 were compared with what the Hub states."""
        info: dict[str, Any] = {"tied": self.target.tied} if self.target.tied else {}
        for side, checkpoint in (("base", self.base), ("target", self.target)):
            repo = self.repos.get(side)
            if repo is not None:
                if is_patch_repo(repo):
                    self._check_patch(repo, checkpoint, self._base_identity if side == "base" else self._target_identity)
                else:
                    check_files(repo, {file.path: file.sha256 for file in self._refs(checkpoint.weights)}, str(checkpoint.path))
                info |= {f"{side}_repo": repo.name, f"{side}_revision": repo.commit}
        return info

    @staticmethod
    def _check_patch(repo: Repo, checkpoint: Checkpoint, expected: bytes) -> None:
        """A repo with a patch stands for the checkpoint that the patch gives."""
        with open_patch(str(repo.pinned), by_ranges=True) as patch:
            if patch.target_identity != expected:
                raise CheckpointError(f"{checkpoint.path}: is not what the patch in {repo.pinned} gives")

    @cached_property
    def _base_identity(self) -> bytes:
        tensors = (t for scope in self._base_scopes().values() for t in scope.values())
        return identity((t.scope, t.name, t.dtype, t.shape, self.base_digests[t.scope, t.name]) for t in tensors)

    @cached_property
    def _target_identity(self) -> bytes:
        scopes = self.scopes.items()
        return identity((scope_id, e.name, e.dtype, e.shape, e.digest) for scope_id, scope in scopes for e in scope.entries.values())


def _use_copies(entries: dict[str, Entry]) -> None:
    """Replace each coded tensor that repeats another tensor of the target by a reference to it."""
    first: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].kind != "same"):
        key = entry.digest, entry.dtype, entry.shape
        if entry.has_payload and entry.nbytes and key in first:
            entries[name] = Entry(name=name, dtype=entry.dtype, shape=entry.shape, kind="copy", of=first[key], digest=entry.digest)
        else:
            first.setdefault(key, name)

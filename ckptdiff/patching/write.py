"""How ``make`` writes what it has encoded: the tensors' tables and payloads, then the index and the other files (spec sections 4 to 9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ckptdiff.checkpoint.contents import Checkpoint, TensorKey, WeightFile
from ckptdiff.checkpoint.scopes import is_index
from ckptdiff.errors import CheckpointError
from ckptdiff.format import safe_paths
from ckptdiff.format.entry import Entry, Totals
from ckptdiff.format.index import INDEX_NAME, Index, OtherFile, ShardRef
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.patch_file import Output, PatchParts, WrittenFile, write_patch_file
from ckptdiff.format.sealed import FileRef
from ckptdiff.format.table import Table
from ckptdiff.format.tensor_type import MAX_TENSORS
from ckptdiff.io.places import Place, create_file
from ckptdiff.patching import other_files
from ckptdiff.patching.encode_pair import EncodedPair
from ckptdiff.patching.patch_limits import MAX_ALL_BYTES, MAX_ALL_DESCRIBED, MAX_ALL_PIECES, MAX_ALL_TENSORS
from ckptdiff.patching.spool import merged


class StorableReport(Protocol):
    """A report that ``make`` can store in a patch, such as the one of :func:`ckptdiff.report`."""

    def to_bytes(self) -> bytes:
        """The stored form (spec 5.4)."""

    @property
    def changes(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Number of elements, and of changed ones, by scope and name of the target's tensors: shows which pair the report is of."""


def check_size(target: Checkpoint) -> None:
    """Raise CheckpointError for a target that no reader would rebuild (spec 11)."""
    tensors, size = [len(file.header.tensors) for file in target.weights], sum(file.file.size for file in target.weights)
    sums = (max(tensors, default=0), MAX_TENSORS), (sum(tensors), MAX_ALL_TENSORS), (size, MAX_ALL_BYTES)
    for (count, limit), what in zip(sums, ("tensors in one file", "tensors", "bytes"), strict=True):
        if count > limit:
            raise CheckpointError(f"{target.path}: has {count} {what}, a patch at most {limit}: patch its parts one by one")


def check_report(report: StorableReport, pair: EncodedPair) -> None:
    """Raise CheckpointError for a report of other checkpoints.

    Entries count carrier units, so that tensors with elements of less than a byte are not compared.
    """
    for (scope, name), (elements, changed) in report.changes.items():
        entry = pair.scopes[scope].entries.get(TensorKey(scope, name)) if scope in pair.scopes else None
        if entry is None or (entry.units == elements and entry.changed != changed):
            found = "there is no such tensor" if entry is None else f"found {entry.changed:,}"
            raise CheckpointError(
                f"the report is not of this base and target: tensor {name}: it says that {changed:,} of {elements:,} elements changed, "
                f"{found}; make it with the same include, exclude and rename"
            )


class PatchContents:
    """What a patch is written from.

    Attributes:
        pair: the encoded tensors.
        info: further facts that it records (spec 5.1).
        report: the stored form of the report, if there is one.
        copies: whether a tensor that repeats the content of another one is stored as its copy. Without that, all patches of a chain that
            ``sparse`` codes can be composed without the base.
        entries: table entries by scope and key.
    """

    def __init__(self, pair: EncodedPair, info: dict[str, Any], report: bytes | None, copies: bool = True) -> None:
        self.pair, self.info, self.report = pair, info, report
        self.entries = {scope_id: _with_copies(scope.entries) if copies else scope.entries for scope_id, scope in pair.scopes.items()}

    @property
    def payload_size(self) -> int:
        """Bytes of all payloads."""
        return sum(entry.payload_size for entries in self.entries.values() for entry in entries.values())


@dataclass(frozen=True, slots=True)
class WrittenPatch:
    """A patch that is written."""

    size: int
    """Bytes of all its files."""
    totals: Totals
    """Sums over its tables."""
    codecs: dict[str, int]
    """Number of tensors by codec."""
    removed_files: tuple[str, ...] = ()
    """Paths of base files that the target does not have."""
    sizes: tuple[int, ...] = ()
    """Bytes of each of its files."""
    stored: dict[str, int] = field(default_factory=dict)
    """Bytes that each file without weights takes in the patch, by path."""


def write_file(contents: PatchContents, out: Output) -> WrittenPatch:
    """Write a patch file."""
    pair = contents.pair
    refs = _refs(pair, (file for file in pair.base.weights if file.scope in pair.base_scopes))
    table = _table(contents, pair.target.weights[0])
    written = _write(contents, pair.target.weights[0], table, out, refs)
    return WrittenPatch(written.size, table.totals, _codecs([table]), sizes=(written.size,))


def encoded_files(contents: PatchContents, built: Place) -> Iterator[OtherFile]:
    """Encode the target's files without weights, one by one, into a patch folder."""
    base, target = contents.pair.base, contents.pair.target
    return (other_files.encode(name, target.others[name], _base_file(base, name), built) for name in target.kept)


def write_patch(contents: PatchContents, built: Place, files: Iterable[OtherFile]) -> WrittenPatch:
    """Write a patch file or a patch folder, whichever the target is.

    Args:
        contents: what is written.
        built: where; nothing is there yet.
        files: the target's files without weights, whose frames are written into the folder as they are asked for.
    """
    if contents.pair.target.is_file:
        with create_file(built, contents.payload_size) as file:
            return write_file(contents, file)
    if isinstance(built, Path):
        built.mkdir()
    return write_folder(contents, built, list(files))


def write_folder(contents: PatchContents, built: Place, files: Sequence[OtherFile]) -> WrittenPatch:
    """Write a patch folder: its index last, which marks it as whole.

    Args:
        contents: what is written.
        built: the folder, which exists, and has the frames of ``files``.
        files: the target's files without weights.
    """
    base, target = contents.pair.base, contents.pair.target
    tables = [_table(contents, file) for file in target.weights]
    shards = _write_shards(contents, tables, built)
    index = Index(
        base_identity=contents.pair.base_identity,
        base_files=_refs(contents.pair, base.weights),
        target_identity=contents.pair.target_identity,
        shards=tuple(shards),
        files=tuple(files),
        removed=_removed_files(base, {*(file.path for file in files), *(file.path for file in target.weights)}),
        totals=sum((table.totals for table in tables), Totals()),
        info=contents.info,
    )
    data = index.to_bytes()
    with create_file(built / INDEX_NAME) as out:
        out.write(data)
    sizes = (len(data), *(shard.size for shard in shards), *(file.stored for file in files if file.kind != "same"))
    stored = {file.path: file.stored for file in files}
    return WrittenPatch(sum(sizes), index.totals, _codecs(tables), index.removed, sizes, stored)


# --- patch files ---


def _with_copies(entries: dict[TensorKey, Entry]) -> dict[TensorKey, Entry]:
    """The entries of a scope, of which each with a payload that repeats another one's content is a copy of that one, if that one counts.

    The original is the unchanged one, or one whose base is that of its own name.
    """
    first: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
    copies = dict[TensorKey, Entry]()
    for key, entry in sorted(entries.items(), key=lambda item: (not item[1].counts, item[1].kind != "same", bool(item[1].pieces))):
        content = entry.digest, entry.dtype, entry.shape
        if entry.has_payload and entry.nbytes and content in first:
            copies[key] = Entry(
                name=entry.name,
                dtype=entry.dtype,
                shape=entry.shape,
                kind="copy",
                of=first[content],
                counts=entry.counts,
                digest=entry.digest,
            )
        elif entry.counts:
            first.setdefault(content, entry.name)
    return entries | copies


def _table(contents: PatchContents, file: WeightFile) -> Table:
    """The table of one weight file's patch file."""
    entries = contents.entries[file.scope]
    return Table.of([entries[tensor.key] for tensor in file.tensors], _removed(contents, file))


def _removed(contents: PatchContents, file: WeightFile) -> tuple[str, ...]:
    """Base tensors that no target scope paired with theirs has, or uses as a base; listed by the first file of all these scopes alone."""
    scopes = contents.pair.scopes
    base_id = scopes[file.scope].base_id
    sharing = [scope for scope, paired in scopes.items() if paired.base_id == base_id]
    if base_id is None or file.path != min((f.path for f in contents.pair.target.weights if f.scope in sharing), key=str.encode):
        return ()
    used = {name for scope in sharing for entry in contents.entries[scope].values() for name in (entry.name, *entry.base_names)}
    return tuple(sorted(set(scopes[file.scope].base) - used, key=str.encode))


def _codecs(tables: Iterable[Table]) -> dict[str, int]:
    """Number of tensors by codec."""
    return dict(Counter(entry.codec for table in tables for entry in table.entries if entry.codec))


def _write_shards(contents: PatchContents, tables: Sequence[Table], built: Place) -> list[ShardRef]:
    target, shards, described, pieces = contents.pair.target, list[ShardRef](), 0, sum(table.pieces for table in tables)
    if pieces > MAX_ALL_PIECES:
        raise CheckpointError(
            f"{target.path}: its bases have {pieces} pieces, a patch at most {MAX_ALL_PIECES}: patch its parts one by one"
        )
    for file, table in zip(target.weights, tables, strict=True):
        with create_file(built / "patch" / file.path, sum(entry.payload_size for entry in table.entries)) as out:
            written = _write(contents, file, table, out, None)
        described += written.described
        if described > MAX_ALL_DESCRIBED:
            raise CheckpointError(
                f"{target.path}: its tables and headers have more than {MAX_ALL_DESCRIBED} bytes: patch its parts one by one"
            )
        shards.append(ShardRef(target=file.path, size=written.size, sha256=written.sha256, digest=written.digest))
    return shards


def _write(contents: PatchContents, file: WeightFile, table: Table, out: Output, base_files: tuple[FileRef, ...] | None) -> WrittenFile:
    """Write the patch file of one weight file; ``base_files`` is None in a folder, whose index lists them."""
    pair = contents.pair
    metadata = Metadata(
        base_identity=pair.base_identity,
        base_scope=pair.scopes[file.scope].base_id,
        base_files=base_files,
        target_path=file.path,
        target_size=file.file.size,
        target_sha256=pair.sha256(file),
        target_identity=pair.target_identity,
        target_scope=file.scope,
        totals=table.totals,
        info={} if base_files is None else contents.info,
    )
    report = contents.report if file is pair.target.weights[0] else None
    stored = (t.key for t, entry in zip(file.tensors, table.entries, strict=True) if entry.has_payload)
    places = merged(place for key in stored for place in pair.payloads[key])  # those of many small tensors lie one behind the other
    return write_patch_file(out, metadata, PatchParts(table, file.header.raw, report, pair.spool.read(places)))


# --- the index ---


def _base_file(base: Checkpoint, name: str) -> Place | None:
    """The base's file of the same path; none for an index, since a base in other shards would not have the same one."""
    return None if is_index(name) else base.others.get(name)


def _removed_files(base: Checkpoint, present: set[str]) -> tuple[str, ...]:
    names = {*base.kept, *(file.path for file in base.weights)} - present
    return tuple(sorted((name for name in names if safe_paths.unsafe_reason(name) is None), key=str.encode))


def _refs(pair: EncodedPair, files: Iterable[WeightFile]) -> tuple[FileRef, ...]:
    hashed = ((file, pair.sha256(file)) for file in files)
    return tuple(FileRef(path=file.path, size=file.file.size, sha256=sha256) for file, sha256 in hashed if sha256 is not None)

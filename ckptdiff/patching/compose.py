"""A chain of patches composed to one, without the base (spec section 10.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ckptdiff.checkpoint.contents import Checkpoint, TensorKey, WeightFile
from ckptdiff.checkpoint.pairing import Pairing
from ckptdiff.errors import CheckpointError, UnsupportedError, cut
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import Bytes
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.safetensors import Header
from ckptdiff.format.sealed import FileRef
from ckptdiff.io.parallel import Progress, Threads
from ckptdiff.io.places import Place
from ckptdiff.io.source import WeightSource
from ckptdiff.patching.chain import check_order, follows
from ckptdiff.patching.compose_files import OtherFiles
from ckptdiff.patching.compose_history import Histories
from ckptdiff.patching.compose_tensors import TargetTensor, TensorComposer, check_composable, copy_of
from ckptdiff.patching.encode_pair import EncodedPair, PairedScope
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.spool import Spool
from ckptdiff.patching.write import PatchContents

MAX_COMPOSED = 1 << 12
"""Patches that are composed at once."""
BATCH = 8 * BLOCK
"""Bytes of tensors that a thread is given at once: many small ones, or a few blocks."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What is kept of each patch of a chain."""

    path: Place
    base_identity: bytes
    target_identity: bytes


@dataclass(slots=True)
class StatedFile:
    """A :class:`~ckptdiff.io.source.WeightSource` of which a patch states all that is asked for, so that it is never read."""

    name: str
    size: int
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.name)

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Nothing asks for its bytes."""
        raise AssertionError(self.name)

    def view(self, offset: int, size: int) -> None:
        """None: it is not in memory."""

    def check_unchanged(self) -> None:
        """Do nothing: it is not there."""

    def close(self) -> None:
        """Do nothing: it was never opened."""


class Composition:
    """A chain of patches, of which each is open only while it is added.

    Attributes:
        size: bytes of the patches.
        others: what becomes of the files without weights.
    """

    def __init__(self) -> None:
        self.size, self.others = 0, OtherFiles()
        self._noted, self._histories = list[Noted](), Histories()

    def add(self, patch: OpenPatch) -> None:
        """Take the next patch, whose payloads are checked already.

        Raises:
            BaseMismatchError: it does not follow the one before, or needs what that does not give.
            CheckpointError: it is one file of a patch folder.
        """
        noted = Noted(patch.path, patch.base_identity, patch.target_identity)
        check_stands_alone(patch)
        if self._noted and not follows(noted, self._noted[-1]):
            check_order([*self._noted, noted])
        if not self._noted:
            self._first = FirstPatch.of(patch)
        self._noted.append(noted)
        self._histories.add(patch)
        self.others.add(patch)
        self.size, self.last = self.size + patch.stored_size, patch

    def encode(self, spool: BinaryIO, threads: int, progress: Progress, copies: bool = True) -> PatchContents:
        """Compose all tensors.

        Args:
            spool: an empty file for their payloads.
            threads: how many to use; the result does not depend on it.
            progress: called with how much is composed, in bytes of the target.
            copies: as of :class:`~ckptdiff.patching.write.PatchContents`.

        Raises:
            UnsupportedError: only the base can tell what a tensor or a file becomes.
            FormatError, IntegrityError: a block cannot be decoded, or a patch does not give what it states.
        """
        if (self.last.index is not None) is not self._first.is_folder:
            both = f"{self._noted[0].path} and {self.last.path}"
            raise UnsupportedError(f"{both}: one is a patch file, the other a patch folder: give the base (--base)")
        self.others.check()
        tensors = self._tensors()
        repeated = check_composable(tensors, self._histories.files)
        batch = min(BATCH, self.last.output_size // (4 * threads))
        composer = TensorComposer(self._histories.files, Spool(spool), Threads(threads, batch), progress)
        composer.compose([tensor for tensor in tensors if tensor not in set(repeated)])
        pair = EncodedPair(
            self._first.checkpoint(self.others.in_base),
            target_of(self.last, lambda file: StatedFile(file.metadata.target_path, file.metadata.target_size), {}),
            self._scopes(tensors, composer),
            self._noted[0].base_identity,
            self.last.target_identity,
            {},
            composer.spool,
            composer.payloads,
            Pairing(self._histories.base_scopes),
        )
        contents = PatchContents(pair, facts_of(self._first.info, self.last.info), None, copies)
        for tensor in repeated:
            contents.entries[tensor.key.scope][tensor.key] = copy_of(tensor, contents.entries[tensor.key.scope])
        self._check_removed(contents)
        return contents

    def _tensors(self) -> list[TargetTensor]:
        """The last patch's tensors."""
        found = list[TargetTensor]()
        for file, row in zip(self.last.files, self._histories.given, strict=True):
            for entry, given in zip(file.table.entries, row, strict=True):
                found.append(TargetTensor(key_of(file, entry), f"{file.source.name}: tensor {cut(entry.name)}", entry, given))
        return found

    def _scopes(self, tensors: list[TargetTensor], composer: TensorComposer) -> dict[str, PairedScope]:
        """The target's scopes, with the entries of their tensors in the order in which ``make`` has them: those with a base first."""
        scopes = {
            scope: PairedScope(base, self._first.base_names.get(base or "", ())) for scope, base in self._histories.base_scopes.items()
        }
        entries = [(tensor.key, composer.entries[tensor.key]) for tensor in tensors if tensor.key in composer.entries]
        for key, entry in sorted(entries, key=lambda row: not row[1].has_base):
            scopes[key.scope].entries[key] = entry
        return scopes

    def _check_removed(self, contents: PatchContents) -> None:
        """Raise UnsupportedError if only the base can tell whether a tensor is to be listed as removed."""
        used = dict[str, set[str]]()
        for scope, base in self._histories.base_scopes.items():
            entries = contents.entries[scope].values()
            used.setdefault(base or "", set()).update(name for entry in entries for name in (entry.name, *entry.base_names))
        for base, names in used.items():
            unsure = self._first.own_names.get(base, set()) - names - set(self._first.base_names.get(base, ()))
            if unsure:
                raise UnsupportedError(
                    f"{self._noted[0].path}: tensor {cut(min(unsure))}: does not come from the base's tensor of that name, and "
                    f"{self.last.path} no longer has it: only the base can tell whether it is one that was removed: give it (--base)"
                )


def key_of(file: PatchFile, entry: Entry) -> TensorKey:
    """The key of a target tensor."""
    return TensorKey(file.metadata.target_scope, entry.name, "" if entry.counts else file.metadata.target_path)


def check_stands_alone(patch: OpenPatch) -> None:
    """Raise CheckpointError for one file of a patch folder."""
    if patch.index is None and patch.files[0].metadata.base_files is None:
        raise CheckpointError(f"{patch.path}: is one file of a patch folder: give the folder")


def target_of(patch: OpenPatch, source_of: Callable[[PatchFile], WeightSource], others: Mapping[str, Path]) -> Checkpoint:
    """A patch's target as a checkpoint, whose files are read from elsewhere; ``others``: the local files without weights, by path."""
    weights = [
        WeightFile(stated.target_path, stated.target_scope, source_of(file), file.header, sha256=stated.target_sha256)
        for file in patch.files
        for stated in (file.metadata,)
    ]
    counting = dict[str, dict[str, str]]()
    for (scope, name), (file, _) in patch.entries.items():
        counting.setdefault(scope, {})[name] = file.metadata.target_path
    in_memory = any(file.sha256 is None for file in weights)
    maps = {scope: [weight_map] for scope, weight_map in counting.items()}
    return Checkpoint(patch.path, patch.index is None, weights, dict(others), in_memory=in_memory, tied=dict(patch.tied), weight_maps=maps)


def facts_of(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """What a composed patch records (spec 5.1), given what the chain's first and last patch do."""
    found = {key: value for key, value in first.items() if key in ("base_repo", "base_revision")}
    return found | {key: value for key, value in last.items() if key in ("target_repo", "target_revision", "tied")}


@dataclass(frozen=True, slots=True)
class FirstPatch:
    """What is kept of the first patch of a chain."""

    is_folder: bool
    base_files: tuple[FileRef, ...]
    base_scope: str
    """Of a patch file."""
    info: dict[str, Any]
    base_names: dict[str, set[str]]
    """Names of the base's tensors, as far as the patch tells them, by base scope."""
    own_names: dict[str, set[str]]
    """Names of the target's tensors, by base scope."""

    @classmethod
    def of(cls, patch: OpenPatch) -> FirstPatch:
        base_names, own_names = dict[str, set[str]](), dict[str, set[str]]()
        for file in patch.files:
            scope, table = file.metadata.base_scope, file.table
            if scope is not None:
                base_names.setdefault(scope, set()).update(table.removed, (n for entry in table.entries for n in entry.base_names))
                own_names.setdefault(scope, set()).update(entry.name for entry in table.entries)
        scopes = [file.metadata.base_scope or "" for file in patch.files]
        return cls(patch.index is not None, patch.base_files, scopes[0] if scopes else "", patch.info, base_names, own_names)

    def checkpoint(self, paths: set[str]) -> Checkpoint:
        """The base, as far as patches tell what it is; ``paths``: of its files."""
        header = Header(b"", None, ())
        weights = [
            WeightFile(ref.path, self.base_scope, StatedFile(ref.path, ref.size), header, sha256=ref.sha256) for ref in self.base_files
        ]
        return Checkpoint(Path("the base"), not self.is_folder, weights, {path: Path(path) for path in paths})

"""A chain of patches composed through the base: the target is rebuilt block by block, and encoded as ``make`` does (spec section 10.1)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ckptdiff.checkpoint.adapt import units_per_group
from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.pairing import pair
from ckptdiff.errors import BaseMismatchError, IntegrityError, cut
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import Progress, Threads
from ckptdiff.io.places import is_file
from ckptdiff.patching.build import build
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.compose import FirstPatch, check_stands_alone, facts_of, key_of, target_of
from ckptdiff.patching.encode_options import EncodeOptions, on_threads
from ckptdiff.patching.encode_pair import EncodedPair, encode_pair
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import Rebuilder, ScratchTensors
from ckptdiff.patching.recipes import Recipe, steps_of
from ckptdiff.patching.target_files import write_others
from ckptdiff.patching.write import PatchContents, check_size


class RebuiltFile:
    """A :class:`~ckptdiff.io.source.WeightSource` over a weight file of a chain's target, of which ranges are built as they are read."""

    def __init__(self, rebuilder: Rebuilder, file: PatchFile) -> None:
        depth = len(rebuilder.chain) - 1
        self.name, self.path, self.size = file.source.name, Path(file.source.name), file.metadata.target_size
        self._recipes = [rebuilder.recipe(depth, file, entry) for entry in file.table.entries]
        self._begins = [file.header.data_start + info.begin for info in file.header.tensors]

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``, which must lie in one tensor; digests are not compared."""
        if len(out) == 0:
            return
        k = bisect_right(self._begins, offset) - 1
        start = offset - self._begins[k]
        out[:] = _built(self._recipes[k], start, start + len(out))

    def view(self, offset: int, size: int) -> None:
        """None: it is not in memory."""

    def check_unchanged(self) -> None:
        """Do nothing: the base and the patches are what may change."""

    def close(self) -> None:
        """Do nothing: nothing was opened."""


def _built(recipe: Recipe, start: int, stop: int) -> Bytes:
    """Bytes ``start`` to ``stop`` of a tensor, out of the ranges of whole blocks that they lie in."""
    step = units_per_group(*(step.dtype for step in steps_of(recipe))) * DTYPES[recipe.dtype].carrier
    first = start // step * step
    parts = [build(recipe, at, min(at + step, recipe.nbytes)).data.copy() for at in range(first, stop, step)]  # each may be scratch
    data = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return data[start - first : stop - first]


@dataclass(frozen=True, slots=True)
class ThroughBase:
    """How to compose through the base."""

    codec: str | None
    """As of :func:`ckptdiff.make`."""
    threads: int
    progress: Progress

    def encode(self, base: Checkpoint, chain: Sequence[OpenPatch], spool: BinaryIO, folder: Path) -> PatchContents:
        """Encode the target of a chain, of which payloads are checked already, against its base.

        Args:
            base: the checkpoint that the first patch was made from.
            chain: the patches.
            spool: an empty file for payloads.
            folder: a folder to make for tensors and files in between, whose parent exists.

        Raises:
            FormatError, IntegrityError: a patch does not give what it states.
            BaseMismatchError: the base or the order of the chain is wrong.
        """
        check_chain(chain)
        for patch in chain:
            check_stands_alone(patch)
        base.others = {name: path for name, path in base.others.items() if is_file(path)}  # a later patch may name others
        last, scratch = chain[-1], ScratchTensors(folder / "tensors")
        try:
            rebuilder = Rebuilder(base, chain, Threads(self.threads), scratch)
            with rebuilder.explained():
                target = self._target(rebuilder, folder / "files")
                encoded = encode_pair(base, target, pair(base, target), self._options(base, target), spool, self.progress)
                _check(encoded, chain)
            base.check_unchanged()
            if base.in_memory:  # the first patch names the files that hold it, if it is in any
                encoded = replace(encoded, base=FirstPatch.of(chain[0]).checkpoint(set()))
            return PatchContents(encoded, facts_of(chain[0].info, last.info), None)
        finally:
            scratch.close()

    def _options(self, base: Checkpoint, target: Checkpoint) -> EncodeOptions:
        return on_threads(base, target, self.codec, self.threads, None)

    def _target(self, rebuilder: Rebuilder, folder: Path) -> Checkpoint:
        """The target of a chain, whose other files are written into a folder."""
        last = rebuilder.chain[-1]
        if last.others:
            folder.mkdir(parents=True)
            write_others(rebuilder, folder, folder.with_name("scratch"))
        target = target_of(last, lambda file: RebuiltFile(rebuilder, file), {other.path: folder / other.path for other in last.others})
        check_size(target)
        return target


def _check(pair: EncodedPair, chain: Sequence[OpenPatch]) -> None:
    """Check what was built: that digests are those that the patches state.

    Raises:
        IntegrityError: a tensor has another content than the last patch states.
        BaseMismatchError: the base is another.
    """
    first, last = chain[0], chain[-1]
    for file in last.files:
        for entry in file.table.entries:
            scope = pair.scopes[file.metadata.target_scope]
            stated = last.entries[file.metadata.target_scope, entry.of][1].digest if entry.of is not None else entry.digest
            found = scope.entries[key_of(file, entry)].digest
            if found != stated:
                raise IntegrityError(
                    f"{file.source.name}: tensor {cut(entry.name)}: rebuilt with the digest {found.hex()}, expected {stated.hex()}: "
                    "fetch the patch again"
                )
    if pair.base_identity != first.base_identity:
        raise BaseMismatchError(
            f"{pair.base.path}: has the identity {pair.base_identity.hex()}, but {first.path} was made from {first.base_identity.hex()}: "
            "give that base"
        )

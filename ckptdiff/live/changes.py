"""What a patch changes, tensor by tensor: positions, ulp distances, and new values (spec section 7.2)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase, default_pieces
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.names import near_names
from ckptdiff.errors import CheckpointError, UnsupportedError, cut
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES, Bytes, Replacement, Units
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import Threads
from ckptdiff.patching.build import check_changed, unpack
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.memory import open_state, state_of
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import Rebuilder, open_base
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, RebuildJob, Recipe

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """What a patch changes in one tensor of its target."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of the target's tensor, in elements."""
    positions: Positions
    """The units that change, counted in the flat tensor, rising: int64[n]. A unit (spec section 4) is an element, but for C64, of which it
    is a real or imaginary part, and for F4 and F6, of which it is a byte."""
    distances: npt.NDArray[np.int64]
    """By how many ulps each moves, down if negative (spec section 7.2), from the adapted base: int64[n]."""
    values: Units | None
    """The target's units at these positions, as unsigned integers of their bits: [n]; None where no base was given."""
    scope: str
    """Which model of the target it is in, where that has several."""


def changes_of(patch: OpenPatch, names: Collection[str] | None, base: Any, threads: int) -> Iterator[Change]:
    """:meth:`ckptdiff.Patch.changes`."""
    check_chain([patch])
    chosen = [row for (_, name), row in patch.entries.items() if names is None or name in names]
    missing = [name for name in names or () if all(name != entry.name for _, entry in chosen)]
    if missing:
        near = near_names(missing[0], (name for _, name in patch.entries))
        raise CheckpointError(f"{patch.path}: its target has no tensor {cut(missing[0])}" + (f"; it has {near}" if near else ""))
    if base is None:
        for file, entry in chosen:
            _check_told(file, entry)
        return (_change(file, entry) for file, entry in chosen if entry.kind == "delta")
    return _through(patch, [row for row in chosen if row[1].kind != "same"], base, threads)


def _check_told(file: PatchFile, entry: Entry) -> None:
    """Raise UnsupportedError unless the patch alone tells what changes in a tensor."""
    why = {"new": "is new", "copy": f"is a copy of {cut(entry.of)}"}.get(entry.kind, f"is coded by {entry.codec}")
    if entry.kind != "same" and entry.codec != "sparse":
        raise UnsupportedError(
            f"{file.source.name}: tensor {cut(entry.name)}: {why}: only the base tells which units change: give base=, or leave the tensor "
            "out with names="
        )


def _change(file: PatchFile, entry: Entry) -> Change:
    """What a ``sparse`` entry changes."""
    positions, zigzags = list[Positions](), list[Units]()
    for start, in_block, moved in coded_changes(file, entry):
        positions.append(in_block.astype(np.int64) + start)
        zigzags.append(moved)
    return _of(file, entry, np.concatenate(positions), np.concatenate(zigzags), None)


def coded_changes(file: PatchFile, entry: Entry) -> Iterator[tuple[int, Units, Units]]:
    """What a ``sparse`` entry changes, block by block.

    Yields:
        The number of the block's first unit, the positions in the block of those that change, and the zigzags of their ulp distances.

    Raises:
        FormatError, IntegrityError: the patch does not give what it states; what came before is right.
    """
    step, dtype, count = PatchedTensor(file, entry, None), DTYPES[entry.dtype], 0
    for block in range(block_count(entry.nbytes)):
        (coded,) = file.payloads.read_blocks(entry, block, block + 1)
        change = unpack(step, block, coded, None, min(BLOCK, entry.nbytes - block * BLOCK))
        assert not isinstance(change, Replacement)
        yield block * (BLOCK // dtype.carrier), *change
        count += len(change[0])
    check_changed(step, count)


def _of(file: PatchFile, entry: Entry, positions: Positions, zigzags: Units, values: Units | None) -> Change:
    half, odd = (zigzags >> 1).astype(np.int64), (zigzags & 1).astype(np.int64)
    return Change(entry.name, entry.dtype, entry.shape, positions, half ^ -odd, values, file.metadata.target_scope)


# --- with the base ---


def _through(patch: OpenPatch, rows: list[tuple[PatchFile, Entry]], base: Any, threads: int) -> Iterator[Change]:
    """What entries change, by building the target's tensors."""
    with ExitStack() as stack:
        if isinstance(base, (str, os.PathLike)):
            old = stack.enter_context(open_base(base, [patch], only_weights=True))
        else:
            old = open_state(state_of(base, "the base"), "the base")
        rebuilder = Rebuilder(old, [patch], Threads(threads))
        stack.enter_context(rebuilder.explained())
        recipes = [rebuilder.recipe(0, file, entry) for file, entry in rows]
        olds = [_old(old, file, entry, recipe) for (file, entry), recipe in zip(rows, recipes, strict=True)]

        def sink(job: RebuildJob, new: Bytes) -> tuple[Positions, Units, Units]:
            dtype = DTYPES[rows[job.tensor][1].dtype]
            found, zigzags = kernels.changes.changes_of(olds[job.tensor].read(job.start, job.stop, "old"), new, dtype)
            return found.astype(np.int64) + job.start // dtype.carrier, zigzags.copy(), new.view(dtype.unit)[found]

        parts = list[tuple[Positions, Units, Units]]()
        with closing(rebuilder.rebuild(recipes, sink)) as results:
            for job, part in results:
                parts.append(part)
                if job.last:
                    positions, zigzags, values = (np.concatenate(column) for column in zip(*parts, strict=True))
                    yield _of(*rows[job.tensor], positions, zigzags, values)
                    parts.clear()


def _old(base: Checkpoint, file: PatchFile, entry: Entry, recipe: Recipe) -> AdaptedBase:
    """What the units of a tensor moved from: its adapted base, or, where the patch has none, the base's tensor of its name."""
    if entry.kind == "delta":
        assert isinstance(recipe.base, AdaptedTensor) and isinstance(recipe.base.source, AdaptedBase)  # the chain has one patch
        return recipe.base.source
    tensor: Tensor | None = (base.scope(file.metadata.base_scope or "") or {}).get(entry.name)
    if tensor is None or (tensor.dtype, tensor.units) != (entry.dtype, entry.units):
        raise UnsupportedError(
            f"{file.source.name}: tensor {cut(entry.name)}: the base has no tensor of that name, dtype and size to count changes from: "
            "leave it out with names="
        )
    return AdaptedBase(default_pieces(entry.name, tensor.units, entry.units), {entry.name: tensor}, entry.dtype, entry.dtype, entry.units)

"""The tensors that a report reads, of a base and of a target, which is a checkpoint, or a patch that need not be applied first."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.pairing import Rename, check_renames, pair_all
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.recognition import is_patch
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import Threads
from ckptdiff.patching.adapt import AdaptedBase
from ckptdiff.patching.build import TensorCheck, build
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.provenance import recorded_base
from ckptdiff.patching.rebuild import Rebuilder, check_stored, open_base
from ckptdiff.patching.recipes import AdaptedTensor, Recipe, steps_of


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor that has the same dtype and shape in base and target."""

    scope: str
    """Its scope in the target."""
    name: str
    """Its name in the target."""
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    """Bytes in each of base and target."""
    old: Tensor | None
    """The tensor of the base; None where it is adapted to the target's dtype or put together from pieces."""
    read: Callable[[int, int], tuple[Bytes, Bytes]]
    """``read(start, start + step)`` returns its bytes in base and target. It may be called for :attr:`starts` in any order; the arrays are
    valid until the same thread reads again."""
    finish: Callable[[], None]
    """Compares what was read with the digests of a patch, once all of it was read."""
    against_zeros: int = 0
    """Elements at the target's end that stand against zeros, and are not part of this."""

    @property
    def step(self) -> int:
        """Bytes to read at a time: whole blocks that hold whole elements, which takes three blocks where an element has six bits."""
        return BLOCK * (3 if DTYPES[self.dtype].bits == 6 else 1)

    @property
    def starts(self) -> range:
        """Where to read from, in bytes."""
        return range(0, max(self.nbytes, 1), self.step)


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of a base and a target."""

    base: str
    """Name of the base, for people."""
    target: str
    """Name of the target, for people."""
    pairs: tuple[Pair, ...]
    added: tuple[str, ...]
    """Names of tensors that only the target has."""
    removed: tuple[str, ...]
    """Names of tensors that only the base has."""
    unpaired: tuple[str, ...]
    """Names of tensors that both have, but with another dtype or shape."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Base and target, where both are checkpoints."""


def named_base(*updates: str | os.PathLike[str]) -> str:
    """The repo on the Hub that the first patch among some updates names as its base.

    Raises:
        CheckpointError: an update cannot be read, or none is a patch. HubError: the patch names no base, or the base cannot be read.
    """
    patches = [update for update in updates if is_patch(update)]
    if not patches:
        raise CheckpointError("checkpoints do not name their base: give it with --base")
    return recorded_base(patches[0])


@contextmanager
def open_source(
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    selection: Selection | None = None,
    renames: Sequence[Rename] = (),
) -> Iterator[Source]:
    """Open a base, and a target checkpoint or a patch from that base.

    Args:
        base: a checkpoint.
        target: a checkpoint, whose tensors are paired with the base's by name, or a patch, which says itself which tensors belong together.
        selection: which files of checkpoints to take; the caller checks whether its globs match any file.
        renames: rules for the names of a target checkpoint's tensors.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is not one.
        FormatError, UnsupportedError, IntegrityError: the patch is broken. BaseMismatchError: the patch has another base.
    """
    names = (Path(base).name or str(base), Path(target).name or str(target))
    with ExitStack() as stack:
        if is_patch(target):
            patch = stack.enter_context(open_patch(target))
            old = stack.enter_context(open_base(base, [patch], only_weights=True))
            rebuilder = Rebuilder(old, [patch], Threads(1))
            with rebuilder.explained():
                yield _source_of_patch(rebuilder, patch, *names)
        else:
            old, new = (stack.enter_context(open_checkpoint(path, selection=selection)) for path in (base, target))
            check_renames(new, renames)
            paired = pair_all(old, new, renames)
            pairs = tuple(_pair_of_tensors(a, b) for a, b in paired.pairs)
            yield Source(*names, pairs, paired.only_in_target, paired.only_in_base, paired.mismatched, (old, new))
        old.check_unchanged()


def _pair_of_tensors(old: Tensor, new: Tensor) -> Pair:
    def read(start: int, stop: int) -> tuple[Bytes, Bytes]:
        return old.read(start, stop, "base"), new.read(start, stop, "target")

    return Pair(new.scope, new.name, new.dtype, new.shape, new.nbytes, old, read, lambda: None)


def _source_of_patch(rebuilder: Rebuilder, patch: OpenPatch, base_name: str, target_name: str) -> Source:
    """The tensors of a patch, each of which is rebuilt block by block while it is read."""
    check_chain([patch])
    check_stored(patch)
    pairs: list[Pair] = []
    added: list[str] = []
    removed: list[str] = []
    unpaired: list[str] = []
    for file in patch.files:
        for entry in file.table.entries:
            recipe = rebuilder.recipe(0, file, entry)
            source = steps_of(recipe)[0]
            old = source.source if isinstance(source, AdaptedTensor) and isinstance(source.source, AdaptedBase) else None
            if old is None:
                added.append(entry.name)
            elif not _is_comparable(old, entry):
                unpaired.append(entry.name)
            else:
                pairs.append(_pair_of_recipe(rebuilder, recipe, old, file.metadata.target_scope, entry))
        removed += file.table.removed
    return Source(base_name, target_name, tuple(pairs), tuple(added), tuple(removed), tuple(unpaired))


def _is_comparable(old: AdaptedBase, entry: Entry) -> bool:
    """Whether what stands against base tensors is the first elements of a target tensor: no zeros before others, and no half elements."""
    dtype, units = DTYPES[entry.dtype], entry.units - old.against_zeros
    inside = any(piece.name is None for piece in old.pieces)
    return not inside and (units > 0 or entry.units == 0) and 8 * units * dtype.carrier % dtype.bits == 0


def _pair_of_recipe(rebuilder: Rebuilder, recipe: Recipe, old: AdaptedBase, scope: str, entry: Entry) -> Pair:
    """A tensor of a patch as far as it stands against units of base tensors: what it has beyond them is left out."""
    check, dtype = TensorCheck(recipe), DTYPES[entry.dtype]
    nbytes = entry.nbytes - old.against_zeros * dtype.carrier
    elements, row = 8 * nbytes // dtype.bits, math.prod(entry.shape[1:])
    shape = entry.shape if nbytes == entry.nbytes else (elements // row, *entry.shape[1:]) if row and elements % row == 0 else (elements,)

    def add(start: int, stop: int) -> Bytes:
        built = build(recipe, start, min(stop, entry.nbytes))
        check.add(start, built.leaves, built.changed)
        return built.data

    def read(start: int, stop: int) -> tuple[Bytes, Bytes]:
        new = add(start, stop)[: max(nbytes - start, 0)]
        return old.read(start, start + len(new)), new

    def finish() -> None:
        for start in range(pair.starts[-1] + pair.step, entry.nbytes, pair.step):
            add(start, start + pair.step)
        check.finish(rebuilder.checked)

    left_out = 8 * (entry.nbytes - nbytes) // dtype.bits
    pair = Pair(scope, entry.name, entry.dtype, shape, nbytes, old.whole, read, finish, left_out)
    return pair

"""The tensors that a report reads, of a base and of a target, which is a checkpoint, or a patch that need not be applied first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ckptdiff.analysis.cast_on_read import cast_base, cast_dtype, read_step
from ckptdiff.analysis.pair_readers import Reader, RecipeReader, TensorReader
from ckptdiff.analysis.sides import Side, is_patch_side, is_path, open_base_side, open_patch_side, open_side, side_name
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.pairing import Counterpart, pair
from ckptdiff.checkpoint.recognition import is_patch
from ckptdiff.checkpoint.renames import Rename, check_renames
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import Threads
from ckptdiff.patching.build import Latest
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.provenance import recorded_base
from ckptdiff.patching.rebuild import Rebuilder, base_scope_of, check_stored
from ckptdiff.patching.recipes import AdaptedTensor, Recipe, steps_of


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a pair, or a matrix of one that is stacked from several base tensors."""

    index: int | None
    """Number of the matrix; None for the whole tensor."""
    stop: int
    """The element of the pair behind its last."""
    shape: tuple[int, ...]
    bases: tuple[str, ...]
    """Names of the base tensors that it stands against."""


@dataclass(frozen=True)
class Pair:
    """A tensor of the target, as far as it stands against units of base tensors, and these, adapted to it."""

    scope: str
    """Its scope in the target."""
    name: str
    """Its name in the target."""
    shape: tuple[int, ...]
    """Of what is compared."""
    base: AdaptedBase
    """What it stands against."""
    base_scope: str
    reader: Reader
    """Reads it on both sides."""
    target_shape: tuple[int, ...]
    """Of the whole tensor of the target."""

    @property
    def dtype(self) -> str:
        """Of what is compared: the target's, or that to which both are cast."""
        return self.base.dtype

    @property
    def old(self) -> Tensor | None:
        """The tensor of the base; None where it is adapted to the target's dtype or put together from pieces."""
        return self.base.whole

    @property
    def is_own(self) -> bool:
        """Whether it stands against the base tensor of its own name, and has that one's dtype."""
        return set(self.base.tensors) <= {self.name} and self.base.base_dtype == self.reader.stored

    @property
    def against_zeros(self) -> int:
        """Elements of the target that stand against zeros, as no base tensor has them; they are not part of this."""
        return 8 * self.base.against_zeros * DTYPES[self.dtype].carrier // DTYPES[self.dtype].bits

    @property
    def nbytes(self) -> int:
        """Bytes of the target up to the last one that stands against a base tensor."""
        return self.base.starts[-1] * DTYPES[self.dtype].carrier

    @property
    def step(self) -> int:
        """Bytes to read at a time."""
        return read_step(self.reader.stored, self.dtype)

    @property
    def starts(self) -> range:
        """Where to read from, in bytes."""
        return range(0, max(self.nbytes, 1), self.step)

    @cached_property
    def parts(self) -> list[Part]:
        """The tensor; or its matrices, where it is stacked from several base tensors, such as experts."""
        elements = math.prod(self.shape)
        whole = [Part(None, elements, self.shape, tuple(self.base.tensors))]
        if len(self.shape) < 3 or len(self.base.tensors) < 2 or DTYPES[self.dtype].bits < 8 or self.base.against_zeros:
            return whole
        size, count = math.prod(self.shape[-2:]), math.prod(self.shape[:-2])
        units = self.base.units // count
        return [Part(k, (k + 1) * size, self.shape[-2:], tuple(self.base.names(k * units, (k + 1) * units))) for k in range(count)]

    def read(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Its bytes ``start`` to ``stop`` in base and target, without what stands against zeros.

        It may be called for :attr:`starts` in any order; the arrays are valid until the same thread reads again.
        """
        old, new = self.reader.read(start, stop)
        runs = self._runs(start, start + len(new))
        if runs == [(0, len(new))]:
            return old[: len(new)], new
        parts = [[data[first:last] for first, last in runs] or [data[:0]] for data in (old, new)]
        return np.concatenate(parts[0]), np.concatenate(parts[1])

    def finish(self) -> None:
        """Compare what was read with the digests of a patch, once all of it was read, or :meth:`~Reader.give` was told of it."""
        self.reader.finish()

    def _runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where in bytes ``start`` to ``stop`` of the target base tensors stand against it, counted from ``start``."""
        if self.base.named[-1] == self.base.starts[-1]:
            return [(0, min(stop, self.nbytes) - start)] * (self.nbytes > start)
        carrier, runs = DTYPES[self.dtype].carrier, list[tuple[int, int]]()
        for named, first, last in self.base.runs(start // carrier, stop // carrier):
            begin, end = first * carrier - start, last * carrier - start
            if not named:
                continue
            if runs and runs[-1][1] == begin:
                runs[-1] = runs[-1][0], end
            else:
                runs.append((begin, end))
        return runs

    def starts_of(self, first: int, stop: int) -> list[int]:
        """Where to read from for elements ``first`` to ``stop`` of the pair."""
        if self.base.named[-1] == self.base.starts[-1]:
            bits = DTYPES[self.dtype].bits
            return list(range(first * bits // 8 // self.step * self.step, stop * bits // 8, self.step))
        return [s for s in self.starts if self.elements_before(s) < stop and self.elements_before(s + self.step) > first]

    def elements_before(self, start: int) -> int:
        """How many elements stand against base tensors before byte ``start`` of the target."""
        carrier = DTYPES[self.dtype].carrier
        return 8 * carrier * self.base.named_before(start // carrier) // DTYPES[self.dtype].bits


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
    """Names of tensors that only the base has, in scopes that are paired with one of the target."""
    unpaired: tuple[str, ...]
    """Names of tensors that both have, but with a dtype that cannot be compared."""
    unused: tuple[str, ...] = ()
    """Names of the tensors of base scopes that none of the target is paired with."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Base and target, where both are checkpoints."""


def check_common(source: Source) -> None:
    """Raise CheckpointError for a base and a target of which nothing can be compared."""
    if not source.pairs and (source.added or source.unpaired) and (source.removed or source.unpaired):
        why = f"; {cut(source.unpaired[0])} has a dtype or shape that cannot be compared" if source.unpaired else ""
        raise CheckpointError(
            f"{source.base} and {source.target} have nothing in common: no tensor of the one was made from the other's, "
            f"by name or by content{why}: are they of one model?"
        )


def named_base(*updates: Side) -> str:
    """The repo on the Hub that the first patch among some updates names as its base.

    Raises:
        CheckpointError: an update cannot be read, or none is a patch. HubError: the patch names no base, or the base cannot be read.
    """
    patches = [update for update in updates if is_path(update) and is_patch(update)]
    if not patches:
        what = "checkpoints do" if all(map(is_path, updates)) else "tensors and patches in memory do"
        raise CheckpointError(f"{what} not name their base: give it with --base")
    return recorded_base(patches[0])


@contextmanager
def open_source(
    base: Side,
    target: Side,
    *,
    selection: Selection | None = None,
    renames: Sequence[Rename] = (),
    as_dtype: Any = None,
) -> Iterator[Source]:
    """Open a base, and a target checkpoint or a patch from that base.

    Args:
        base: a checkpoint.
        target: a checkpoint, whose tensors are paired with the base's as ``make`` does, or a patch, which says what belongs together.
        selection: which files of checkpoints to take; the caller checks whether its globs match any file.
        renames: rules for the names of a target checkpoint's tensors.
        as_dtype: cast both sides to this dtype while they are read, see :func:`~ckptdiff.analysis.cast_on_read.cast_dtype`.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is not one.
        FormatError, UnsupportedError, IntegrityError: the patch is broken. BaseMismatchError: the patch has another base.
    """
    dtype = cast_dtype(as_dtype)
    names = side_name(base, "the base"), side_name(target, "the target")
    with ExitStack() as stack:
        if is_patch_side(target):
            patch = stack.enter_context(open_patch_side(target))
            old = stack.enter_context(open_base_side(base, patch))
            rebuilder = Rebuilder(old, [patch], Threads(1))
            with rebuilder.explained():
                check_chain([patch])
                check_stored(patch)
                yield source_of_patch(rebuilder, 0, *names, dtype=dtype)
        else:
            old, new = (stack.enter_context(open_side(side, name, selection)) for side, name in zip((base, target), names, strict=True))
            check_renames(old, new, renames)
            yield _source_of_checkpoints(old, new, renames, *names, dtype)
        old.check_unchanged()


def _source_of_checkpoints(
    old: Checkpoint, new: Checkpoint, renames: Sequence[Rename], base_name: str, target_name: str, dtype: str | None
) -> Source:
    """The tensors of two checkpoints, paired as ``make`` pairs them."""
    paired = pair(old, new, renames)
    pairs, added, unpaired = list[Pair](), list[str](), list[str]()
    used: dict[str, set[str]] = {}
    for scope, tensors in new.scopes.items():
        base_id = paired.scopes[scope]
        known = old.scopes[base_id] if base_id is not None else {}
        names = used.setdefault(base_id, set()) if base_id is not None else set[str]()
        for tensor in tensors.values():
            found = paired.counterparts.get(tensor.key)
            one = _pair_of_tensors(found, tensor, base_id or "", dtype) if found is not None else None
            names.update((tensor.name, *(found.base.tensors if found is not None else ())))
            if one is not None:
                pairs.append(one)
            else:
                (unpaired if tensor.name in known else added).append(display_name(tensor, new))
    removed = [display_name(t, old) for scope, names in used.items() for name, t in old.scopes[scope].items() if name not in names]
    left = [display_name(t, old) for scope, known in old.scopes.items() if scope not in used for t in known.values()]
    return Source(base_name, target_name, tuple(pairs), tuple(added), tuple(removed), tuple(unpaired), tuple(left), (old, new))


def display_name(tensor: Tensor, checkpoint: Checkpoint) -> str:
    """A tensor's name, with its scope before it if the checkpoint has several."""
    return tensor.name if len(checkpoint.scopes) == 1 else f"{tensor.scope}: {tensor.name}"


def _pair_of_tensors(found: Counterpart, new: Tensor, base_scope: str, dtype: str | None) -> Pair | None:
    """A tensor of the target and its counterpart; None if nothing of them can be compared."""
    shape, old = compared_shape(found.base, new.shape), cast_base(found.base, dtype)
    if shape is None:
        return None
    return Pair(new.scope, new.name, shape, old, base_scope, TensorReader(old, new), new.shape)


def compared_shape(base: AdaptedBase, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of what stands against base tensors: whole rows, or else one dimension; None if that is nothing, or no whole elements."""
    dtype, named = DTYPES[base.dtype], base.units - base.against_zeros
    edges = (8 * dtype.carrier * unit % dtype.bits for _, *run in base.runs(0, base.units) for unit in run)
    if (not named and base.units) or any(edges):
        return None
    if named == base.units:
        return shape
    elements, row = 8 * named * dtype.carrier // dtype.bits, math.prod(shape[1:])
    whole_rows = row and all(8 * dtype.carrier * unit // dtype.bits % row == 0 for _, *run in base.runs(0, base.units) for unit in run)
    return (elements // row, *shape[1:]) if whole_rows else (elements,)


def source_of_patch(
    rebuilder: Rebuilder, depth: int, base_name: str, target_name: str, *, latest: Latest | None = None, dtype: str | None = None
) -> Source:
    """The tensors that patch number ``depth`` of a checked chain gives, each rebuilt block by block while it is read.

    Where the patches are read in turn, each goes on from what ``latest`` keeps. ``dtype``: to cast both sides to.
    """
    patch = rebuilder.chain[depth]
    pairs: list[Pair] = []
    added: list[str] = []
    removed: list[str] = []
    unpaired: list[str] = []

    def shown(file: PatchFile, name: str) -> str:
        return name if len(patch.scopes) == 1 else f"{file.metadata.target_scope}: {name}"

    for file in patch.files:
        for entry in filter(lambda entry: entry.counts, file.table.entries):
            recipe = rebuilder.recipe(depth, file, entry)
            source = steps_of(recipe)[0]
            old = source.source if isinstance(source, AdaptedTensor) and isinstance(source.source, AdaptedBase) else None
            if old is None:
                added.append(shown(file, entry.name))
                continue
            shape = compared_shape(old, entry.shape) if _is_of_base(rebuilder, recipe, old) else None
            if shape is None:
                unpaired.append(shown(file, entry.name))
            else:
                scope, base_scope = file.metadata.target_scope, base_scope_of(rebuilder.chain[:depth], file)
                old = cast_base(old, dtype)
                reader = RecipeReader(rebuilder.checked, recipe, old, latest)
                pairs.append(Pair(scope, entry.name, shape, old, base_scope, reader, entry.shape))
        removed += (name if len(rebuilder.base.scopes) == 1 else f"{file.metadata.base_scope}: {name}" for name in file.table.removed)
    return Source(base_name, target_name, tuple(pairs), tuple(added), tuple(removed), tuple(unpaired))


def _is_of_base(rebuilder: Rebuilder, recipe: Recipe, old: AdaptedBase) -> bool:
    """Whether what a recipe begins with is units of the base's own tensors, and those of its target, which no later patch casts or cuts."""
    kept = rebuilder.scratch.tensors.values() if rebuilder.scratch is not None else ()
    if any(tensor is one for tensor in old.tensors.values() for one in kept):
        return False
    return all((step.dtype, step.nbytes) == (recipe.dtype, recipe.nbytes) for step in steps_of(recipe))

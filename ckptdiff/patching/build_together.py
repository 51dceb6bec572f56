"""Many small target tensors built at once: one read, and one call of a kernel for each step (spec section 10, step 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.gather import SMALL_TENSOR, gather
from ckptdiff.codecs import context, sparse
from ckptdiff.codecs.planes import BlockError
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes, Dtype
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, Recipe


def can_join(recipe: Recipe) -> bool:
    """Whether a tensor can be built together with others of its dtype: it and its payload are small, and it is made of base tensors."""
    if not 0 < recipe.nbytes <= SMALL_TENSOR:
        return False
    step: Recipe | None = recipe
    if isinstance(recipe, PatchedTensor):  # whose entry may state as much for a small tensor as a block may have
        step = recipe.base if recipe.entry.codec != "raw" and recipe.entry.payload_size <= SMALL_TENSOR else None
    return isinstance(step, AdaptedTensor) and isinstance(step.source, AdaptedBase)


class BuiltTogether:
    """Small tensors of one dtype, built.

    Attributes:
        data: their bytes, one behind the other. Scratch.
        bounds: where each ends, from the second on; the first is 0.
        before: the leaf of each one's adapted base.
        leaves: the leaf of each.
        changed: how many units of each changed.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.bounds = [0, *accumulate(recipe.nbytes for recipe in recipes)]
        self.data = gather([_source(recipe) for recipe in recipes], self.bounds, "read")
        self.before = self.leaves = kernels.leaves.leaves_of_blocks(self.data, self.bounds)
        self.changed = [0] * len(recipes)

    @classmethod
    def of(cls, recipes: Sequence[Recipe]) -> BuiltTogether | None:
        """Build tensors; None if a block cannot be decoded, which building that tensor alone explains."""
        built, alike = cls(recipes), defaultdict[tuple[PatchFile, str], dict[int, Entry]](dict)
        for k, recipe in enumerate(recipes):
            if isinstance(recipe, PatchedTensor):
                alike[recipe.file, recipe.entry.codec or ""][k] = recipe.entry
        for (file, codec), entries in alike.items():
            coded = file.payloads.read(list(entries.values()))
            if not built._move(list(entries), coded, codec, DTYPES[recipes[0].dtype]):
                return None
        if alike:
            built.leaves = kernels.leaves.leaves_of_blocks(built.data, built.bounds)
        return built

    def _move(self, numbers: Sequence[int], coded: Sequence[memoryview], codec: str, dtype: Dtype) -> bool:
        """Turn bases into targets, given the numbers of tensors and their payloads; returns False if one cannot be decoded."""
        cuts = [(self.bounds[k] // dtype.carrier, self.bounds[k + 1] // dtype.carrier) for k in numbers]
        found = (_unpack_context if codec == "context" else _unpack_sparse)(self.data, cuts, coded, dtype)
        if found is None:
            return False
        (positions, zigzags), counts = found
        kernels.moves.move_run(self.data, positions, zigzags, dtype, False, False)
        for k, count in zip(numbers, counts, strict=True):
            self.changed[k] = count
        return True

    @property
    def parts(self) -> list[Bytes]:
        """The bytes of each. Scratch."""
        return [self.data[start:stop] for start, stop in pairwise(self.bounds)]


Unpacked = tuple[Changes, list[int]]
"""The changes of several tensors, by their number among the units of all, and how many each has."""


def _source(recipe: Recipe) -> AdaptedBase:
    """The base tensors that a small tensor is made from."""
    step = recipe.base if isinstance(recipe, PatchedTensor) else recipe
    assert isinstance(step, AdaptedTensor) and isinstance(step.source, AdaptedBase)
    return step.source


def _unpack_context(data: Bytes, cuts: Sequence[tuple[int, int]], coded: Sequence[memoryview], dtype: Dtype) -> Unpacked | None:
    return context.unpack_all(data.view(dtype.unit), cuts, coded, dtype) if all(coded) else None


def _unpack_sparse(data: Bytes, cuts: Sequence[tuple[int, int]], coded: Sequence[memoryview], dtype: Dtype) -> Unpacked | None:
    sizes, firsts = [(stop - first) * dtype.carrier for first, stop in cuts], [first for first, _ in cuts]
    try:
        return sparse.unpack_all(coded, sizes, firsts, dtype)
    except BlockError:
        return None

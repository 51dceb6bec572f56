"""Many small target tensors built at once: one read, and one call of a kernel for each step (spec section 10, step 4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.gather import SMALL_TENSOR, gather
from ckptdiff.codecs import context, sparse
from ckptdiff.codecs.planes import BlockError
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes, Dtype
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, Recipe

Kind = tuple[str, str | None, PatchFile | None]
"""What small tensors that are built together have in common: their dtype, and the codec and file of their entries, if they have changed."""


def kind_of(recipe: Recipe) -> Kind | None:
    """What a small tensor must have in common with those that it is built with; None for a tensor that is built alone."""
    if not 0 < recipe.nbytes <= SMALL_TENSOR:
        return None
    if isinstance(recipe, AdaptedTensor):
        return (recipe.dtype, None, None) if isinstance(recipe.source, AdaptedBase) else None
    base, codec = recipe.base, recipe.entry.codec
    if codec == "raw" or not isinstance(base, AdaptedTensor) or not isinstance(base.source, AdaptedBase):
        return None
    return recipe.dtype, codec, recipe.file


class BuiltTogether:
    """Small tensors of one kind, built.

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
        """Build tensors of one kind; None if a block cannot be decoded, which building that tensor alone explains."""
        built = cls(recipes)
        steps = [recipe for recipe in recipes if isinstance(recipe, PatchedTensor)]
        if not steps:
            return built
        dtype, coded = DTYPES[steps[0].dtype], steps[0].file.read_payloads([step.entry for step in steps])
        found = _unpack_context(built, coded, dtype) if steps[0].entry.codec == "context" else _unpack_sparse(built, coded, dtype)
        if found is None:
            return None
        (positions, zigzags), built.changed = found
        kernels.moves.move_run(built.data, positions, zigzags, dtype, False, False)
        built.leaves = kernels.leaves.leaves_of_blocks(built.data, built.bounds)
        return built

    @property
    def parts(self) -> list[Bytes]:
        """The bytes of each. Scratch."""
        return [self.data[start:stop] for start, stop in pairwise(self.bounds)]


def _source(recipe: Recipe) -> AdaptedBase:
    """The base tensors that a small tensor is made from."""
    step = recipe.base if isinstance(recipe, PatchedTensor) else recipe
    assert isinstance(step, AdaptedTensor) and isinstance(step.source, AdaptedBase)
    return step.source


def _unpack_context(built: BuiltTogether, coded: Sequence[memoryview], dtype: Dtype) -> tuple[Changes, list[int]] | None:
    cuts = [bound // dtype.carrier for bound in built.bounds]
    if not all(coded):
        return None
    return context.unpack_all(built.data.view(dtype.unit), list(pairwise(cuts)), coded, dtype)


def _unpack_sparse(built: BuiltTogether, coded: Sequence[memoryview], dtype: Dtype) -> tuple[Changes, list[int]] | None:
    bounds = built.bounds
    try:
        return sparse.unpack_all(coded, np.diff(bounds).tolist(), [bound // dtype.carrier for bound in bounds[:-1]], dtype)
    except BlockError:
        return None

"""How a target tensor is built: from base tensors, by an entry of each patch of a chain (spec section 10, steps 3 and 4).

A recipe is a linked list of steps: its last step gives the target tensor, and each step takes what the one before it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckptdiff.checkpoint.adapt import AdaptedBase, units_per_group
from ckptdiff.errors import CkptdiffError, cut
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile


@dataclass(frozen=True, slots=True)
class AdaptedTensor:
    """The adapted base of an entry."""

    source: AdaptedBase | PatchedTensor | AdaptedTensor
    """Where its units come from: pieces of tensors; or the tensor that the patch before gives, of which the first ``used`` units are
    taken, cast and extended with zeros."""
    used: int
    """Of pieces all units count as used."""
    dtype: str
    """The target's, as the size in bytes is."""
    nbytes: int
    digest: bytes
    """The tensor digest that it must have."""
    mismatch: Callable[[bytes], CkptdiffError]
    """The error of another digest."""

    @property
    def base(self) -> PatchedTensor | AdaptedTensor | None:
        """The step before."""
        return self.source if not isinstance(self.source, AdaptedBase) else None


@dataclass(frozen=True, slots=True)
class PatchedTensor:
    """A tensor that a patch's entry gives, out of its base tensor if it has one."""

    file: PatchFile
    entry: Entry
    base: AdaptedTensor | PatchedTensor | None
    """The step that gives the adapted base; None for a new tensor."""

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    @property
    def digest(self) -> bytes:
        return self.entry.digest


Recipe = AdaptedTensor | PatchedTensor


def steps_of(recipe: Recipe | None) -> list[Recipe]:
    """The steps of a recipe in the order in which they are built: the base first."""
    steps: list[Recipe] = []
    while recipe is not None:
        steps.append(recipe)
        recipe = recipe.base
    return steps[::-1]


def about_recipe(recipe: Recipe) -> str:
    """What messages call a recipe: the patch file and the tensor of its last entry."""
    step = recipe
    while isinstance(step, AdaptedTensor):
        if isinstance(step.source, AdaptedBase):
            return f"the tensor made of {', '.join(map(cut, list(step.source.tensors)[:2]))}"
        step = step.source
    return f"{step.file.source.name}: tensor {cut(step.entry.name)}"


def units_of(recipe: Recipe) -> int:
    """The number of units of the tensor that a recipe builds."""
    return recipe.nbytes // DTYPES[recipe.dtype].carrier


def steps_built_whole(recipe: Recipe) -> tuple[list[Recipe], Recipe | None]:
    """The last steps of a recipe, which are built whole with its tensor, in order; and the step before them, of which only a part is.

    That step, and those before it, must be checked separately, and once: a patch may cut one long tensor into very many short ones.
    """
    steps = [recipe]
    while (base := steps[-1].base) is not None:
        if isinstance(steps[-1], AdaptedTensor) and units_of(base) > steps[-1].used:
            return steps[::-1], base
        steps.append(base)
    return steps[::-1], None


@dataclass(slots=True)
class RebuildJob:
    """A range of a target tensor to build."""

    tensor: int
    """Number of the tensor in a list of recipes, which comes from the patch alone."""
    start: int
    stop: int
    """The range, in bytes of the tensor."""
    last: bool
    """Whether it is the last one of its tensor."""

    @property
    def nbytes(self) -> int:
        """Size of the range."""
        return self.stop - self.start


def ranges(recipe: Recipe, number: int = 0) -> Iterator[RebuildJob]:
    """The ranges in which to build a tensor; each is whole blocks in the dtypes of all steps."""
    if recipe.nbytes <= BLOCK:
        yield RebuildJob(number, 0, recipe.nbytes, True)
        return
    step = units_per_group(*(step.dtype for step in steps_of(recipe))) * DTYPES[recipe.dtype].carrier
    for start in range(0, recipe.nbytes, step):
        yield RebuildJob(number, start, min(start + step, recipe.nbytes), start + step >= recipe.nbytes)

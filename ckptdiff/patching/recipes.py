"""How a target tensor is built: from a base tensor, by an entry of each patch of a chain (spec section 10, step 4).

A recipe is a linked list of steps: its last step gives the target tensor, and each :class:`PatchedTensor` takes what its ``base`` gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.adapt import units_per_group
from ckptdiff.patching.wrong_base import WantedBase


@dataclass(frozen=True, slots=True)
class BaseTensor:
    """A tensor of the base checkpoint, as it is."""

    tensor: Tensor
    digest: bytes
    """The tensor digest that it must have."""
    origin: WantedBase
    """Whose tensor it is, and which patch wants it."""

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True, slots=True)
class PatchedTensor:
    """A tensor that a patch's entry gives, out of its base tensor if it has one."""

    file: PatchFile
    entry: Entry
    base: BaseTensor | PatchedTensor | None
    """The step that gives the entry's base tensor; None for a new tensor."""

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    @property
    def digest(self) -> bytes:
        return self.entry.digest


Recipe = BaseTensor | PatchedTensor


def steps_of(recipe: Recipe | None) -> list[Recipe]:
    """The steps of a recipe in the order in which they are built: the base tensor first."""
    steps: list[Recipe] = []
    while recipe is not None:
        steps.append(recipe)
        recipe = recipe.base if isinstance(recipe, PatchedTensor) else None
    return steps[::-1]


def units_of(recipe: Recipe) -> int:
    """The number of units of the tensor that a recipe builds."""
    return recipe.nbytes // DTYPES[recipe.dtype].carrier


def steps_built_whole(recipe: Recipe) -> tuple[list[Recipe], Recipe | None]:
    """The last steps of a recipe, which are built whole with its tensor, in order; and the step before them, of which only a part is.

    That step, and those before it, must be checked separately, and once: a patch may cut one long tensor into very many short ones.
    """
    steps = [recipe]
    while isinstance(steps[-1], PatchedTensor) and (base := steps[-1].base) is not None:
        if units_of(base) > units_of(steps[-1]):
            return steps[::-1], base
        steps.append(base)
    return steps[::-1], None


@dataclass(frozen=True, slots=True)
class RebuildJob:
    """A range of a target tensor to build."""

    tensor: int
    """Number of the tensor in a list of recipes, which comes from the patch alone."""
    start: int
    stop: int
    """The range, in bytes of the tensor; it may reach past its end, where there is only a longer step before it."""
    nbytes: int
    """Bytes of the tensor in it."""
    last: bool
    """Whether it is the last one of its tensor."""


def ranges(recipe: Recipe, number: int = 0) -> Iterator[RebuildJob]:
    """The ranges in which to build a tensor.

    Each is whole blocks in the dtypes of all steps, and together they cover all steps that are built whole.
    """
    whole, width = steps_built_whole(recipe)[0], DTYPES[recipe.dtype].carrier
    group = units_per_group(*(step.dtype for step in steps_of(recipe)))
    units = max(units_of(step) for step in whole)
    for first in range(0, max(units, 1), group):
        start, stop = first * width, (first + group) * width
        yield RebuildJob(number, start, stop, max(min(stop, recipe.nbytes) - start, 0), first + group >= units)

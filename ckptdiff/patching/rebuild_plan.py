"""What ``apply`` would do, told by the functions that it cuts its work with."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import Threads
from ckptdiff.patching.build import plan
from ckptdiff.patching.memory import open_rows
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import Rebuilder
from ckptdiff.patching.recipes import PatchedTensor, Recipe, steps_built_whole, steps_of
from ckptdiff.patching.work_plan import Work, units_in


class PlannedRebuilder(Rebuilder):
    """A rebuilder that gives the recipes of a target's tensors, and builds none of those that a chain needs on the way."""

    def __init__(self, base: Checkpoint, chain: Sequence[OpenPatch]) -> None:
        super().__init__(base, chain, Threads(1))
        self.on_the_way: dict[int, Recipe] = {}
        """Recipes of tensors that would be built in scratch, by ``id``."""

    def built(self, depth: int, file: PatchFile, entry: Entry) -> Tensor:
        """The tensor that a run would build."""
        recipe = self.recipe(depth, file, entry)
        self.on_the_way[id(recipe)] = recipe
        nothing = open_rows([], str(self.chain[depth].path)).weights[0].file  # which is never read
        return Tensor(file.metadata.target_scope, entry.of or entry.name, entry.dtype, entry.shape, entry.nbytes, nothing, 0)


def rebuilding_work(recipes: list[Recipe], rebuilder: PlannedRebuilder, stored: int) -> Work:
    """The work of :func:`~ckptdiff.patching.build.rebuild` on the recipes of all target tensors, and of the tensors on the way to them.

    Args:
        recipes: one for each tensor.
        rebuilder: what gave the recipes.
        stored: bytes of all payloads that are checked before.
    """
    work = Work(hashed=stored, units=units_in(sum(recipe.nbytes for recipe in recipes)))
    for recipe in recipes:
        work.add_target(recipe.nbytes)
    every = [*rebuilder.on_the_way.values(), *recipes]
    work.jobs = sum(1 for _ in plan(every))
    longer = _checked_whole(every)
    work.exact = not longer  # where a part of a tensor is taken, whole blocks of it are built
    work.read = sum(_bytes_of(recipe) for recipe in (*every, *longer))
    return work


def _checked_whole(recipes: list[Recipe]) -> list[Recipe]:
    """The tensors of which others take a part, and which are built once more, to be checked, each once."""
    found, left = dict[int, Recipe](), list(recipes)
    while left:
        _, longer = steps_built_whole(left.pop())
        if longer is not None and id(longer) not in found:
            found[id(longer)] = longer
            left.append(longer)
    return list(found.values())


def _bytes_of(recipe: Recipe) -> int:
    """Bytes of base tensors and of payloads that a tensor is built from."""
    size = 0
    for step in steps_of(recipe):
        if isinstance(step, PatchedTensor):
            size += step.entry.payload_size
        elif isinstance(step.source, AdaptedBase):
            size += step.source.named[-1] * DTYPES[step.source.base_dtype].carrier
    return size

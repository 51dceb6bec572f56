"""Checks of a patch's tensors, of many small ones at once: of their payloads, and of what they give with a base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import xxhash

from ckptdiff.checkpoint.gather import SMALL_TENSOR
from ckptdiff.errors import BaseMismatchError, CkptdiffError
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.build import CheckCache, RangeBuilder, TensorCheck, no_sink
from ckptdiff.patching.build_together import can_join
from ckptdiff.patching.rebuild import Rebuilder
from ckptdiff.patching.recipes import PatchedTensor, RebuildJob, Recipe, steps_of

Found = CkptdiffError | None
"""The problem that a check finds, if there is one."""


@dataclass(frozen=True, slots=True)
class PayloadCheck:
    """A check of an entry's payload; a new tensor is built too."""

    file: PatchFile
    entry: Entry

    def __call__(self) -> Found:
        error = self.file.payloads.error_of(self.entry)
        if error or self.entry.kind != "new":
            return error
        return CheckCache().error_of(PatchedTensor(self.file, self.entry, None))

    def joins(self) -> object | None:
        """What the checks that can be done together with it have in common; None if it is done alone."""
        return self.file if self.entry.kind == "delta" and self.entry.payload_size <= SMALL_TENSOR else None

    @staticmethod
    def are_right(checks: Sequence[PayloadCheck]) -> list[bool]:
        """Whether each of some payloads of one file, in the table's order, has its digest."""
        data = checks[0].file.payloads.read([check.entry for check in checks])
        return [xxhash.xxh3_64_digest(part) == check.entry.payload_digest for check, part in zip(checks, data, strict=True)]


@dataclass(frozen=True, slots=True)
class BaseCheck:
    """A check that an entry gives with the base what it states."""

    rebuilder: Rebuilder
    file: PatchFile
    entry: Entry

    def __call__(self) -> Found:
        try:
            recipe = self._recipe()
            error = self.rebuilder.checked.error_of(recipe)
            bottom = self.rebuilder.checked.error_of(steps_of(recipe)[0]) if error is not None else None
            return bottom if isinstance(bottom, BaseMismatchError) else error
        except CkptdiffError as error:
            return error

    def _recipe(self) -> Recipe:
        """How the tensor is built; raises BaseMismatchError if the base has not what that needs."""
        return self.rebuilder.recipe(0, self.file, self.entry)

    def joins(self) -> object | None:
        """What the checks that can be done together with it have in common; None if it is done alone."""
        try:
            return self.rebuilder if can_join(self._recipe()) else None
        except CkptdiffError:
            return None

    @staticmethod
    def are_right(checks: Sequence[BaseCheck]) -> list[bool]:
        """Whether each of some tensors, which are built together, is what its entry states; raises CkptdiffError if one cannot be built."""
        recipes, cache, right = [check._recipe() for check in checks], checks[0].rebuilder.checked, list[bool]()
        built = RangeBuilder(recipes, no_sink).many([RebuildJob(k, 0, recipe.nbytes, True) for k, recipe in enumerate(recipes)])
        for recipe, result in zip(recipes, built, strict=True):
            tensor = TensorCheck(recipe)
            tensor.add(0, result.leaves, result.changed)
            try:
                tensor.finish(cache)
                right.append(True)
            except CkptdiffError:
                right.append(False)
        return right


def find_all(checks: Sequence[Callable[[], Found]]) -> list[Found]:
    """What checks find. Those of small tensors are done together; what that does not find right is checked alone, for the error."""
    together, right = defaultdict[tuple[Any, int], list[int]](list), set[int]()
    for k, check in enumerate(checks):
        alike = check.joins() if isinstance(check, (PayloadCheck, BaseCheck)) else None
        if alike is not None:
            together[type(check), id(alike)].append(k)
    for (kind, _), numbers in together.items():
        with suppress(CkptdiffError):
            right.update(k for k, is_right in zip(numbers, kind.are_right([checks[k] for k in numbers]), strict=True) if is_right)
    return [None if k in right else check() for k, check in enumerate(checks)]

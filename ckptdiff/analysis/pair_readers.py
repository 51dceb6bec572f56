"""What reads the two sides of a pair: tensors of two checkpoints, or of a base and of a patch, which is built while it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.patching.build import CheckCache, Latest, TensorCheck, build
from ckptdiff.patching.recipes import Recipe

Known = tuple[list[list[bytes]], list[int]]
"""What is known of a range that was built of a patch: leaves and changed units, as of :class:`~ckptdiff.patching.build.BuiltRange`."""


class Reader(Protocol):
    """Reads a tensor of the target, and what it stands against. What is known of a patch by then goes to the process that checks it."""

    def read(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Its bytes in base and target; see :meth:`~ckptdiff.analysis.pairs.Pair.read`, which asks for one step at a time."""

    def take(self, start: int) -> Known | None:
        """What is known of the range that was read from ``start`` on, which the reader forgets; None of a checkpoint's tensor."""

    def give(self, start: int, known: Known | None) -> None:
        """Note what a reader, this or its copy in another process, knew of a range."""

    def finish(self) -> None:
        """As of :meth:`~ckptdiff.analysis.pairs.Pair.finish`."""


@dataclass(frozen=True, slots=True)
class TensorReader:
    """A :class:`Reader` of a checkpoint's tensor."""

    old: AdaptedBase
    new: Tensor

    def read(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """As of :class:`Reader`."""
        return self.old.view(start, stop, "base"), self.new.view(start, stop, "target")

    def take(self, start: int) -> None:
        """As of :class:`Reader`."""

    def give(self, start: int, known: Known | None) -> None:
        """As of :class:`Reader`."""

    def finish(self) -> None:
        """As of :class:`Reader`."""


class RecipeReader:
    """A :class:`Reader` of a tensor of a patch, which is built while it is read."""

    def __init__(self, checked: CheckCache, recipe: Recipe, old: AdaptedBase, latest: Latest | None) -> None:
        self._checked, self._recipe, self._old, self._latest = checked, recipe, old, latest
        self._check = TensorCheck(recipe)

    def read(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """As of :class:`Reader`."""
        new = self._build(start, stop)
        return self._old.view(start, start + len(new)), new

    def _build(self, start: int, stop: int) -> Bytes:
        stop = min(stop, self._recipe.nbytes)
        built = build(self._recipe, start, stop, self._latest)
        if self._latest is not None:
            self._latest.note(self._recipe, start, stop, built)
        self._check.add(start, built.leaves, built.changed)
        return built.data

    def take(self, start: int) -> Known | None:
        """As of :class:`Reader`."""
        return self._check.take(start)

    def give(self, start: int, known: Known | None) -> None:
        """As of :class:`Reader`."""
        if known is not None:
            self._check.add(start, *known)

    def finish(self) -> None:
        """Build what stands against no base tensor too, and check the tensor."""
        dtype, size = DTYPES[self._recipe.dtype], self._recipe.nbytes
        step = BLOCK * (3 if dtype.bits == 6 else 1)
        for start in range(max(-(-self._old.starts[-1] * dtype.carrier // step), 1) * step, size, step):
            self._build(start, start + step)
        self._check.finish(self._checked)

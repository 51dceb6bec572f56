"""What reads the two sides of a pair: tensors of two checkpoints, or of a base and of a patch, which is built while it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptdiff.analysis.cast_on_read import cast_bytes, read_step, stored_offset
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.patching.build import CheckCache, Latest, TensorCheck, build
from ckptdiff.patching.recipes import Recipe

Known = tuple[list[list[bytes]], list[int]]
"""What is known of a range that was built of a patch: leaves and changed units, as of :class:`~ckptdiff.patching.build.BuiltRange`."""


class Reader(Protocol):
    """Reads a tensor of the target, and what it stands against, both in the dtype that the latter has. What is known of a patch by then
    goes to the process that checks it."""

    @property
    def stored(self) -> str:
        """The dtype that the target has the tensor in."""

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

    @property
    def stored(self) -> str:
        """As of :class:`Reader`."""
        return self.new.dtype

    def read(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """As of :class:`Reader`."""
        dtype, stored = self.old.dtype, self.stored
        new = self.new.view(stored_offset(start, stored, dtype), stored_offset(stop, stored, dtype), "target")
        return self.old.view(start, stop, "base"), cast_bytes(new, stored, dtype)

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

    @property
    def stored(self) -> str:
        """As of :class:`Reader`."""
        return self._recipe.dtype

    def read(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """As of :class:`Reader`."""
        new = cast_bytes(self._build(self._offset(start), self._offset(stop)), self.stored, self._old.dtype)
        return self._old.view(start, start + len(new)), new

    def _offset(self, start: int) -> int:
        return stored_offset(start, self.stored, self._old.dtype)

    def _build(self, start: int, stop: int) -> Bytes:
        stop = min(stop, self._recipe.nbytes)
        built = build(self._recipe, start, stop, self._latest)
        if self._latest is not None:
            self._latest.note(self._recipe, start, stop, built)
        self._check.add(start, built.leaves, built.changed)
        return built.data

    def take(self, start: int) -> Known | None:
        """As of :class:`Reader`."""
        return self._check.take(self._offset(start))

    def give(self, start: int, known: Known | None) -> None:
        """As of :class:`Reader`."""
        if known is not None:
            self._check.add(self._offset(start), *known)

    def finish(self) -> None:
        """Build what stands against no base tensor too, and check the tensor."""
        step, size = self._offset(read_step(self.stored, self._old.dtype)), self._recipe.nbytes
        read = self._old.starts[-1] * DTYPES[self.stored].carrier
        for start in range(max(-(-read // step), 1) * step, size, step):
            self._build(start, start + step)
        self._check.finish(self._checked)

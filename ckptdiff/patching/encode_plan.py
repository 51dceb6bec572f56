"""How the tensors of a target are cut into jobs that encode them, told from headers alone (spec section 8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.patching.adapt import units_per_group

TensorKey = tuple[str, str]
"""Scope and name of a tensor."""


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Units of a target tensor to encode against its base: whole groups, of which the last may be short."""

    base: TensorKey | None
    """None for a new tensor."""
    target: TensorKey
    codec: str | None
    """None: try those that may be the smallest."""
    first: int
    stop: int
    nbytes: int
    """Bytes of the target in it."""


@dataclass(frozen=True, slots=True)
class HashJob:
    """A block of a tensor to hash."""

    of_base: bool
    """Whether it is a tensor of the base, or one of the target."""
    tensor: TensorKey
    start: int
    """Where the block begins, in bytes of the tensor."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """The jobs of one target tensor. Of a long one whose codec is not given, some groups are tried before the others are encoded."""

    base: Tensor | None
    target: Tensor
    codec: str | None
    """The codec, if it is known before anything is encoded."""
    groups: int
    """How many groups a job has at most."""

    @property
    def group(self) -> int:
        """Units of a group."""
        return units_per_group(self.target.dtype, self.base.dtype if self.base else self.target.dtype)

    @property
    def units(self) -> int:
        """Units of the longer of target and base, whose digest needs all of it."""
        return max(self.target.units, self.base.units if self.base else 0)

    @property
    def tried(self) -> list[int]:
        """The first units of the groups that are tried: the first, one in the middle, and the last of the target."""
        units, group = self.target.units, self.group
        if self.codec is not None or self.units <= group:
            return []
        return sorted({0, units // 2 // group * group, (units - 1) // group * group})

    @property
    def is_tried_whole(self) -> bool:
        """Whether it has no other groups than those that are tried."""
        return bool(self.tried) and len(self.tried) * self.group >= self.units

    def trials(self) -> Iterator[EncodeJob]:
        """A job for each group that is tried."""
        return (self._job(start, start + self.group, None) for start in self.tried)

    def remaining(self, codec: str | None) -> Iterator[EncodeJob]:
        """The jobs after the trials, in order; of a tensor that is tried whole these. A tensor without units has a job too."""
        if self.is_tried_whole:
            yield from self.trials()
            return
        start, step = 0, self.group * self.groups
        for end in (*self.tried, max(self.units, 1)):
            for first in range(start, end, step):
                yield self._job(first, min(first + step, end), codec)
            start = end + self.group

    def _job(self, first: int, stop: int, codec: str | None) -> EncodeJob:
        width = DTYPES[self.target.dtype].carrier
        nbytes = max(min(stop * width, self.target.nbytes) - first * width, 0)
        return EncodeJob(self.base.key if self.base else None, self.target.key, codec, first, stop, nbytes)


def plan_tensor(base: Tensor | None, target: Tensor, codec: str | None, groups: int) -> TensorPlan:
    """The plan of one tensor. New tensors are coded by ``raw``; where a long base tensor becomes empty, there is nothing to try."""
    if base is None:
        codec = "raw"
    elif codec is None and target.units == 0 and base.units:
        codec = "context"
    return TensorPlan(base, target, codec, groups)

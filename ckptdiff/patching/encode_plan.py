"""How the tensors of a target are cut into jobs that encode them, told from headers alone (spec section 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.checkpoint.pairing import Pairing
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Piece


class JobBase(NamedTuple):
    """What a target tensor is compared with, by name."""

    scope: str
    dtype: str
    pieces: tuple[Piece, ...]


class EncodeJob(NamedTuple):
    """Units of a target tensor to encode against its base: whole blocks, of which the last may be short."""

    base: JobBase | None
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
class FileHashJob:
    """A weight file to hash."""

    of_base: bool
    """Whether it is a file of the base, or one of the target."""
    file: int
    """Its number among the weight files of that side."""
    nbytes: int
    """How much of it is not hashed yet."""


@dataclass(slots=True)
class TensorPlan:
    """The jobs of one target tensor. Of a long one whose codec is not given, some blocks are tried before the others are encoded."""

    base: AdaptedBase | None
    """None for a new tensor."""
    base_scope: str
    """Id of the scope of the base's tensors."""
    target: Tensor
    codec: str | None
    """The codec, if it is known before anything is encoded."""
    blocks: int
    """How many blocks a job has at most."""

    block: int = field(init=False)
    """Units of a block."""
    tried: list[int] = field(init=False)
    """The first units of the blocks that are tried: the first, one in the middle, and the last."""

    def __post_init__(self) -> None:
        block, units = BLOCK // DTYPES[self.target.dtype].carrier, self.target.units
        self.block, self.tried = block, []
        if self.codec is None and units > block:
            self.tried = sorted({0, units // 2 // block * block, (units - 1) // block * block})

    @property
    def units(self) -> int:
        """Units of the target."""
        return self.target.units

    @property
    def is_tried_whole(self) -> bool:
        """Whether it has no other blocks than those that are tried."""
        return bool(self.tried) and len(self.tried) * self.block >= self.units

    def trials(self) -> Iterator[EncodeJob]:
        """A job for each block that is tried."""
        return (self._job(start, start + self.block, None) for start in self.tried)

    def remaining(self, codec: str | None) -> Iterator[EncodeJob]:
        """The jobs after the trials, in order; of a tensor that is tried whole these. A tensor without units has a job too."""
        if self.is_tried_whole:
            yield from self.trials()
            return
        start, step = 0, self.block * self.blocks
        if not self.tried and self.units <= step:
            yield self._job(0, max(self.units, 1), codec)
            return
        for end in (*self.tried, max(self.units, 1)):
            for first in range(start, end, step):
                yield self._job(first, min(first + step, end), codec)
            start = end + self.block

    def jobs(self) -> Iterator[EncodeJob]:
        """All jobs; which codec the trials choose changes nothing but the codec of those after them."""
        if not self.is_tried_whole:
            yield from self.trials()
        yield from self.remaining(self.codec)

    def _job(self, first: int, stop: int, codec: str | None) -> EncodeJob:
        width = DTYPES[self.target.dtype].carrier
        nbytes = max(min(stop * width, self.target.nbytes) - first * width, 0)
        base = JobBase(self.base_scope, self.base.base_dtype, self.base.pieces) if self.base else None
        return EncodeJob(base, self.target.key, codec, first, stop, nbytes)


def paired_tensors(target: Checkpoint, pairing: Pairing) -> tuple[list[tuple[AdaptedBase, Tensor]], list[Tensor]]:
    """The target's tensors that have a counterpart, each with its base, and those without one; both in the order of their scopes."""
    matched, unmatched = list[tuple[AdaptedBase, Tensor]](), list[Tensor]()
    for scope_id in pairing.scopes:
        for tensor in (tensor for file in target.weights if file.scope == scope_id for tensor in file.tensors):
            found = pairing.counterparts.get(tensor.key)
            if found is not None:
                matched.append((found.base, tensor))
            else:
                unmatched.append(tensor)
    return matched, unmatched


def tensor_plan(pairing: Pairing, base: AdaptedBase | None, target: Tensor, codec: str | None, blocks: int) -> TensorPlan:
    """The plan of one tensor, given the codec of tensors that have a base, if it was chosen; a new tensor is coded by ``raw``."""
    return TensorPlan(base, pairing.scopes[target.scope] or "", target, codec if base is not None else "raw", blocks)


def hash_jobs(of_base: bool, tensors: Iterable[Tensor]) -> Iterator[HashJob]:
    """The jobs that hash whole tensors of one side, block by block."""
    for tensor in tensors:
        for start in range(0, tensor.nbytes, BLOCK):
            yield HashJob(of_base, tensor.key, start, min(BLOCK, tensor.nbytes - start))

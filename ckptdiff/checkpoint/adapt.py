"""Base tensors adapted to their targets (spec section 8): runs of units, put together, cast, and extended with zeros."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes, is_castable
from ckptdiff.format.entry import Piece
from ckptdiff.io.scratch import scratch


def units_per_group(*dtypes: str) -> int:
    """Units in a group: the shortest range that consists of whole blocks in each of these dtypes."""
    return BLOCK // min(DTYPES[dtype].carrier for dtype in dtypes)


def extended(data: Bytes, source: str, target: str, size: int) -> Bytes:
    """Cast bytes, then cut or extend them with zeros to ``size`` bytes (spec section 8)."""
    data = kernels.casts.cast(data, source, target)
    return data[:size] if len(data) >= size else np.concatenate([data, np.zeros(size - len(data), np.uint8)])


@dataclass(slots=True)
class AdaptedBase:
    """What a target tensor is compared with: pieces of base tensors of one dtype, cast to the target's; then zeros."""

    pieces: tuple[Piece, ...]
    tensors: dict[str, Tensor]
    """The tensors that the pieces name."""
    base_dtype: str
    """Their dtype."""
    dtype: str
    """The target's."""
    units: int
    """The target's."""
    starts: list[int] = field(init=False)
    """At which unit each piece begins, and at which the last one ends."""
    named: list[int] = field(init=False)
    """How many units before each of these stand against base tensors."""

    whole: Tensor | None = field(init=False)
    """The tensor that it is, unchanged; None where it is anything else."""

    def __post_init__(self) -> None:
        self.whole = self._whole()
        if len(self.pieces) == 1 and self.pieces[0].name is not None:  # as nearly all have
            self.starts = self.named = [0, self.pieces[0].units]
            return
        counts = [piece.units for piece in self.pieces]
        self.starts = self.named = list(accumulate(counts, initial=0))
        if None in {piece.name for piece in self.pieces}:
            named = [piece.units if piece.name is not None else 0 for piece in self.pieces]
            self.named = list(accumulate(named, initial=0))

    def _whole(self) -> Tensor | None:
        if len(self.pieces) != 1 or self.base_dtype != self.dtype:
            return None
        (piece,) = self.pieces
        tensor = self.tensors[piece.name] if piece.name is not None else None
        is_whole = tensor is not None and piece.first == 0 and piece.units == tensor.units == self.units
        return tensor if is_whole else None

    @property
    def against_zeros(self) -> int:
        """How many units of the target stand against zeros that are in no base tensor."""
        return self.units - self.named[-1]

    def read(self, start: int, stop: int, name: str = "base") -> Bytes:
        """Bytes ``start`` to ``stop`` of the result, or fewer where it ends before; they may lie in scratch called ``name``."""
        if (tensor := self.whole) is not None:
            return tensor.read(start, stop, name)
        width, carrier = DTYPES[self.base_dtype].carrier, DTYPES[self.dtype].carrier
        first, last = start // carrier, min(stop // carrier, self.units)
        out, filled = scratch(name, max(last - first, 0) * width, np.uint8), 0
        for source, begin, count in self._parts(first, last):
            part = out[filled : filled + count * width]
            filled += len(part)
            if source is None:
                part[:] = 0
            else:
                source.readinto(begin * width, part)
        out[filled:] = 0
        return out if self.base_dtype == self.dtype else kernels.casts.cast(out, self.base_dtype, self.dtype)  # which loads Numba

    def view(self, start: int, stop: int, name: str = "base") -> Bytes:
        """As :meth:`read`, but a tensor's own memory if it is one that is on the host: the bytes must not be written to."""
        whole = self.whole
        return whole.view(start, stop, name) if whole is not None else self.read(start, stop, name)

    def runs(self, first: int, stop: int) -> Iterator[tuple[bool, int, int]]:
        """The pieces that units ``first`` to ``stop`` of the target lie in: whether they have a name, and their units there."""
        for k in range(max(bisect_right(self.starts, first) - 1, 0), len(self.pieces)):
            begin, end = max(first, self.starts[k]), min(stop, self.starts[k + 1])
            if begin >= end:
                return
            yield self.pieces[k].name is not None, begin, end

    def names(self, first: int, stop: int) -> Iterator[str]:
        """Each base tensor that units ``first`` to ``stop`` stand against, once."""
        found = (self.pieces[k].name for k in range(bisect_right(self.starts, first) - 1, bisect_left(self.starts, stop)))
        yield from dict.fromkeys(name for name in found if name is not None)

    def named_before(self, unit: int) -> int:
        """How many units before one stand against base tensors."""
        k = bisect_right(self.starts, unit) - 1
        return self.named[k] + (unit - self.starts[k] if k < len(self.pieces) and self.pieces[k].name is not None else 0)

    def _parts(self, first: int, last: int) -> Iterator[tuple[Tensor | None, int, int]]:
        """Where units ``first`` to ``last`` come from: a tensor, or None for zeros; the first unit there, and how many."""
        for k in range(max(bisect_right(self.starts, first) - 1, 0), len(self.pieces)):
            piece, at = self.pieces[k], self.starts[k]
            begin, end = max(first, at), min(last, at + piece.units)
            if begin >= end:
                return
            yield self.tensors[piece.name] if piece.name is not None else None, piece.first + begin - at, end - begin


def fits(base: Tensor, target: Tensor) -> bool:
    """Whether units of a base tensor can stand for a target's: it has the same dtype, or one that can be cast to it."""
    return base.dtype == target.dtype or is_castable(base.dtype, target.dtype)


def default_pieces(name: str, base_units: int, units: int) -> tuple[Piece, ...]:
    """What a target tensor stands against where its entry names no pieces: the tensor of its own name, as many units as both have."""
    count = min(base_units, units)
    return (Piece(name, 0, count),) if count else ()


def adapt(tensor: Tensor, target: Tensor) -> AdaptedBase:
    """A base tensor adapted to a target, from the first unit on."""
    pieces = default_pieces(tensor.name, tensor.units, target.units)
    return AdaptedBase(pieces, {tensor.name: tensor}, tensor.dtype, target.dtype, target.units)


def joined(pieces: Iterable[Piece], tensors: Callable[[str], Tensor], target: Tensor) -> AdaptedBase:
    """Pieces of base tensors adapted to a target; neighbours that can be one piece become one, and zeros at the end are left out.

    Raises:
        ValueError: none of them has a name, or they are longer than the target.
    """
    kept = list[Piece]()
    for piece in pieces:
        before = kept[-1] if kept else None
        if before is not None and piece.name == before.name and (piece.name is None or piece.first == before.first + before.units):
            kept[-1] = before._replace(units=before.units + piece.units)
        else:
            kept.append(piece)
    while kept and kept[-1].name is None:
        kept.pop()
    if not kept or sum(piece.units for piece in kept) > target.units:
        raise ValueError(f"{target.name}: {len(kept)} pieces of {sum(piece.units for piece in kept)} units for a target of {target.units}")
    named = {piece.name: tensors(piece.name) for piece in kept if piece.name is not None}
    return AdaptedBase(tuple(kept), named, next(iter(named.values())).dtype, target.dtype, target.units)

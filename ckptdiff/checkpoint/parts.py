"""Tensors that were joined from several, or split: fused projections, stacked experts, flat parameters.

The parts lie end to end in the long tensor, so that from the first on each tells where the next begins. Where none is known, the next
place to look is a multiple of the greatest common divisor of the lengths of those that are at most half as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.adapt import fits
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.keys import KEY_UNITS, MOST_ALIKE, MOST_COMPARED, Keys, KeyTable, keys_of
from ckptdiff.checkpoint.names import closeness, numbered_prefixes
from ckptdiff.checkpoint.samples import Array, Relation, cast_units, read_units, relation

START_UNITS = 1024
"""Units that are looked at where a part begins."""
GAP_UNITS = 4096
"""Units that are looked at of a part that has no key."""
MOST_MISSES = 1 << 12
"""Places at which a part of any tensor of a scope was looked for and none begins, after which no more are looked for: half a second."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a long tensor that has the content of a short one."""

    first: int
    """The long tensor's unit with which it begins."""
    units: int
    tensor: Tensor
    """The short tensor."""


def row_units(tensor: Tensor) -> int:
    """Units of a row: of the last dimension, or of all of a tensor of one dimension or less."""
    return tensor.units // math.prod(tensor.shape[:-1]) if len(tensor.shape) > 1 and tensor.units else tensor.units


class StartIndex:
    """Short tensors by the keys of their first units, and by their lengths."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._by_size: dict[tuple[int, str], list[Tensor]] = {}
        for tensor in tensors:
            self._by_size.setdefault((tensor.units, _layer_of(tensor)), []).append(tensor)
        self._tensors = [tensor for tensor in tensors if tensor.units >= KEY_UNITS]
        self._table = KeyTable([_start_keys(_start(tensor, 0), tensor.dtype) for tensor in self._tensors])
        self._lengths: dict[int, set[int]] = {}
        self._misses = 0
        for tensor in self._tensors:
            self._lengths.setdefault(_row_of(tensor), set()).add(tensor.units)

    def may_have_parts(self, long: Tensor) -> bool:
        """Whether a tensor is longer than some that may be its parts."""
        return long.units > min(self._lengths_for(long), default=long.units)

    def _lengths_for(self, long: Tensor) -> set[int]:
        """Units of its possible parts: of those with rows of its length; or else of all matrices; for a flat tensor of all tensors."""
        row = _row_of(long)
        rows = [row] if row in self._lengths and row else [other for other in self._lengths if other or not row]
        return set[int]().union(*(self._lengths[row] for row in rows))

    def parts_of(self, long: Tensor, long_is_base: bool) -> list[Part]:
        """The parts of a long tensor, in order."""
        parts = list(self._walk(long, long_is_base))
        return self._with_gaps_filled(parts, long, long_is_base) if parts else parts

    def _walk(self, long: Tensor, long_is_base: bool) -> Iterator[Part]:
        """The parts that begin with a key of theirs."""
        step = math.gcd(*(units for units in self._lengths_for(long) if 2 * units <= long.units)) or long.units
        at = 0
        while at + KEY_UNITS <= long.units and self._misses < MOST_MISSES:
            found = self._find(_start(long, at), long, long_is_base)
            if found is not None and at + found.units <= long.units:
                yield Part(at, found.units, found)
                at += found.units
            else:
                at += step - at % step
                self._misses += 1

    def _with_gaps_filled(self, parts: Sequence[Part], long: Tensor, long_is_base: bool) -> list[Part]:
        """Parts between others that have no key, such as norms in a flat parameter, or whose keys training has changed.

        Of the tensors that are as long as a gap that one is taken whose content is the nearest; of those whose content does not tell the
        one whose name is the closest to that of the part before the gap.
        """
        filled, at = list[Part](), 0
        for part in (*parts, Part(long.units, 0, long)):
            gap, neighbour = part.first - at, filled[-1].tensor if filled else part.tensor
            if gap:
                layers = dict.fromkeys((_layer_of(neighbour), _layer_of(part.tensor), ""))
                near = [tensor for layer in layers for tensor in self._by_size.get((gap, layer), ())[:MOST_ALIKE]]
                best = _best_for_gap(near, long, at, neighbour.name, long_is_base)
                filled += [Part(at, gap, best)] if best is not None else []
            filled += [part] * bool(part.units)
            at = part.first + part.units
        return filled

    def _find(self, units: Array, long: Tensor, long_is_base: bool) -> Tensor | None:
        """The short tensor that begins with these units; of several the nearest by content, then the first."""
        votes = self._table.votes(_start_keys(units, long.dtype))
        best: tuple[int, int] | None = None
        for owner in sorted(votes, key=lambda owner: (-votes[owner], owner))[:MOST_COMPARED]:
            short = self._tensors[owner]
            compared = _relation((long, units), (short, _start(short, 0)), long_is_base) if short is not long else None
            if compared is not None and (best is None or (compared.bits, owner) < best):
                best = compared.bits, owner
        return self._tensors[best[1]] if best is not None else None


def _row_of(tensor: Tensor) -> int:
    """Units of a row of a matrix; 0 for other tensors: a norm is as long as a row of matrices, but no part of them."""
    return row_units(tensor) if len(tensor.shape) > 1 else 0


def _start(tensor: Tensor, at: int) -> Array:
    """The units that are looked at where a part may begin."""
    return read_units(tensor, at, min(at + START_UNITS, tensor.units))


def _relation(long: tuple[Tensor, Array], short: tuple[Tensor, Array], long_is_base: bool) -> Relation | None:
    """How units of two tensors compare; None if one cannot be the base of the other."""
    (base, old), (target, new) = (long, short) if long_is_base else (short, long)
    if not fits(base, target):
        return None
    count = min(len(old), len(new))
    found = relation(cast_units(old[:count], base.dtype, target.dtype), new[:count], target.dtype)
    return found if found.related is not False else None


def _start_keys(start: Array, dtype: str) -> Keys:
    """The keys of units one after the other."""
    return keys_of(start[: len(start) // KEY_UNITS * KEY_UNITS].reshape(-1, KEY_UNITS), dtype)


def _layer_of(tensor: Tensor) -> str:
    """What a name begins with, up to its last number."""
    return next(numbered_prefixes(tensor.name), "")


def _best_for_gap(tensors: Sequence[Tensor], long: Tensor, at: int, neighbour: str, long_is_base: bool) -> Tensor | None:
    ranked = list[tuple[int, tuple[int, int], Tensor]]()
    near = sorted(tensors, key=lambda tensor: closeness(tensor.name, neighbour), reverse=True)[:MOST_COMPARED]
    for tensor in near:
        count = min(tensor.units, GAP_UNITS)
        compared = _relation((long, read_units(long, at, at + count)), (tensor, read_units(tensor, 0, count)), long_is_base)
        if compared is not None:
            common, less = closeness(tensor.name, neighbour)
            ranked.append((compared.bits, (-common, -less), tensor))
    return min(ranked, key=lambda row: row[:2])[2] if ranked else None

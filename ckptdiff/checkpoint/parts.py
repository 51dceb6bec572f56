"""Tensors that were joined from several, or split: fused projections, stacked experts, flat parameters.

The parts lie end to end in the long tensor, so that from the first on each tells where the next begins. Where none is known, the next
place to look is a multiple of the greatest common divisor of the parts' lengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.keys import KEY_UNITS, MOST_ALIKE, NO_KEYS, keys_of
from ckptdiff.checkpoint.names import closeness
from ckptdiff.checkpoint.samples import Array, Relation, cast_units, read_units, relation
from ckptdiff.format.dtypes import is_castable

START_UNITS = 256
"""Units that are looked at where a part begins."""
GAP_UNITS = 4096
"""Units that are looked at of a part that has no key."""
MOST_PLACES = 1 << 16
"""Places at which the parts of one tensor are looked for."""


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
    """Short tensors by the keys of their first units."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._known: dict[tuple[int, int], list[tuple[Tensor, Array]]] = {}
        self._steps: dict[int, int] = {}
        self.shortest = 0
        for tensor in tensors:
            if tensor.units < KEY_UNITS:
                continue
            start = read_units(tensor, 0, min(START_UNITS, tensor.units))
            keys = _start_keys(start, tensor.dtype)
            for place, key in enumerate(keys):
                if key not in NO_KEYS:
                    self._known.setdefault((place, key), []).append((tensor, start))
            row = row_units(tensor)
            self._steps[row] = math.gcd(self._steps.get(row, 0), tensor.units)
            self.shortest = min(self.shortest or tensor.units, tensor.units)

    def parts_of(self, long: Tensor, long_is_base: bool) -> list[Part]:
        """The parts of a long tensor, in order."""
        return list(self._walk(long, long_is_base))

    def _walk(self, long: Tensor, long_is_base: bool) -> Iterator[Part]:
        step = self._steps.get(row_units(long), 0) or math.gcd(*self._steps.values())
        if not step or long.units // step > MOST_PLACES:
            step = long.units
        at, before = 0, None
        while at + KEY_UNITS <= long.units:
            units = read_units(long, at, min(at + START_UNITS, long.units))
            found = self._find(units, long, long_is_base, before)
            if found is not None and at + found.units <= long.units:
                yield Part(at, found.units, found)
                at, before = at + found.units, found
            else:
                at += step - at % step

    def _find(self, units: Array, long: Tensor, long_is_base: bool, before: Tensor | None) -> Tensor | None:
        """The short tensor that begins with these units; of several the nearest by content, then the one after ``before``."""
        best: tuple[int, int] | None = None
        chosen, seen = None, set[int]()
        for place, key in enumerate(_start_keys(units, long.dtype)):
            for order, (short, start) in enumerate(self._known.get((place, key), ())[:MOST_ALIKE]):
                if id(short) in seen or short is long:
                    continue
                seen.add(id(short))
                compared = _relation((long, units), (short, start), long_is_base)
                if compared is not None and (best is None or (compared.bits, order) < best):
                    best, chosen = (compared.bits, order), short
        return chosen


def _relation(long: tuple[Tensor, Array], short: tuple[Tensor, Array], long_is_base: bool) -> Relation | None:
    """How units of two tensors compare; None if one cannot be the base of the other."""
    (base, old), (target, new) = (long, short) if long_is_base else (short, long)
    if base.dtype != target.dtype and not is_castable(base.dtype, target.dtype):
        return None
    count = min(len(old), len(new))
    found = relation(cast_units(old[:count], base.dtype, target.dtype), new[:count], target.dtype)
    return found if found.related is not False else None


def _start_keys(start: Array, dtype: str) -> list[int]:
    windows = start[: len(start) // KEY_UNITS * KEY_UNITS].reshape(-1, KEY_UNITS)
    return [int(key) for key in keys_of(windows, dtype)]


def fill_gaps(parts: Sequence[Part], long: Tensor, candidates: Iterable[Tensor], long_is_base: bool) -> list[Part]:
    """Parts between others that have no key, such as norms in a flat parameter: tensors that are as long as a gap.

    Of those whose content does not tell, the one is taken whose name is the closest to that of the part before the gap.
    """
    by_units: dict[int, list[Tensor]] = {}
    for tensor in candidates:
        by_units.setdefault(tensor.units, []).append(tensor)
    filled, at = list[Part](), 0
    for part in (*parts, Part(long.units, 0, long)):
        gap, neighbour = part.first - at, filled[-1].tensor if filled else part.tensor
        best = _best_for_gap(by_units.get(gap, ()), long, at, neighbour.name, long_is_base) if gap else None
        if best is not None:
            filled.append(Part(at, gap, best))
        filled += [part] * bool(part.units)
        at = part.first + part.units
    return filled


def _best_for_gap(tensors: Sequence[Tensor], long: Tensor, at: int, neighbour: str, long_is_base: bool) -> Tensor | None:
    ranked = list[tuple[int, tuple[int, int], Tensor]]()
    near = sorted(tensors, key=lambda tensor: closeness(tensor.name, neighbour), reverse=True)[:MOST_ALIKE]
    for tensor in near:
        count = min(tensor.units, GAP_UNITS)
        compared = _relation((long, read_units(long, at, at + count)), (tensor, read_units(tensor, 0, count)), long_is_base)
        if compared is not None:
            common, less = closeness(tensor.name, neighbour)
            ranked.append((compared.bits, (-common, -less), tensor))
    return min(ranked, key=lambda row: row[:2])[2] if ranked else None

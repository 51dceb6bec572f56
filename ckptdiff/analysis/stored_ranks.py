"""Reading what a stored report says of a tensor's matrices and of its exponents (spec 5.4)."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from typing import Any

from ckptdiff.analysis.intervals import MAX_DRAWS
from ckptdiff.analysis.matrix_rank import MatrixNulls, MatrixRank
from ckptdiff.analysis.nulls import Draws
from ckptdiff.analysis.principal import MAX_DRIFT, Principal, Turned
from ckptdiff.analysis.rank import ENERGY_RANKS, MAX_SINGULAR_VALUES, Spectrum
from ckptdiff.analysis.sizes import ExponentCounts
from ckptdiff.analysis.sparsity import EXPONENT_FIELDS
from ckptdiff.errors import FormatError, cut
from ckptdiff.format.fields import Fields, as_integer


def as_integer_up_to(value: Any, where: str, high: int) -> int:
    """An integer from 0 to ``high``; raises FormatError."""
    if as_integer(value, where) > high:
        raise FormatError(f"{where}: expected 0 to {high}, found {value}")
    return int(value)


def names_of(record: type[Any]) -> str:
    """The fields of a record, as :class:`Fields` takes them."""
    return " ".join(field.name for field in fields(record))


def as_number(value: Any, where: str, high: float = math.inf) -> float:
    """A finite number from 0 to ``high``; raises FormatError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value <= high and math.isfinite(value)):
        raise FormatError(f"{where}: expected a number from 0 to {high:g}, found {cut(value)}")
    return value


def read_number(f: Fields, key: str, high: float = math.inf) -> float:
    """A member that is a finite number from 0 to ``high``; raises FormatError."""
    return as_number(f.value.get(key), f"{f.where}.{key}", high)


def read_numbers(f: Fields, key: str, least: int, most: int, high: float = math.inf) -> tuple[float, ...]:
    """A member that is an array of ``least`` to ``most`` numbers from 0 to ``high``; raises FormatError."""
    values = f.array(key, partial(as_number, high=high))
    if not least <= len(values) <= most:
        raise FormatError(f"{f.where}.{key}: expected {least} to {most} numbers, found {len(values)}")
    return values


def read_rank(value: Any, where: str) -> MatrixRank:
    """A matrix whose rank was taken; raises FormatError."""
    f = Fields(value, where, f"index {names_of(Spectrum)} random_rank nulls")
    rows, columns = f.integer("rows", low=1), f.integer("columns", low=1)
    largest, values = min(rows, columns), read_numbers(f, "singular_values", 1, MAX_SINGULAR_VALUES)
    if list(values) != sorted(values, reverse=True):
        raise FormatError(f"{where}.singular_values: expected them from the largest on")
    spectrum = Spectrum(
        rows,
        columns,
        rank=f.integer("rank", high=largest),
        stable_rank=read_number(f, "stable_rank", largest),
        effective_rank=f.integer("effective_rank", high=largest),
        top_energy=read_numbers(f, "top_energy", len(ENERGY_RANKS), len(ENERGY_RANKS), 1.0),
        singular_values=values,
    )
    nulls = None if f.value.get("nulls") is None else _nulls(f.child("nulls", names_of(MatrixNulls)), rows, columns)
    return MatrixRank(f.integer("index"), spectrum, read_number(f, "random_rank", largest), nulls)


def _nulls(f: Fields, rows: int, columns: int) -> MatrixNulls:
    flipped, shuffled = (_draws(f.child(key, names_of(Draws)), min(rows, columns)) for key in ("flipped", "shuffled"))
    draws = len(flipped.rank)
    if len(shuffled.rank) != draws:
        raise FormatError(f"{f.where}: expected as many draws of both nulls, found {draws} and {len(shuffled.rank)}")
    if f.value.get("principal") is None:
        return MatrixNulls(flipped, shuffled, None)
    p = f.child("principal", names_of(Principal))
    elements, changed = rows * columns, p.integer("changed", low=1, high=rows * columns)
    turned = p.array("shuffled", _turned)
    if len(turned) != draws:
        raise FormatError(f"{p.where}.shuffled: expected {draws} draws, found {len(turned)}")
    found = Principal(
        k=p.integer("k", low=1, high=min(rows, columns)),
        mask=p.integer("mask", high=elements),
        changed=changed,
        inside=p.integer("inside", high=changed),
        inside_by_size=read_number(p, "inside_by_size", elements),
        variance_by_size=read_number(p, "variance_by_size", elements),
        turned=_turned(p.value.get("turned"), f"{p.where}.turned"),
        shuffled=turned,
    )
    return MatrixNulls(flipped, shuffled, found)


def _draws(f: Fields, largest: int) -> Draws:
    rank, effective = (f.array(key, partial(as_integer_up_to, high=largest)) for key in ("rank", "effective_rank"))
    if not 2 <= len(rank) <= MAX_DRAWS or len(effective) != len(rank):
        raise FormatError(f"{f.where}: expected 2 to {MAX_DRAWS} draws of each figure, found {len(rank)} and {len(effective)}")
    stable = read_numbers(f, "stable_rank", len(rank), len(rank), largest)
    return Draws(rank, stable, effective, read_numbers(f, "top_energy", len(rank), len(rank), 1.0))


def _turned(value: Any, where: str) -> Turned:
    f = Fields(value, where, names_of(Turned))
    return Turned(read_number(f, "largest_angle", 90.0), read_number(f, "mean_angle", 90.0), read_number(f, "drift", MAX_DRIFT))


def read_exponents(f: Fields, dtype: str) -> ExponentCounts:
    """The member ``exponents`` of a tensor; raises FormatError."""
    e = f.child("exponents", "explained zeros first elements changed")
    zeros, elements, changed = (e.array(key, as_integer) for key in ("zeros", "elements", "changed"))
    _, most, bias = EXPONENT_FIELDS.get(dtype, (0, 0, 0))
    if not most or len(zeros) != 2 or len(elements) != len(changed) or len(elements) > most:
        raise FormatError(f"{e.where}: expected two counts of zeros, and two for each exponent of {dtype}")
    first = e.integer("first", low=1 - bias, high=most + 1 - bias - len(elements)) if elements else e.integer("first", high=0)
    found = ExponentCounts((zeros[0], zeros[1]), first, elements, changed)
    totals, changes = (zeros[k] + sum(counts) for k, counts in enumerate((elements, changed)))
    if any(c > n for n, c in zip((zeros[0], *elements), (zeros[1], *changed), strict=True)):
        raise FormatError(f"{e.where}: more elements changed than there are: do not trust this patch")
    if (totals, totals - changes) != (f.integer("elements"), f.integer("bit_identical")):
        raise FormatError(f"{e.where}: their counts do not add up to the tensor's: do not trust this patch")
    return found

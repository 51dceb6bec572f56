"""Sets of elements of a model's tensors, and the operations on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ckptdiff.checkpoint.names import near_names
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.subnetwork.mask_file import Shapes
from ckptdiff.subnetwork.mask_rows import (
    Bits,
    Row,
    combine_rows,
    complement_row,
    count_elements,
    count_shared,
    empty_row,
    flags_of,
    pack_positions,
    row_from_bits,
    vote_rows,
)

S = TypeVar("S", bound="ElementSet")


class ElementSet:
    """Some elements of some tensors; see :class:`ckptdiff.Mask`, which is one."""

    def __init__(self, bits: Mapping[str, Bits], shapes: Shapes) -> None:
        self._set({name: row_from_bits(row, math.prod(shapes[name])) for name, row in bits.items()}, shapes)

    def _set(self, rows: Mapping[str, Row], shapes: Shapes) -> None:
        ordered = sorted(shapes, key=str.encode)
        self.shapes = {name: tuple(shapes[name]) for name in ordered}
        self.rows = {name: rows[name] for name in ordered if name in rows and count_elements(rows[name])}

    @classmethod
    def from_rows(cls: type[S], rows: Mapping[str, Row], shapes: Shapes) -> S:
        mask = cls({}, {})
        mask._set(rows, shapes)
        return mask

    @property
    def bits(self) -> Mapping[str, Bits]:
        """Packed elements of each tensor of :attr:`shapes`: the first element is the lowest bit of the first byte. Each is made when it is
        asked for."""
        return PackedRows(self.rows, self.shapes)

    @classmethod
    def union(cls: type[S], *masks: S) -> S:
        """The elements that are in any of the masks."""
        return cls.vote(1, *masks)

    @classmethod
    def intersection(cls: type[S], *masks: S) -> S:
        """The elements that are in all of the masks."""
        return cls.vote(len(masks), *masks)

    @classmethod
    def vote(cls: type[S], least: int, *masks: S) -> S:
        """The elements that are in at least ``least`` of the masks.

        Raises:
            CheckpointError: a tensor has different shapes in two of them.
        """
        shapes, result = shapes_of_all(masks), dict[str, Row]()
        for name, shape in shapes.items():
            rows = [mask.rows[name] for mask in masks if name in mask.rows]
            if len(rows) >= max(least, 1):
                result[name] = vote_rows(max(least, 1), rows, math.prod(shape))
        return cls.from_rows(result, shapes)

    def _combined(self: S, other: S, operation: str) -> S:
        if not isinstance(other, ElementSet):
            return NotImplemented
        rows, shapes = dict[str, Row](), shapes_of_all((self, other))
        for name in self.rows.keys() | other.rows.keys():  # what is in neither takes no memory, whatever its shape
            a, b = (mask.rows.get(name) for mask in (self, other))
            if a is not None and b is not None:
                rows[name] = combine_rows(a, b, operation, math.prod(shapes[name]))
            elif a is not None and operation != "and":
                rows[name] = a
            elif b is not None and operation in ("or", "xor"):
                rows[name] = b
        return self.from_rows(rows, shapes)

    def __and__(self: S, other: S) -> S:
        return self._combined(other, "and")

    def __or__(self: S, other: S) -> S:
        return self._combined(other, "or")

    def __xor__(self: S, other: S) -> S:
        return self._combined(other, "xor")

    def __sub__(self: S, other: S) -> S:
        return self._combined(other, "minus")

    def __invert__(self: S) -> S:
        sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        rows = {name: complement_row(self.rows.get(name, empty_row(size)), size) for name, size in sizes.items()}
        return self.from_rows(rows, self.shapes)

    def complement(self: S) -> S:
        """``~mask``: the other elements of the tensors that the mask is of, also of those that have no element in it."""
        return ~self

    def __len__(self) -> int:
        return self.total

    @property
    def counts(self) -> dict[str, int]:
        """Number of elements in the mask, of each tensor that has any."""
        return {name: count_elements(row) for name, row in self.rows.items()}

    @property
    def total(self) -> int:
        """Number of elements in the mask."""
        return sum(self.counts.values())

    def flags(self, name: str) -> npt.NDArray[np.bool_]:
        """A tensor's elements as booleans of its shape.

        Raises:
            CheckpointError: the mask is of no such tensor.
        """
        if name not in self.shapes:
            near = near_names(name, self.shapes)
            raise CheckpointError(
                f"the mask knows no tensor {cut(name)}; "
                + (f"the nearest of its {len(self.shapes):,} tensors are {near}" if near else "it is of no tensor at all")
            )
        shape, elements = self.shapes[name], math.prod(self.shapes[name])
        return flags_of(self.rows.get(name, empty_row(elements)), elements).reshape(shape)

    def shared(self, other: ElementSet) -> int:
        """Number of elements that are in both masks."""
        return sum(count_shared(row, other.rows[name]) for name, row in self.rows.items() if name in other.rows)

    def precision(self, truth: ElementSet) -> float:
        """Share of this mask's elements that are in another one too; 0 if this one is empty."""
        return self.shared(truth) / self.total if self.total else 0.0

    def recall(self, truth: ElementSet) -> float:
        """Share of another mask's elements that are in this one; 0 if the other one is empty."""
        return truth.precision(self)

    def __eq__(self, other: object) -> bool:
        """Whether two masks are of the same tensors and have the same elements."""
        if not isinstance(other, ElementSet):
            return NotImplemented
        same_tensors = self.shapes == other.shapes and self.rows.keys() == other.rows.keys()
        return same_tensors and all(np.array_equal(row, other.rows[name]) for name, row in self.rows.items())

    __hash__ = None  # type: ignore[assignment]


def shapes_of_all(masks: Iterable[ElementSet]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that any of the masks is of; raises CheckpointError for a tensor that has two."""
    shapes = dict[str, tuple[int, ...]]()
    for mask in masks:
        for name, shape in mask.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise CheckpointError(
                    f"tensor {cut(name)}: has the shape {cut(list(shape))} in one mask, {cut(list(shapes[name]))} in another"
                )
    return shapes


class PackedRows(Mapping[str, Bits]):
    """The packed elements of a mask's tensors, each made when it is asked for."""

    def __init__(self, rows: Mapping[str, Row], shapes: Shapes) -> None:
        self._rows, self._shapes = rows, shapes

    def __getitem__(self, name: str) -> Bits:
        elements = math.prod(self._shapes[name])
        row = self._rows.get(name, empty_row(elements))
        return row if row.itemsize == 1 else pack_positions(row, elements)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

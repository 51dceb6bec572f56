"""Elements that are chosen without training: at random, by the size of the base's weights, or by a step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.nulls import SizeBins, generator
from ckptdiff.analysis.pairs import Pair, open_source
from ckptdiff.analysis.sides import Side, check_sides, side_name
from ckptdiff.analysis.sparsity import EXPONENT_FIELDS
from ckptdiff.analysis.values import element_bits, values_of
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.io.parallel import run_ordered
from ckptdiff.subnetwork.mask_rows import Bits, Row, flags_of, row_from_bits, row_from_positions

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
Sizes = npt.NDArray[np.uint16]
"""The size of each weight of a tensor: the exponent field of its value; of a complex number, the larger one of its two parts."""


def random_row(seed: int, name: str, count: int, elements: int) -> Row:
    """``count`` elements of a tensor, chosen at random."""
    chosen = generator(seed, name).choice(elements, count, replace=False, shuffle=False)
    return row_from_positions(np.sort(chosen), elements)


def random_row_by_size(seed: int, name: str, row: Row, sizes: Sizes) -> Row:
    """As many elements of each size as a row has, chosen at random."""
    flags = SizeBins(sizes).shuffled(flags_of(row, len(sizes)), generator(seed, name))
    return row_from_bits(np.packbits(flags, bitorder="little"), len(sizes))


def expected_by_size(a: Row, b: Row, sizes: Sizes) -> float:
    """How many elements two random rows share that have as many elements of each size as these two."""
    return SizeBins(sizes).shared_by_chance(flags_of(a, len(sizes)), flags_of(b, len(sizes)))[0]


@lru_cache
def largest_moved(dtype: str, step: float) -> int:
    """The bits of the largest number of a dtype, without its sign, that a step can move: half the distance to the nearer one of its
    neighbours is less than the step. -1: there is none.

    The neighbours of a power of two lie at different distances; the nearer one is that towards zero. So the distance grows with the number,
    from that between zero and the smallest subnormal on, and bisection finds the number.
    """
    low, high = -1, (1 << (DTYPES[dtype].bits - 1)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        near = max(middle - 1, 0)
        bits = np.array([near, near + 1]).astype(f"<u{DTYPES[dtype].carrier}")
        below, above = (float(value) for value in values_of(bits, dtype))
        moved = math.isfinite(above) and above - below < 2 * step
        low, high = (middle, high) if moved else (low, middle - 1)
    return low


def is_predicted(pair: Pair) -> bool:
    """Whether a tensor consists of real floats with a sign, of which a step of an optimizer can be told."""
    return DTYPES[pair.dtype].is_float and pair.dtype != "C64"


def predicted_row(pair: Pair, step: float) -> Row:
    """The elements of a tensor of the base that a step can move."""
    largest, parts = largest_moved(pair.dtype, step), list[Bits]()
    for start in pair.starts:
        units = element_bits(pair.read(start, start + pair.step)[0], pair.dtype)
        flags = _magnitudes(units, pair.dtype) <= largest if largest >= 0 else np.zeros(len(units), np.bool_)
        if pair.dtype.endswith("FNUZ"):  # whose only NaN has the bits of a negative zero
            flags = flags & np.isfinite(values_of(units, pair.dtype))
        parts.append(np.packbits(flags, bitorder="little"))
    return row_from_bits(np.concatenate(parts), math.prod(pair.shape))


def smallest_row(pair: Pair, count: int) -> Row:
    """The ``count`` elements of a tensor of the base with the smallest |weight|."""
    magnitudes = _magnitudes(_whole(pair), pair.dtype)
    flags = np.zeros(len(magnitudes), np.bool_)
    flags[np.argpartition(magnitudes, count - 1)[:count]] = True
    return row_from_bits(np.packbits(flags, bitorder="little"), len(flags))


def sizes_of(pair: Pair) -> Sizes:
    """The sizes of all weights of a tensor of the base; integers have all the same."""
    parts = 2 if pair.dtype == "C64" else 1
    shift, mask, _ = EXPONENT_FIELDS.get(pair.dtype, (0, 0, 0))
    units = _whole(pair)
    fields = ((units.view("<u4") if parts == 2 else units) >> shift) & mask
    return np.asarray(fields.reshape(-1, parts).max(axis=1).astype(np.uint16))


def _magnitudes(units: npt.NDArray[np.unsignedinteger], dtype: str) -> npt.NDArray[np.unsignedinteger]:
    """Bits of floats without their signs: they are in the order of |weight|."""
    return units & units.dtype.type((1 << (DTYPES[dtype].bits - 1)) - 1)


def _whole(pair: Pair) -> npt.NDArray[np.unsignedinteger]:
    """A whole tensor of the base, in bits."""
    parts: list[Bytes] = [pair.read(start, start + pair.step)[0].copy() for start in pair.starts]
    return element_bits(np.concatenate(parts), pair.dtype)


def rows_of_base(
    base: Side,
    shapes: Shapes | None,
    make: Callable[[Pair], T],
    *,
    wanted: Callable[[Pair], bool] = lambda pair: True,
    as_dtype: Any = None,
    threads: int,
) -> Iterator[tuple[str, tuple[int, ...], T]]:
    """Name, shape, and what ``make`` makes, of each wanted tensor of a base.

    Args:
        base: the checkpoint, or tensors in memory.
        shapes: the tensors that are wanted, which it must have in these shapes; None: all.
        make: called with a tensor paired with itself, on any thread.
        wanted: which of them to take.
        as_dtype: cast the base while it is read.
        threads: how many to use.

    Raises:
        CheckpointError: the base cannot be read, lacks a tensor, has it in another shape, or has a name in two scopes.
    """
    check_sides(base=base)
    with open_source(base, base, as_dtype=as_dtype) as source:
        found = dict[str, Pair]()
        for pair in source.pairs:
            if found.setdefault(pair.name, pair) is not pair:
                raise CheckpointError(f"{source.base}: two scopes have a tensor {cut(pair.name)}: make a mask of each by itself")
        for name, shape in (shapes or {}).items():
            if name not in found or found[name].shape != shape:
                other = f"has it as {cut(list(found[name].shape))}" if name in found else "has no such tensor"
                raise CheckpointError(
                    f"the mask has the tensor {cut(name)} of shape {cut(list(shape))}, {side_name(base, 'the base')} {other}: "
                    "give the base a mask of its own tensors"
                )
        pairs = [pair for pair in found.values() if (shapes is None or pair.name in shapes) and wanted(pair)]
        with closing(run_ordered((partial(make, pair) for pair in pairs), threads)) as rows:
            for pair, row in zip(pairs, rows, strict=True):
                yield pair.name, pair.shape, row

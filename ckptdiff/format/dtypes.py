"""The closed table of dtypes (spec section 4), and which can be cast to each other (8).

Everything here works on bit patterns that are held in unsigned integers; nothing is ever a float.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Units: TypeAlias = npt.NDArray[Any]
"""Units of a tensor: unsigned integers of the dtype's carrier."""
Bytes: TypeAlias = npt.NDArray[np.uint8]
Changes: TypeAlias = tuple[Units, Units]
"""The changes of a block: the positions of units in it, rising, and the zigzags of their ulp distances, none of them 0 (spec 7.2)."""


class ManyChanges(NamedTuple):
    """The changes of several blocks, one block behind the other."""

    positions: Units
    """Positions in their blocks."""
    zigzags: Units
    ends: list[int]
    """One more than blocks: where the changes of each block end, from the second on; the first is 0."""

    @property
    def blocks(self) -> list[Changes]:
        """The changes of each block."""
        return [(self.positions[i:j], self.zigzags[i:j]) for i, j in itertools.pairwise(self.ends)]

    @property
    def counts(self) -> list[int]:
        """How many changes each block has."""
        return [j - i for i, j in itertools.pairwise(self.ends)]

    def only(self, numbers: Sequence[int]) -> ManyChanges:
        """The changes of some of the blocks, by their numbers, which rise."""
        if len(numbers) == len(self.ends) - 1:
            return self
        blocks = self.blocks
        chosen = [blocks[k] for k in numbers] or [(self.positions[:0], self.zigzags[:0])]
        positions, zigzags = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        return ManyChanges(positions, zigzags, [0, *itertools.accumulate(len(blocks[k][0]) for k in numbers)])


@dataclass(frozen=True, slots=True)
class Replacement:
    """All bytes of a block of the target, whatever the base has."""

    target: Bytes


BlockChange: TypeAlias = Changes | Replacement
"""What turns a block of the base into that of the target: units that move, or a block that is replaced."""

MAX_SIZE = 1 << 48
"""Limit of a tensor's size in bytes, of a dimension, and of the product of the dimensions that are not 0 (spec 11)."""

MAX_FILE = 1 << 40
"""Limit of a file's size in bytes (spec 11)."""


UNITS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
"""NumPy's types of units, by their bytes."""


@dataclass(frozen=True, slots=True)
class Dtype:
    """One row of the table."""

    name: str
    bits: int
    """Bits of an element."""
    carrier: int
    """Bytes of a unit."""
    is_float: bool
    """Whether units order as floats (spec 7.2)."""

    @property
    def unit(self) -> np.dtype[Any]:
        """NumPy's type of a unit: a little-endian unsigned integer."""
        return UNITS[self.carrier]

    @property
    def class_shift(self) -> int:
        """By how many bits a unit is shifted down to get its class (spec 7.5.1): of most floats, the bits of the mantissa."""
        return {"F16": 10, "BF16": 7, "F32": 23, "C64": 23, "F64": 52}.get(self.name, 8 * self.carrier - 8)

    @property
    def class_mask(self) -> int:
        """Which bits of the shifted unit are its class."""
        return 31 if self.name == "F16" else 255

    def nbytes(self, shape: tuple[int, ...]) -> int | None:
        """Size in bytes of a tensor of this shape; None if that is not a whole number, or above the limits (spec 11)."""
        return _nbytes(shape, self.bits)


@lru_cache(maxsize=1 << 14)
def _nbytes(shape: tuple[int, ...], bits: int) -> int | None:
    elements = math.prod(filter(None, shape))
    size = elements * bits if all(shape) else 0
    return None if elements > MAX_SIZE or size % 8 or size // 8 > MAX_SIZE else size // 8


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        *(Dtype(name, 8, 1, False) for name in ("BOOL", "U8", "I8", "F8_E8M0")),
        *(Dtype(name, 16, 2, False) for name in ("U16", "I16")),
        *(Dtype(name, 32, 4, False) for name in ("U32", "I32")),
        *(Dtype(name, 64, 8, False) for name in ("U64", "I64")),
        *(Dtype(name, 8, 1, True) for name in ("F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ")),
        *(Dtype(name, 16, 2, True) for name in ("F16", "BF16")),
        Dtype("F32", 32, 4, True),
        Dtype("F64", 64, 8, True),
        Dtype("C64", 64, 4, True),
        Dtype("F4", 4, 1, False),
        *(Dtype(name, 6, 1, False) for name in ("F6_E2M3", "F6_E3M2")),
    )
}
"""All dtypes by name."""

DTYPE_ORDER = (
    "U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 F8_E5M2FNUZ F8_E4M3FNUZ F8_E8M0 F8_E4M3 F8_E5M2 I8 U8 F6_E3M2 F6_E2M3 F4 BOOL".split()
)
"""The safetensors library writes tensors in this order of their dtypes, those of one dtype by name."""

DTYPE_NAMES: dict[str, tuple[str | None, str | None]] = {
    "BOOL": ("bool", "bool"),
    "U8": ("uint8", "uint8"),
    "I8": ("int8", "int8"),
    "U16": ("uint16", "uint16"),
    "I16": ("int16", "int16"),
    "U32": ("uint32", "uint32"),
    "I32": ("int32", "int32"),
    "U64": ("uint64", "uint64"),
    "I64": ("int64", "int64"),
    "F16": ("float16", "float16"),
    "BF16": ("bfloat16", "bfloat16"),
    "F32": ("float32", "float32"),
    "F64": ("float64", "float64"),
    "C64": ("complex64", "complex64"),
    "F8_E5M2": ("float8_e5m2", "float8_e5m2"),
    "F8_E4M3": ("float8_e4m3fn", "float8_e4m3fn"),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", "float8_e5m2fnuz"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "float8_e4m3fnuz"),
    "F8_E8M0": ("float8_e8m0fnu", "float8_e8m0fnu"),
    "F4": ("float4_e2m1fn_x2", None),
    "F6_E2M3": (None, None),
    "F6_E3M2": (None, None),
}
"""Names of each safetensors dtype in torch and in numpy with ml_dtypes. An element of torch's F4 type is two of safetensors'."""
DTYPE_OF_NAME = {other: name for name, others in DTYPE_NAMES.items() for other in others if other is not None}
"""Name of the safetensors dtype by its names in torch and numpy."""


NUMBERS = ("F16", "BF16", "F32")
"""Dtypes whose numbers are cast to each other (spec section 8)."""
CASTS = {(source, target) for source in NUMBERS for target in NUMBERS if source != target}
"""The pairs of dtypes whose numbers are cast."""


def is_castable(source: str, target: str) -> bool:
    """Whether section 8 has a rule that turns units of one dtype into units of another: a cast, or bits as they are."""
    return source != target and ((source, target) in CASTS or DTYPES[source].carrier == DTYPES[target].carrier)

"""The closed table of dtypes (spec section 4) and the exact casts (8).

Everything here works on bit patterns that are held in unsigned integers; nothing is ever a float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Units: TypeAlias = npt.NDArray[Any]
"""Units of a tensor: unsigned integers of the dtype's carrier."""
Bytes: TypeAlias = npt.NDArray[np.uint8]
Changes: TypeAlias = tuple[Units, Units]
"""The changes of a block: the positions of units in it, rising, and the zigzags of their ulp distances, none of them 0 (spec 7.2)."""


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
        return np.dtype(f"<u{self.carrier}")

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


def _bf16_to_f32(x: Units) -> Units:
    return x.astype("<u4") << 16


def _f32_to_bf16(x: Units) -> Units:
    is_nan = (x & 0x7FFFFFFF) > 0x7F800000
    rounded = (x + np.uint32(0x7FFF) + ((x >> 16) & 1)) >> 16
    return np.where(is_nan, (x >> 16) | 0x40, rounded).astype("<u2")


@cache
def _f16_table() -> Units:
    """The F32 bits of every F16 bit pattern, by integer arithmetic: conversion by hardware may make a signalling NaN quiet."""
    x = np.arange(1 << 16, dtype=np.uint32)
    sign, exponent, mantissa = (x >> 15) << 31, (x >> 10) & 31, x & 1023
    bits = ((exponent + 112) << 23) | (mantissa << 13)
    bits[exponent == 31] = 0x7F800000 | (mantissa[exponent == 31] << 13)
    for value in range(1, 1024):  # subnormals, value * 2^-24, become normal numbers
        shift = value.bit_length() - 1
        sub = ((shift + 103) << 23) | ((value << (23 - shift)) & 0x7FFFFF)
        bits[(exponent == 0) & (mantissa == value)] = sub
    bits[(exponent == 0) & (mantissa == 0)] = 0
    return sign | bits


def _f16_to_f32(x: Units) -> Units:
    return _f16_table()[x]


CASTS = {("BF16", "F32"): _bf16_to_f32, ("F16", "F32"): _f16_to_f32, ("F32", "BF16"): _f32_to_bf16}
"""The casts of spec section 8, by the dtypes of base and target."""


def cast(data: Bytes, source: str, target: str) -> Bytes:
    """Bytes of whole elements, cast as spec section 8 says; unchanged if both dtypes are the same."""
    if source == target:
        return data
    return CASTS[source, target](data.view(DTYPES[source].unit)).view(np.uint8)

"""Bit patterns of elements and their numeric values. Only reports use them: patches are made from bit patterns alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import DTYPES, Bytes

SMALL_FLOATS: dict[str, tuple[int, int, int, str]] = {
    "F4": (2, 1, 1, ""),
    "F6_E2M3": (2, 3, 1, ""),
    "F6_E3M2": (3, 2, 3, ""),
    "F8_E4M3": (4, 3, 7, "last"),
    "F8_E5M2": (5, 2, 15, "ieee"),
    "F8_E4M3FNUZ": (4, 3, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
}
"""Exponent bits, mantissa bits, bias, and which bit patterns are no finite numbers: none, those of IEEE 754, only the last one of each
sign, or only that of minus zero. Sources: OCP MX and OCP FP8; for FNUZ arXiv 2206.02915."""
NUMPY_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
SIGNED_INTEGERS = {"I8", "I16", "I32", "I64"}


@cache
def small_float_table(dtype: str) -> npt.NDArray[np.float64]:
    """Values of all bit patterns of a float of at most 8 bits."""
    if dtype == "F8_E8M0":
        table = 2.0 ** (np.arange(256, dtype=np.float64) - 127)
        table[255] = np.nan
        return table
    e_bits, m_bits, bias, special = SMALL_FLOATS[dtype]
    bits = np.arange(1 << (1 + e_bits + m_bits))
    sign = np.where(bits >> (e_bits + m_bits), -1.0, 1.0)
    exponent, mantissa = (bits >> m_bits) & ((1 << e_bits) - 1), bits & ((1 << m_bits) - 1)
    normal = 2.0 ** (exponent - bias) * (1 + mantissa / (1 << m_bits))
    table = sign * np.where(exponent == 0, 2.0 ** (1 - bias) * mantissa / (1 << m_bits), normal)
    top = exponent == (1 << e_bits) - 1
    if special == "last":
        table[top & (mantissa == (1 << m_bits) - 1)] = np.nan
    elif special == "ieee":
        table[top] = np.where(mantissa[top], np.nan, sign[top] * np.inf)
    elif special == "fnuz":
        table[1 << (e_bits + m_bits)] = np.nan
    return table


def count_ones(bits: npt.NDArray[np.uint8]) -> int:
    """Number of bits that are 1."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def element_bits(data: Bytes, dtype: str) -> npt.NDArray[Any]:
    """One unsigned integer for each element; elements of less than a byte are taken from the low bits up."""
    row = DTYPES[dtype]
    if row.bits >= 8:
        return data.view(f"<u{row.bits // 8}")
    if row.bits == 4:
        return np.stack([data & 15, data >> 4], axis=1).reshape(-1)
    bits = np.unpackbits(data, bitorder="little").reshape(-1, row.bits)
    return np.packbits(bits, axis=1, bitorder="little").reshape(-1)


def values_of(bits: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Values of elements that are given as bits: float32 where that is exact, else float64 (integers above 2^53 are rounded)."""
    if dtype in SMALL_FLOATS or dtype == "F8_E8M0":
        return small_float_table(dtype)[bits]
    if dtype == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    if dtype in NUMPY_TYPES:
        values = bits.view(NUMPY_TYPES[dtype])
        return values.astype(np.float32) if dtype == "F16" else values
    return (bits.view(f"<i{bits.itemsize}") if dtype in SIGNED_INTEGERS else bits).astype(np.float64)


def distances(a: npt.NDArray[Any], b: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """|a - b| of elements that are given as bits.

    Returns:
        For floats float64, NaN where either is NaN; for C64 the larger of the distances of the two parts; for integers uint64, exact.
    """
    if dtype == "C64":
        return np.asarray(np.max([distances(a.view("<u4")[k::2], b.view("<u4")[k::2], "F32") for k in (0, 1)], axis=0))
    if dtype in SMALL_FLOATS or dtype in NUMPY_TYPES or dtype in ("BF16", "F8_E8M0"):
        return _subtract(values_of(a, dtype), values_of(b, dtype))
    if dtype in SIGNED_INTEGERS:
        x, y = (v.view(f"<i{v.itemsize}").astype(np.int64).view(np.uint64) ^ (1 << 63) for v in (a, b))
    else:
        x, y = a.astype(np.uint64), b.astype(np.uint64)
    return np.where(x > y, x - y, y - x)


def _subtract(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(x.astype(np.float64) - y.astype(np.float64))

"""The exact casts of spec section 8, between the bits of floats.

A 16-bit float has so few bit patterns that a table holds the cast of each; kernels narrow F32.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from functools import cache

import numpy as np

from ckptdiff.format.dtypes import CASTS, DTYPES, Bytes, Units
from ckptdiff.kernels.arrays import readable
from ckptdiff.kernels.jit import ONE, jit

SIGN_32, INFINITY_32, QUIET_16 = np.uint64(0x7FFFFFFF), np.uint64(0x7F800000), np.uint64(0x7E00)
"""Of F32: all bits but the sign, and infinity; of F16: infinity with the highest bit of the mantissa."""


@jit
def fill_bf16(source, out):
    """Round F32 to BF16, to the nearest and of equals to the even one; NaN keep their high bits, and are quiet."""
    for i in range(len(source)):
        x = np.uint64(source[i])
        rounded = (x + np.uint64(0x7FFF) + ((x >> np.uint64(16)) & ONE)) >> np.uint64(16)
        quiet = (x >> np.uint64(16)) | np.uint64(0x40)
        out[i] = np.uint16(quiet if (x & SIGN_32) > INFINITY_32 else rounded)


@jit
def fill_f16(source, out):
    """Round F32 to F16, to the nearest and of equals to the even one; NaN keep their high bits, and are quiet."""
    for i in range(len(source)):
        x = np.uint64(source[i])
        a = x & SIGN_32
        y = a - np.uint64(0x38000000)  # the exponent as F16 has it; meaningless for what is below its normal numbers
        normal = min((y + np.uint64(0xFFF) + ((y >> np.uint64(13)) & ONE)) >> np.uint64(13), np.uint64(0x7C00))
        e, mantissa = a >> np.uint64(23), (a & np.uint64(0x7FFFFF)) | np.uint64(0x800000)
        k = min(max(np.uint64(126) - min(e, np.uint64(125)), ONE), np.uint64(25))  # from 25 on everything rounds to zero
        small = (mantissa + (ONE << (k - ONE)) - ONE + ((mantissa >> k) & ONE)) >> k
        bits = normal if a >= np.uint64(0x38800000) else small
        bits = QUIET_16 | ((a >> np.uint64(13)) & np.uint64(0x3FF)) if a > INFINITY_32 else bits
        out[i] = np.uint16(((x >> np.uint64(16)) & np.uint64(0x8000)) | bits)


@cache
def _table(source: str, target: str) -> Units:
    """The cast of every bit pattern of a 16-bit float."""
    x = np.arange(1 << 16, dtype=np.uint32)
    if target != "F32":
        return cast(_table(source, "F32").view(np.uint8), "F32", target).view(np.uint16)
    if source == "BF16":
        return x << 16
    sign, exponent, mantissa = (x >> 15) << 31, (x >> 10) & 31, x & 1023
    bits = ((exponent + 112) << 23) | (mantissa << 13)
    bits[exponent == 31] = 0x7F800000 | (mantissa[exponent == 31] << 13)
    small = exponent == 0  # value * 2^-24, which become normal numbers
    shift = np.maximum(np.frexp(mantissa[small])[1] - 1, 0).astype(np.uint32)
    bits[small] = ((shift + 103) << 23) | ((mantissa[small] << (23 - shift)) & 0x7FFFFF)
    bits[small & (mantissa == 0)] = 0
    return sign | bits


def cast(data: Bytes, source: str, target: str) -> Bytes:
    """Bytes of whole units, cast as spec section 8 says; the same bytes where both dtypes have the same bits."""
    if (source, target) not in CASTS:
        return data
    units = readable(data).view(DTYPES[source].unit)
    if source != "F32":
        return _table(source, target).take(units).view(np.uint8)
    out = np.empty(len(units), np.uint16)
    (fill_bf16 if target == "BF16" else fill_f16)(units, out)
    return out.view(np.uint8)

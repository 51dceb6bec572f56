"""Kernels: masks on tensors in the host's memory, in one pass over packed bits, where torch's operations need several.

A mask's bits are packed into bytes (uint8), the first element's lowest.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Bytes
from ckptdiff.kernels.jit import jit

Array = npt.NDArray[Any]
JOB_ELEMENTS = 1 << 20
"""Elements that one job takes: a multiple of 8, so that jobs share no byte of bits."""


@jit
def zero_unmasked(units, bits):
    """Zero the integers whose bit is 0."""
    whole = len(units) // 8
    for i in range(whole):
        byte = np.int32(bits[i])
        for k in range(8):
            units[8 * i + k] &= -((byte >> np.int32(k)) & np.int32(1))
    for x in range(8 * whole, len(units)):
        units[x] &= -((np.int32(bits[x // 8]) >> np.int32(x % 8)) & np.int32(1))


@jit
def fill_unmasked(units, bits, value):
    """Set the integers whose bit is 0."""
    whole = len(units) // 8
    for i in range(whole):
        byte = np.int32(bits[i])
        for k in range(8):
            units[8 * i + k] = units[8 * i + k] if (byte >> np.int32(k)) & np.int32(1) else value
    for x in range(8 * whole, len(units)):
        if not (np.int32(bits[x // 8]) >> np.int32(x % 8)) & np.int32(1):
            units[x] = value


@jit
def scale_masked(floats, bits, factor):
    """Multiply the numbers whose bit is 1."""
    whole = len(floats) // 8
    for i in range(whole):
        byte = np.int32(bits[i])
        for k in range(8):
            product = floats[8 * i + k] * factor
            floats[8 * i + k] = product if (byte >> np.int32(k)) & np.int32(1) else floats[8 * i + k]
    for x in range(8 * whole, len(floats)):
        if (np.int32(bits[x // 8]) >> np.int32(x % 8)) & np.int32(1):
            floats[x] *= factor


def split_jobs(array: Array, bits: Bytes) -> list[tuple[Array, Bytes]]:
    """A flat array and its bits, split into jobs.

    Raises:
        ValueError: there are not as many bits as the array has elements, and kernels would read beyond them.
    """
    if array.ndim != 1 or len(bits) != -(-len(array) // 8):
        raise ValueError(f"{len(bits)} bytes of bits do not mask an array of the shape {list(array.shape)}")
    return [(array[x : x + JOB_ELEMENTS], bits[x // 8 : (x + JOB_ELEMENTS) // 8]) for x in range(0, len(array), JOB_ELEMENTS)]

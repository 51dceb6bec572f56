"""Arrays as kernels take them: a kernel indexes without checks, so what it is handed is checked before."""

from __future__ import annotations

from collections.abc import Sized
from ctypes import addressof, c_char
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class _Memory:
    """The memory of a read-only array, shown to NumPy as writable."""

    def __init__(self, array: Array) -> None:
        self.owner, interface = array, array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def readable(array: Array) -> Array:
    """An array for a kernel that does not write to it. A read-only array has another type in Numba, which would compile all again."""
    return array if array.flags.writeable else np.asarray(_Memory(array))


def address_of(array: Array) -> int:
    """Where the memory of an array without gaps begins. NumPy takes five times as long to tell."""
    return addressof(c_char.from_buffer(array)) if array.nbytes and array.flags.writeable else array.ctypes.data


def check_positions(units: Sized, positions: Array, *values: Array) -> None:
    """Raise ValueError unless positions, which rise, are those of units, and there are as many of each of ``values``."""
    if any(len(row) != len(positions) for row in values) or (len(positions) and not 0 <= positions[0] <= positions[-1] < len(units)):
        raise ValueError(
            f"{len(positions)} positions and their values do not fit: expected one value for each, and positions below {len(units)} units"
        )


def check_lengths(units: Sized, others: Sized) -> None:
    """Raise ValueError unless there are as many units as others."""
    if len(units) != len(others):
        raise ValueError(f"{len(units)} units cannot be compared with {len(others)}")

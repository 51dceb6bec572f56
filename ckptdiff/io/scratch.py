"""Arrays that a thread uses again for block after block: the page faults of fresh ones took a third of the coders' time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class _Mine(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[np.uint8]] = {}


_mine = _Mine()


def scratch(name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of ``size`` items of anything, this thread's until it next asks for the same name."""
    kind = np.dtype(dtype)
    array = _mine.arrays.get(name)
    if array is None or len(array) < size * kind.itemsize:
        array = _mine.arrays[name] = np.empty(1 << (size * kind.itemsize - 1).bit_length(), np.uint8)
    return array[: size * kind.itemsize].view(kind)

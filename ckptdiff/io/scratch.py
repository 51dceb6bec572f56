"""Scratch arrays, which a thread uses again for block after block: the page faults of new arrays took a third of the coders' time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class _ThreadState(threading.local):
    """The scratch memory of one thread, by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[np.uint8]] = {}


_state = _ThreadState()


def scratch(name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of ``size`` items with arbitrary contents. It is this thread's until the thread asks for the same name again."""
    kind = np.dtype(dtype)
    array = _state.arrays.get(name)
    if array is None or len(array) < size * kind.itemsize:
        array = _state.arrays[name] = np.empty(1 << (size * kind.itemsize - 1).bit_length(), np.uint8)
    return array[: size * kind.itemsize].view(kind)

"""Scratch arrays, which a thread uses again for block after block: the page faults of new arrays took a third of the coders' time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class _ThreadState(threading.local):
    """The scratch memory of one thread, by name and by what its items are taken for."""

    def __init__(self) -> None:
        self.arrays: dict[str, dict[npt.DTypeLike, Array]] = {}


_state = _ThreadState()


def scratch(name: str, size: int, dtype: npt.DTypeLike) -> Array:
    """An array of ``size`` items with arbitrary contents. It is this thread's until the thread asks for the same name again."""
    views = _state.arrays.get(name)
    if views is not None:
        array = views.get(dtype)
        if array is not None and len(array) >= size:
            return array[:size]
    return _new_view(name, size, dtype)[:size]


def _new_view(name: str, size: int, dtype: npt.DTypeLike) -> Array:
    """The whole memory of a name as items of a type; it is exchanged for larger memory if it has not room for ``size`` of them."""
    kind = np.dtype(dtype)
    views = _state.arrays.setdefault(name, {})
    memory = views.get(np.uint8)
    if memory is None or len(memory) < size * kind.itemsize:
        memory = np.empty(1 << max(size * kind.itemsize - 1, 7).bit_length(), np.uint8)
        views.clear()
        views[np.uint8] = memory
    views[dtype] = memory.view(kind)
    return views[dtype]

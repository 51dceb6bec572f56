"""Kernels: files read and written at given positions by other kernels, of which one call then does many blocks without Python's lock.

What such a kernel is given again and again is kept for each thread: to put it together took a third of the lock.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types

from ckptdiff.kernels.jit import jit

INTEGERS = types.int32, types.uint64, types.uint64, types.int64
"""A descriptor, an address, how many bytes, and where in the file."""
pread: Any = types.ExternalFunction("pread", types.int64(*INTEGERS))
pwrite: Any = types.ExternalFunction("pwrite", types.int64(*INTEGERS))


@jit
def read_all(file, address, size, offset):
    """Read bytes of a file into memory.

    Args:
        file: its descriptor.
        address: of the memory: uint64.
        size: how many bytes.
        offset: where in the file they begin.

    Returns:
        Whether all were read; what went wrong is not told.
    """
    done = 0
    while done < size:
        count = pread(np.int32(file), address + np.uint64(done), np.uint64(size - done), np.int64(offset + done))
        if count <= 0:
            return False
        done += count
    return True


@jit
def write_all(file, address, size, offset):
    """Write memory into a file; the arguments and the result are as of :func:`read_all`."""
    done = 0
    while done < size:
        count = pwrite(np.int32(file), address + np.uint64(done), np.uint64(size - done), np.int64(offset + done))
        if count <= 0:
            return False
        done += count
    return True


class ThreadArguments(threading.local):
    """What a thread gives a kernel, as long as that depends on the same.

    It holds all memory that the kernel has the address of: scratch memory of a name may be exchanged for larger one meanwhile.
    """

    def __init__(self) -> None:
        self._made: tuple[Any, Any] = None, None

    def of(self, make: Callable[..., Any], *facts: Any) -> Any:
        """What ``make`` gives, of the same facts as before the same."""
        if self._made[0] != facts:
            self._made = facts, make(*facts)
        return self._made[1]

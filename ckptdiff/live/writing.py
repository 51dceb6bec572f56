"""Which memory is being written to: two threads that apply patches to one model would mix them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MemoryRange = tuple[str, int, int]
"""Device, address, and size in bytes."""

_changed = threading.Condition()
_held: list[tuple[int, list[MemoryRange]]] = []
"""Thread and ranges, sorted, of each :func:`writing` that has begun."""


@contextmanager
def writing(ranges: Iterable[MemoryRange]) -> Iterator[None]:
    """Wait until no other thread writes to any of this memory, and keep others from it until the end."""
    wanted = threading.get_ident(), sorted(part for part in ranges if part[2])
    try:
        with _changed:
            while any(held[0] != wanted[0] and _overlap(wanted[1], held[1]) for held in _held):
                _changed.wait()
            _held.append(wanted)
        yield
    finally:
        with _changed:
            _held[:] = [held for held in _held if held is not wanted]
            _changed.notify_all()


def _overlap(first: list[MemoryRange], second: list[MemoryRange]) -> bool:
    """Whether two sorted lists of ranges share a byte."""
    i = j = 0
    while i < len(first) and j < len(second):
        (where, begin, size), (other, start, length) = first[i], second[j]
        if where == other and begin < start + length and start < begin + size:
            return True
        if (where, begin + size) <= (other, start + length):
            i += 1
        else:
            j += 1
    return False

"""What this process compiles: for how long, and who is told of it. Kernels are compiled one at a time, in any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[int, str | None], None]
"""Is told, before a kernel is compiled and after it, how many the process has compiled, and why they cannot be kept, if they cannot."""

_listeners: list[Listener] = []
_count = 0
_seconds = 0.0
_began: float | None = None
_unkept: str | None = None


def begin(unkept: str | None = None) -> None:
    """A kernel is not in the cache, and is going to be compiled; ``unkept``: why it cannot be kept."""
    global _began, _unkept
    _began, _unkept = time.perf_counter(), unkept
    for listener in _listeners:
        listener(_count, unkept)


def end() -> None:
    """The kernel has been compiled, and kept."""
    global _began, _count, _seconds
    _seconds = seconds()
    _began, _count = None, _count + 1
    for listener in _listeners:
        listener(_count, _unkept)


def active() -> bool:
    """Whether a kernel is being compiled."""
    return _began is not None


def seconds() -> float:
    """Seconds of wall time that this process has spent compiling until now."""
    return _seconds + (0.0 if _began is None else time.perf_counter() - _began)


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Have a listener told within the context. It is called by the thread that compiles."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Stopwatch:
    """Measures wall time without that in which kernels were compiled, which is spent once on each machine."""

    def __init__(self) -> None:
        self._started = time.perf_counter() - seconds()

    def seconds(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - seconds() - self._started

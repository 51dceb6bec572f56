"""SIGINT, SIGTERM and SIGHUP: who has them, and where they wait until a step is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any]


def install(handler: Handler) -> dict[signal.Signals, Any]:
    """Give the signals to ``handler``, but for those that the caller ignores, as under nohup; returns who had them.

    Only the main thread may, and only it is ever interrupted: elsewhere nothing happens, and the result is empty.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: had for signum, had in before.items() if had not in (signal.SIG_IGN, None)}
    _set(dict.fromkeys(before, handler))
    return before


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # or a signal could come when half of them are set
    try:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def block() -> None:
    """From here to the end of the process: all is done, and Python takes the handlers away before it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextmanager
def raised() -> Iterator[None]:
    """Every signal raises KeyboardInterrupt, so that all is cleaned up on the way out."""
    before = install(_interrupt)
    try:
        yield
    finally:
        _set(before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """Signals wait until the end of the block, and come then."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        before = install(lambda signum, frame: came.append(signum))
        yield
    finally:
        _set(before)
        for signum in came:
            signal.raise_signal(signum)

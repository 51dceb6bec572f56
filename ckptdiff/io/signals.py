"""SIGINT, SIGTERM and SIGHUP: what handles them, and how they are put off while a step must not be interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""
Handler = Callable[[int, FrameType | None], Any]
CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit code of a command whose reader has gone, as shells have it: another one could be taken for what the command found."""


def install(handler: Handler) -> dict[signal.Signals, Any]:
    """Have ``handler`` handle the signals, but for those that are ignored, as under nohup.

    Python lets only the main thread do this, and interrupts only that: in another thread nothing happens.

    Returns:
        The handlers before, by signal: those to put back.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {signum: signal.getsignal(signum) for signum in END_SIGNALS}
    before = {signum: previous for signum, previous in before.items() if previous not in (signal.SIG_IGN, None)}
    _set(dict.fromkeys(before, handler))
    return before


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    """Set the handlers of signals, all at once as far as these can tell."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)  # a signal must not come while half of them are set
    try:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def block() -> None:
    """Block the signals until the process ends: its work is done, and Python removes the handlers before it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)


@contextmanager
def raised() -> Iterator[None]:
    """Within the block every signal raises KeyboardInterrupt, so that what is under way is cleaned up."""
    before = install(_interrupt)
    try:
        yield
    finally:
        _set(before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """Within the block signals are put off; they are delivered at its end."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        before = install(lambda signum, frame: came.append(signum))
        yield
    finally:
        _set(before)
        for signum in came:
            signal.raise_signal(signum)

"""Runs that are killed at a chosen system call, in a fork: as a kill from outside, but at a moment that can be named."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any


def in_fork(run: Callable[[], object]) -> int:
    """Run something in a fork; returns its exit code, which is negative if a signal ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(nth: int, name: str, run: Callable[[], object]) -> bool:
    """Run something in a fork, which is killed as it calls a function of ``os`` for the ``nth`` time; of ``pwrite`` half of the bytes are
    written by then. Returns whether it came so far."""

    def counted() -> None:
        real, calls = getattr(os, name), [0]

        def call(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == nth:
                if name == "pwrite":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(os, name, call)
        run()

    code = in_fork(counted)
    assert code in (0, -signal.SIGKILL), code
    return code != 0

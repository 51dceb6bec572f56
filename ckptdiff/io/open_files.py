"""Open local files, a bounded number at a time: a checkpoint may have a thousand shards, and a process 256 open files."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict

MAX_OPEN, MIN_OPEN = 512, 4
"""Bounds of how many files are held open."""
RESERVED = 64
"""How many open files are left to the rest of the process, beside half of what the system allows."""

OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever."""


def capacity() -> int:
    """How many files may be held open now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN if soft == resource.RLIM_INFINITY else max(MIN_OPEN, min(MAX_OPEN, (soft - RESERVED) // 2))


class OpenFiles:
    """File descriptors, shared by threads. Where there are too many, those that were used longest ago are closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[object, int] = OrderedDict()
        self._used: dict[object, tuple[int, int]] = {}

    def take(self, key: object, path: str) -> tuple[int, bool]:
        """A descriptor of a file, which stays open until :meth:`give_back`, and whether it was opened just now.

        Args:
            key: what the descriptor is known by; :meth:`close` takes it too.
            path: the file.

        Raises:
            OSError: it cannot be opened.
        """
        with self._lock:
            fresh = False
            if key in self._used:
                fd, users = self._used[key]
            else:
                users, idle = 0, self._idle.pop(key, None)
                fresh = idle is None
                fd = self._open(path) if idle is None else idle
            self._used[key] = fd, users + 1
            return fd, fresh

    def _open(self, path: str) -> int:
        """Open a file; where the process may open no more, close idle ones first."""
        self._shrink(capacity() - 1)
        while True:
            try:
                return os.open(path, OPEN_FLAGS)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._idle:
                    raise
                self._shrink(len(self._idle) // 2)

    def _shrink(self, most: int) -> None:
        """Close idle files until no more than so many are open, or all that are open are in use."""
        while self._idle and len(self._idle) + len(self._used) > most:
            os.close(self._idle.popitem(last=False)[1])

    def give_back(self, key: object) -> None:
        """Count a descriptor as used by one fewer."""
        with self._lock:
            fd, users = self._used.pop(key)
            if users > 1:
                self._used[key] = fd, users - 1
            else:
                self._idle[key] = fd

    def close(self, key: object) -> None:
        """Close a file that is no longer used, if it is open."""
        with self._lock:
            fd = self._idle.pop(key, None)
        if fd is not None:
            os.close(fd)


OPEN_FILES = OpenFiles()
"""The open files of this process."""

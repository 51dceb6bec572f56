"""Local files that are open, a bounded number at a time: checkpoints of a thousand shards meet limits of 256 open files."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

MOST, LEAST, SPARE = 512, 4, 64
"""How many files to hold open: half of what the system allows beyond those that the rest of the process may want, within bounds."""

FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | os.O_NONBLOCK  # without the last, opening a fifo would wait for ever


def capacity() -> int:
    """How many files may be held open now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else max(LEAST, min(MOST, (soft - SPARE) // 2))


class OpenFiles:
    """Descriptors by path, shared by threads: those used longest ago are closed when there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[object, int] = OrderedDict()
        self._used: dict[object, tuple[int, int]] = {}

    @contextmanager
    def descriptor(self, key: object, path: str) -> Iterator[tuple[int, bool]]:
        """A descriptor of the file at ``path``, and whether it was opened just now. It stays open while it is used here.

        Raises:
            OSError: it cannot be opened.
        """
        fd, fresh = self._take(key, path)
        try:
            yield fd, fresh
        finally:
            self._give_back(key)

    def _take(self, key: object, path: str) -> tuple[int, bool]:
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
        self._shrink(capacity() - 1)
        while True:
            try:
                return os.open(path, FLAGS)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._idle:
                    raise
                self._shrink(len(self._idle) // 2)

    def _shrink(self, most: int) -> None:
        while self._idle and len(self._idle) + len(self._used) > most:
            os.close(self._idle.popitem(last=False)[1])

    def _give_back(self, key: object) -> None:
        with self._lock:
            fd, users = self._used.pop(key)
            if users > 1:
                self._used[key] = fd, users - 1
            else:
                self._idle[key] = fd

    def close(self, key: object) -> None:
        """Close a file that nobody uses any more, if it is open."""
        with self._lock:
            fd = self._idle.pop(key, None)
        if fd is not None:
            os.close(fd)


OPEN = OpenFiles()
"""Those of this process."""

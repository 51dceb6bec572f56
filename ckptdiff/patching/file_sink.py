"""Tensors written into files as they are built."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptdiff.errors import OutputError
from ckptdiff.format.dtypes import Bytes
from ckptdiff.patching.recipes import RebuildJob


class FileSink:
    """A :data:`~ckptdiff.patching.build.Sink` that writes tensors into files; ``places``: path and offset of each tensor.

    Each thread has one file open, so that a target of a hundred thousand shards needs no more.
    """

    def __init__(self, places: Sequence[tuple[Path, int]]) -> None:
        self._places, self._open, self._lock = places, dict[int, tuple[Path, int]](), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _sink_elsewhere, (self._places,)

    def __call__(self, job: RebuildJob, data: Bytes) -> None:
        path, offset = self._places[job.tensor]
        write_at(self._descriptor(path), data, offset + job.start)

    def _descriptor(self, path: Path) -> int:
        """A descriptor of a file for this thread."""
        thread = threading.get_ident()
        known, fd = self._open.get(thread, (None, -1))
        if known is not path:  # places in one file share its path
            fresh = os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
            with self._lock:
                self._open[thread] = path, fresh
            if known is not None:
                os.close(fd)
            fd = fresh
        return fd

    def close(self) -> None:
        """Close all files, once no thread writes any more."""
        while self._open:
            os.close(self._open.popitem()[1][1])


def _sink_elsewhere(places: Sequence[tuple[Path, int]]) -> FileSink:
    """A sink in another process; raises OutputError unless it sees the first file."""
    if places and not places[0][0].is_file():
        raise OutputError(f"{places[0][0]}: is not there")
    return FileSink(places)


def write_at(fd: int, data: Bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count

"""Tensors written into files, and into objects of a store, as they are built."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptdiff.errors import OutputError
from ckptdiff.format.dtypes import Bytes
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_upload import StoreWriter
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
        fd, offset = self.place(job)
        write_at(fd, data, offset)

    def path(self, job: RebuildJob) -> Path:
        """The file that a range lies in: for all tensors of one file the same object."""
        return self._places[job.tensor][0]

    def place(self, job: RebuildJob) -> tuple[int, int]:
        """A descriptor, which is this thread's until it writes into another file, and where in the file a range lies."""
        path, offset = self._places[job.tensor]
        return self._descriptor(path), offset + job.start

    def many(self, jobs: Sequence[RebuildJob], data: Bytes) -> list[None]:
        """Take several ranges, whose bytes lie one behind the other; those that do so in a file, too, are written at once."""
        filled = begun = 0
        for k, job in enumerate(jobs):
            filled += job.nbytes
            path, offset = self._places[job.tensor]
            following = self._places[jobs[k + 1].tensor] if k + 1 < len(jobs) else None
            if following is None or following[0] is not path or following[1] + jobs[k + 1].start != offset + job.stop:
                write_at(self._descriptor(path), data[begun:filled], offset + job.stop - (filled - begun))
                begun = filled
        return [None] * len(jobs)

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


class ObjectSink:
    """A :data:`~ckptdiff.patching.build.Sink` that writes tensors into objects, each of which is sent in parts while it is built.

    Args:
        heads: path, first bytes and size of each object.
        places: number of the object, and offset in it, of each tensor, in the order of both.
    """

    def __init__(self, heads: Sequence[tuple[StorePath, bytes, int]], places: Sequence[tuple[int, int]]) -> None:
        self._heads, self._places, self._lock = heads, places, threading.Lock()
        self._left = Counter(number for number, _ in places)
        self._writers = dict[int, StoreWriter]()

    def __call__(self, job: RebuildJob, data: Bytes) -> None:
        number, offset = self._places[job.tensor]
        self._writer(number).write_at(offset + job.start, data)

    def _writer(self, number: int) -> StoreWriter:
        with self._lock:
            if number not in self._writers:
                path, head, size = self._heads[number]
                self._writers[number] = StoreWriter(path, size)
                self._writers[number].write(head)
            return self._writers[number]

    def ended(self, job: RebuildJob) -> None:
        """Take note that a job is done, and its tensor right; an object whose last tensor that is, is made."""
        number, _ = self._places[job.tensor]
        self._left[number] -= job.last
        if not self._left[number]:
            self._make(number)

    def _make(self, number: int) -> None:
        self._writer(number).close()
        del self._writers[number]

    def finish(self) -> None:
        """Make the objects without tensors."""
        for number in range(len(self._heads)):
            if number not in self._left:
                self._make(number)

    def close(self) -> None:
        """Abort what is not made."""
        while self._writers:
            self._writers.popitem()[1].abort()


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

"""Positioned reads of files, on the disk and elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ckptdiff.errors import CheckpointError
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.open_files import OPEN


class ByteSource(Protocol):
    """What the core needs of a file: its size, and bytes at a position."""

    name: str
    size: int

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises CheckpointError if they are not all there."""


class WeightSource(ByteSource, Protocol):
    """A :class:`ByteSource` with the bytes of a safetensors file, on the disk or in memory."""

    path: Path

    def check_unchanged(self) -> None: ...

    def close(self) -> None: ...


def read_bytes(source: ByteSource, offset: int, size: int) -> bytes:
    """``size`` bytes at ``offset``; raises CheckpointError if they are not all there."""
    out = bytearray(size)
    source.readinto(offset, memoryview(out))
    return bytes(out)


class LocalFile:
    """A :class:`ByteSource` over a local file. Reads are positioned, so threads may share it.

    It need not stay open between reads (:mod:`ckptdiff.io.open_files`); a file that is another one when it is opened again is an error.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        self._where = os.path.abspath(path)
        self._stamp: tuple[int, int] | None = None
        try:
            with self._descriptor() as fd:
                self.size = os.fstat(fd).st_size
        except CheckpointError:
            self.close()
            raise

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        with ExitStack() as stack:
            try:
                fd, fresh = stack.enter_context(OPEN.descriptor(self, self._where))
            except OSError as error:
                raise CheckpointError(f"{self.name}: cannot be opened: {error.strerror}{if_gone(self.path)}") from None
            if fresh:
                self._check(fd)
            yield fd

    def _check(self, fd: int) -> None:
        """Raise CheckpointError if this is not a regular file, or not the one of before as it was."""
        stat = os.fstat(fd)
        if not S_ISREG(stat.st_mode):
            raise CheckpointError(f"{self.name}: not a regular file")
        stamp = stat.st_size, stat.st_mtime_ns  # inodes are not kept by every file system in user space
        if self._stamp is None:
            self._stamp = stamp
        elif stamp != self._stamp:
            raise CheckpointError(f"{self.name}: was changed by another program while it was read: run again")

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises CheckpointError if they are not all there, or the file cannot be read."""
        view, done = memoryview(out), 0
        with self._descriptor() as fd:
            while done < len(view):
                try:
                    count = os.preadv(fd, [view[done:]], offset + done)
                except OSError as error:
                    raise CheckpointError(f"{self.name}: cannot be read at byte {offset + done}: {error.strerror}") from None
                if count == 0:
                    raise CheckpointError(
                        f"{self.name}: ends at byte {offset + done}, expected {offset + len(view)} or more: truncated? fetch it again"
                    )
                done += count

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was written to since it was opened."""
        with self._descriptor() as fd:
            self._check(fd)

    def close(self) -> None:
        """Let it go; a later read would open it again."""
        OPEN.close(self)

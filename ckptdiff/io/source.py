"""Files that are read at given positions, on the disk and elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from ckptdiff.errors import CheckpointError
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.open_files import OPEN_FILES
from ckptdiff.io.store_path import StorePath


class ByteSource(Protocol):
    """What the core needs of a file: its size, and the bytes at a position."""

    name: str
    """What messages call it."""
    size: int
    """Bytes."""

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises CheckpointError if the file ends before."""


class WeightSource(ByteSource, Protocol):
    """A :class:`ByteSource` of a safetensors file, on the disk, in a store or in memory."""

    @property
    def path(self) -> Path | StorePath:
        """Where it lies."""

    def view(self, offset: int, size: int) -> Any:
        """Memory at ``offset``, without a copy, if the file is in memory; None if it must be read."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was written to since it was opened."""

    def close(self) -> None:
        """Release what reading needs."""


def read_bytes(source: ByteSource, offset: int, size: int) -> bytes:
    """Read ``size`` bytes at ``offset``; raises CheckpointError if the file ends before."""
    out = bytearray(size)
    source.readinto(offset, memoryview(out))
    return bytes(out)


def chunks(source: ByteSource, size: int) -> Iterator[bytes]:
    """All bytes of a file, in pieces of ``size``; raises CheckpointError as :func:`read_bytes`."""
    for offset in range(0, source.size, size):
        yield read_bytes(source, offset, min(size, source.size - offset))


class LocalFile:
    """A local file, which threads may share.

    It may be closed between reads (:mod:`ckptdiff.io.open_files`). If it has changed when it is opened again, that is an error. Pickled,
    it is its path, size and a digest of a few windows: where it is unpickled, the same file must be there.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        self._where = os.path.abspath(path)
        self._stamp: tuple[int, int] | None = None
        self._sample: bytes | None = None
        try:
            self.size = os.fstat(self._take()).st_size
            OPEN_FILES.give_back(self)
        except CheckpointError:
            self.close()
            raise

    def _take(self) -> int:
        """A descriptor of the file, to be given back; raises CheckpointError if it cannot be opened, or has changed."""
        try:
            fd, fresh = OPEN_FILES.take(self, self._where)
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be opened: {error.strerror}{if_gone(self.path)}") from None
        if fresh:
            try:
                self._check(fd)
            except BaseException:
                OPEN_FILES.give_back(self)
                raise
        return fd

    def _check(self, fd: int) -> None:
        """Raise CheckpointError if this is not a regular file, or has changed since it was first opened."""
        stat = os.fstat(fd)
        if not S_ISREG(stat.st_mode):
            raise CheckpointError(f"{self.name}: not a regular file")
        stamp = stat.st_size, stat.st_mtime_ns  # not the inode, which some file systems in user space do not keep
        if self._stamp is None:
            self._stamp = stamp
        elif stamp != self._stamp:
            raise CheckpointError(f"{self.name}: was changed by another program while it was read: run again")

    @property
    def sample(self) -> bytes:
        """A digest of the file's first, middle and last bytes, by which another process tells whether it sees this file."""
        if self._sample is None:
            size = min(SAMPLED, self.size)
            starts = (0, (self.size - size) // 2, self.size - size)
            self._sample = xxhash.xxh3_128_digest(b"".join(read_bytes(self, start, size) for start in starts))
        return self._sample

    def __reduce__(self) -> tuple[Any, ...]:
        return same_file, (self._where, self.name, self.size, self.sample)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """A descriptor of the file, which others may use too, for a kernel that reads; raises CheckpointError as :meth:`readinto`."""
        fd = self._take()
        try:
            yield fd
        finally:
            OPEN_FILES.give_back(self)

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises CheckpointError if the file ends before, or cannot be read."""
        view, done, fd = memoryview(out), 0, self._take()
        try:
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
        finally:
            OPEN_FILES.give_back(self)

    @property
    def stamp(self) -> list[int]:
        """What shows whether the file is still the same: its size, and when its content and its inode changed. Raises CheckpointError."""
        try:
            stat = os.stat(self._where)
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read: {error.strerror}{if_gone(self.path)}") from None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def view(self, offset: int, size: int) -> None:
        """None: the file must be read."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was written to since it was opened."""
        fd = self._take()
        try:
            self._check(fd)
        finally:
            OPEN_FILES.give_back(self)

    def close(self) -> None:
        """Close the file; a later read would open it again."""
        OPEN_FILES.close(self)


SAMPLED = 1 << 12
"""Bytes of each window that is compared of a file that two processes open."""


def same_file(path: str, name: str, size: int, sample: bytes) -> LocalFile:
    """The file that another process has open.

    Raises:
        CheckpointError: this process finds none at its path, or another one.
    """
    file = LocalFile(Path(path), name)
    found = f"{file.size:,} bytes, expected {size:,}" if file.size != size else "other bytes" if file.sample != sample else ""
    if found:
        file.close()
        raise CheckpointError(f"{name}: another file than where the command runs: it has {found}")
    return file

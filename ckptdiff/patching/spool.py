"""The temporary file that holds encoded blocks, and what is known of the groups that lie in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ckptdiff.checkpoint.contents import TensorKey
from ckptdiff.io.parallel import READ_BYTES
from ckptdiff.io.store_spool import StoreSpool


class SpoolRange(NamedTuple):
    """Bytes of a spool."""

    start: int
    size: int


@dataclass(slots=True)
class StoredGroup:
    """A group whose blocks are in the spool."""

    first: int
    stop: int
    """Its units."""
    place: SpoolRange | None
    """Where its blocks are; None once they are dropped, as nothing of the tensor has changed."""
    sizes: list[int]
    """Size of each encoded block in bytes."""
    leaves: list[bytes]
    base_leaves: list[bytes]
    changed: int
    """As of :class:`~ckptdiff.patching.encode.EncodedGroup`."""


@dataclass(slots=True)
class StoredGroups:
    """Groups of a tensor that were stored together, which settles its codec."""

    target: TensorKey
    codec: str
    stands_alone: bool
    """Whether the tensor is stored without a base."""
    groups: list[StoredGroup]


def merged(ranges: Iterable[SpoolRange]) -> list[SpoolRange]:
    """The same bytes in as few ranges as possible."""
    found, start, end = list[SpoolRange](), 0, 0
    for part in ranges:
        if part.start != end:
            if end > start:
                found.append(SpoolRange(start, end - start))
            start = part.start
        end = part.start + part.size
    if end > start:
        found.append(SpoolRange(start, end - start))
    return found


def open_spool(path: Path) -> BinaryIO:
    """Open the file of a spool, or make it; raises OSError."""
    return open(path, "r+b" if path.exists() else "x+b")


class Spool:
    """A temporary file of encoded blocks, and where its end is. What is in the file stays before them."""

    def __init__(self, file: BinaryIO | StoreSpool) -> None:
        self._file, self._end = file, file.seek(0, os.SEEK_END)
        self._flushed = 0

    def append(self, blocks: Sequence[bytes]) -> SpoolRange:
        """Write blocks behind all others."""
        start = self._end
        for block in filter(None, blocks):
            self._file.write(block)
            self._end += len(block)
        return SpoolRange(start, self._end - start)

    def drop_last(self, size: int) -> bool:
        """Forget the last bytes, unless they are flushed, as a log may name them; returns whether they are forgotten."""
        if self._end - size < self._flushed:
            return False
        self.cut(self._end - size)
        return True

    def cut(self, end: int) -> None:
        """Forget all behind a byte."""
        if end != self._end:
            self._end = end
            self._file.seek(end)
            self._file.truncate()

    def flush(self) -> None:
        """Flush all blocks to the disk; raises OSError. A spool in a store is not logged, and never flushed."""
        assert not isinstance(self._file, StoreSpool)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._flushed = self._end

    def read(self, ranges: Sequence[SpoolRange]) -> Iterator[bytes]:
        """The bytes of some ranges, piece by piece."""
        for part in ranges:
            self._file.seek(part.start)
            left = part.size
            while left:
                piece = self._file.read(min(left, READ_BYTES))
                if not piece:
                    raise OSError(errno.EIO, "the temporary file of payloads ends too soon")
                left -= len(piece)
                yield piece
        self._file.seek(self._end)

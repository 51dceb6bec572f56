"""Objects of a store, read by ranges: small ones where little is asked for here and there, chunks ahead of what is read on and on."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import numpy.typing as npt

from ckptdiff.errors import CheckpointError
from ckptdiff.io.range_cache import CHUNK, RANGE_CACHE
from ckptdiff.io.store_path import StorePath

HEAD = 1 << 17
"""Bytes at the beginning of an object that the first read fetches: most headers lie in them whole."""
SMALL = 1 << 18
"""Fewer bytes than these are fetched alone, unless they lie so near to what was read last."""
AHEAD = 4
"""Chunks that are fetched ahead."""
BEHIND = 6
"""How many chunks behind the last read one in turn may lie, at most: threads read a few blocks each, and those that hash a file lag
behind. What lies ahead, unless the chunk before it is here, is read before its turn, and again when that comes."""
_numbers = itertools.count()


class StoreFile:
    """A :class:`~ckptdiff.io.source.WeightSource` over an object, which threads may share. No copy of it is made on this machine."""

    def __init__(self, path: StorePath) -> None:
        self.path, self.name, self._number = path, str(path), next(_numbers)
        found = path.stored or path.stat()
        if found is None:
            raise CheckpointError(f"{self.name}: no such object: check the URL, or fetch what is missing")
        self._stored, self.size = found, found.size
        self._head = b""
        self._end, self._chunk, self._run = -SMALL, -BEHIND - 1, 0

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``.

        Raises:
            CheckpointError: the object ends before. StoreError: it cannot be read.
        """
        view = memoryview(out).cast("B")
        stop = offset + len(view)
        if stop > self.size:
            raise CheckpointError(f"{self.name}: ends at byte {self.size}, expected {stop} or more: truncated? fetch it again")
        if not len(view):
            return
        if stop <= min(HEAD, self.size) and self._chunk < 0:
            view[:] = self._read_head()[offset:stop]
        elif self._is_alone(offset, stop):
            view[:] = self._read(offset, len(view))
        else:
            self._read_chunks(offset, view)
        self._end = stop

    def _read_head(self) -> bytes:
        """The beginning of the object, which is kept until the first chunk is read."""
        if not self._head:
            self._head = self._read(0, min(HEAD, self.size))
        return self._head

    def _is_alone(self, offset: int, stop: int) -> bool:
        """Whether a read is fetched by itself: it is small and far from the last one, or its chunks would have no room."""
        chunks = range(offset // CHUNK, (stop - 1) // CHUNK + 1)
        if all(RANGE_CACHE.has((self._number, chunk)) for chunk in chunks):
            return False
        is_header = offset == 8 and self._chunk < 0
        small = stop - offset < SMALL and abs(offset - self._end) >= SMALL
        return small or is_header or not RANGE_CACHE.has_room(self._number)

    def _read_chunks(self, offset: int, view: memoryview) -> None:
        done, streams = 0, self._is_in_turn(offset // CHUNK)
        while done < len(view):
            chunk, at = divmod(offset + done, CHUNK)
            data = self._fetched(chunk, len(view) >= SMALL, streams)
            piece = memoryview(data)[at : at + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)

    def _is_in_turn(self, chunk: int) -> bool:
        """Whether a read that begins in a chunk comes in turn."""
        step = chunk - self._chunk
        streams = -BEHIND <= step <= 1 or (step <= AHEAD and RANGE_CACHE.has((self._number, chunk - 1)))
        self._run = self._run + (step > 0) if streams else 0
        return streams

    def _fetched(self, chunk: int, is_large: bool, streams: bool) -> bytes:
        """A chunk; those behind it are begun to be fetched where the last reads, which were large, came in turn."""
        self._chunk, self._head = chunk, b""
        if self._run >= 1 and is_large:
            last = (self.size - 1) // CHUNK
            for later in range(chunk + 1, min(chunk + AHEAD, last) + 1):
                RANGE_CACHE.start((self._number, later), partial(self._read_chunk, later))
        return RANGE_CACHE.get((self._number, chunk), partial(self._read_chunk, chunk), streams)

    def _read_chunk(self, chunk: int) -> bytes:
        start = chunk * CHUNK
        return self._read(start, min(CHUNK, self.size - start))

    def _read(self, start: int, size: int) -> bytes:
        return self.path.read(start, size)

    def view(self, offset: int, size: int) -> None:
        """None: the object must be read."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the object was written again since it was opened."""
        if self.path.stat() != self._stored:
            raise CheckpointError(f"{self.name}: was changed by another program while it was read: run again")

    def forget(self) -> None:
        """Forget what was fetched of it; a later read fetches it again."""
        RANGE_CACHE.forget(self._number)
        self._head = b""

    def close(self) -> None:
        """As :meth:`forget`: nothing is held open."""
        self.forget()

"""A temporary file whose bytes lie in a store, in objects of a part each: this machine holds the last part, and a few that are read."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress

from ckptdiff.errors import StoreError
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_upload import PART

KEPT = 3
"""Parts that are held in memory: blocks on which a codec was tried lie before all others of their tensor, and are read between these."""


class StoreSpool:
    """What :class:`~ckptdiff.patching.pending_tensor.Spool` needs of a file: bytes are written at its end, and read anywhere.

    Args:
        folder: its objects lie below this name.
    """

    def __init__(self, folder: StorePath, part: int = PART) -> None:
        self._folder, self._part = folder, part
        self._tail, self._start, self._position = bytearray(), 0, 0
        self._loaded = OrderedDict[int, bytes]()
        self._read_to = -1  # where the last read ended

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset from the beginning or the end; returns it."""
        self._position = offset + (self._start + len(self._tail) if whence == os.SEEK_END else 0)
        return self._position

    def write(self, data: bytes) -> int:
        """Write at the end, where the position must be; raises StoreError."""
        self._tail += data
        self._position += len(data)
        while len(self._tail) >= self._part:
            part = bytes(self._tail[: self._part])
            self._folder.store.replace((self._folder / str(self._start // self._part)).key, part)
            self._keep(self._start // self._part, part)
            del self._tail[: self._part]
            self._start += self._part
        return len(data)

    def truncate(self) -> None:
        """Cut the file at the position."""
        while self._position < self._start:
            self._start -= self._part
            self._tail[:0] = self._part_of(self._start // self._part)
            self._loaded.clear()
        del self._tail[self._position - self._start :]

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes at the position, or fewer where a part ends."""
        if self._position >= self._start:
            data = bytes(self._tail[self._position - self._start :][:size])
        else:
            number, at = divmod(self._position, self._part)
            count = min(size, self._part - at)
            if number in self._loaded or self._read_to == self._position:  # what is read on and on is fetched part by part
                data = self._part_of(number)[at : at + count]
            else:
                data = (self._folder / str(number)).read(at, count)
        self._position += len(data)
        self._read_to = self._position
        return data

    def _part_of(self, number: int) -> bytes:
        data = self._loaded.get(number) or (self._folder / str(number)).read(0, self._part)
        self._keep(number, data)
        return data

    def _keep(self, number: int, data: bytes) -> None:
        """Hold a part in memory, and no longer the one that was read longest ago."""
        self._loaded[number] = data
        self._loaded.move_to_end(number)
        if len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)

    def close(self) -> None:
        """Delete its objects, as far as they can be reached."""
        with suppress(StoreError):
            for key in self._folder.store.listing(self._folder.key):
                self._folder.store.delete(key)

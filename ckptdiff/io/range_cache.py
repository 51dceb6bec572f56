"""Chunks of objects, fetched by a few threads, ahead of those that read them, and kept in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

CHUNK = 1 << 22
"""Bytes of an object that are fetched by one request where it is read on and on."""
FETCHERS = 8
"""Requests that are under way at once, at most."""
STREAMED, AHEAD, JUMPED = 14, 14, 12
"""Chunks that are kept: of what is read on and on; those that are fetched ahead, until they are read; and those that were read before their
turn, such as the blocks on which a codec is tried."""
MOST_STREAMS = 8
"""Objects that are read on and on at once. Of more, such as the patches of a long chain, the others are read without this cache."""

Key = tuple[int, int]
"""The number of a source, and of a chunk in it."""


class RangeCache:
    """Chunks by source and number, in three rooms, so that a fast stream pushes out neither what it will come to later, nor what is fetched
    ahead of a slow one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streamed: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._ahead: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._jumped: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, key: Key, fetch: Callable[[], bytes], streams: bool) -> bytes:
        """A chunk, fetched unless it is here or on its way; raises what ``fetch`` raises.

        Args:
            key: which chunk.
            fetch: fetches it.
            streams: whether what reads it reads on and on.
        """
        with self._lock:
            jumps = not streams and key not in self._streamed and key not in self._ahead
            chunks, most = (self._jumped, JUMPED) if jumps else (self._streamed, STREAMED)
            future = self._pop(key) or self._submit(fetch)
            _keep(chunks, key, future, most)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if chunks.get(key) is future:
                    del chunks[key]
            raise

    def start(self, key: Key, fetch: Callable[[], bytes]) -> None:
        """Begin to fetch a chunk that will be read soon."""
        with self._lock:
            if not any(key in chunks for chunks in self._rooms):
                _keep(self._ahead, key, self._submit(fetch), AHEAD)

    def has(self, key: Key) -> bool:
        """Whether a chunk is here or on its way."""
        with self._lock:
            return any(key in chunks for chunks in self._rooms)

    def has_room(self, source: int) -> bool:
        """Whether a source may stream: it does already, or few others do just now."""
        with self._lock:
            streaming = {number for number, _ in list(self._streamed)[-MOST_STREAMS:]}
        return source in streaming or len(streaming) < MOST_STREAMS

    def forget(self, source: int) -> None:
        """Drop the chunks of a source."""
        with self._lock:
            for chunks in self._rooms:
                for key in [key for key in chunks if key[0] == source]:
                    del chunks[key]

    @property
    def _rooms(self) -> tuple[OrderedDict[Key, Future[bytes]], ...]:
        return self._streamed, self._ahead, self._jumped

    def _pop(self, key: Key) -> Future[bytes] | None:
        """Take a chunk out of its room; None if it is in none."""
        return next((chunks.pop(key) for chunks in self._rooms if key in chunks), None)

    def _submit(self, fetch: Callable[[], bytes]) -> Future[bytes]:
        self._pool = self._pool or ThreadPoolExecutor(FETCHERS, thread_name_prefix="ckptdiff-store")
        return self._pool.submit(fetch)


def _keep(chunks: OrderedDict[Key, Future[bytes]], key: Key, future: Future[bytes], most: int) -> None:
    """Put a chunk into a room behind all others, and those out of it that were read longest ago."""
    chunks[key] = future
    while len(chunks) > most:
        chunks.popitem(last=False)


RANGE_CACHE = RangeCache()
"""The chunks of this process."""

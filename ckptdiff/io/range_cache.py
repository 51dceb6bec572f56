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
STREAMED, JUMPED = 24, 16
"""Chunks that are kept of what is read on and on, and of what was read before its turn, such as the blocks on which a codec is tried."""
MOST_STREAMS = 8
"""Objects that are read on and on at once. Of more, such as the patches of a long chain, the others are read without this cache."""

Key = tuple[int, int]
"""The number of a source, and of a chunk in it."""


class RangeCache:
    """Chunks by source and number. What streams has room of its own, so that it does not push out what it will come to later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streamed: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._jumped: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, key: Key, fetch: Callable[[], bytes], streams: bool) -> bytes:
        """A chunk, fetched unless it is here or on its way; raises what ``fetch`` raises.

        Args:
            key: which chunk.
            fetch: fetches it.
            streams: whether what reads it reads on and on.
        """
        future = self._future(key, fetch, streams)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                for chunks in (self._streamed, self._jumped):
                    if chunks.get(key) is future:
                        del chunks[key]
            raise

    def start(self, key: Key, fetch: Callable[[], bytes]) -> None:
        """Begin to fetch a chunk that will be read soon."""
        if self.peek(key) is None:
            self._future(key, fetch, True)

    def peek(self, key: Key) -> Future[bytes] | None:
        """A chunk that is here or on its way."""
        with self._lock:
            return self._streamed.get(key) or self._jumped.get(key)

    def has_room(self, source: int) -> bool:
        """Whether a source may stream: it does already, or few others do just now."""
        with self._lock:
            streaming = {number for number, _ in list(self._streamed)[-STREAMED // 2 :]}
        return source in streaming or len(streaming) < MOST_STREAMS

    def forget(self, source: int) -> None:
        """Drop the chunks of a source."""
        with self._lock:
            for chunks in (self._streamed, self._jumped):
                for key in [key for key in chunks if key[0] == source]:
                    del chunks[key]

    def _future(self, key: Key, fetch: Callable[[], bytes], streams: bool) -> Future[bytes]:
        with self._lock:
            streams = streams or key in self._streamed
            future = self._streamed.pop(key, None) or self._jumped.pop(key, None)
            if future is None:
                self._pool = self._pool or ThreadPoolExecutor(FETCHERS, thread_name_prefix="ckptdiff-store")
                future = self._pool.submit(fetch)
            chunks, most = (self._streamed, STREAMED) if streams else (self._jumped, JUMPED)
            chunks[key] = future
            while len(chunks) > most:
                chunks.popitem(last=False)
            return future


RANGE_CACHE = RangeCache()
"""The chunks of this process."""

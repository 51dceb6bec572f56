"""What this process has asked of stores: requests, and bytes both ways."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to stores and bytes, counted or predicted. What a store's library sends again after an error is not counted."""

    requests: int = 0
    read: int = 0
    """Bytes of objects that were read."""
    written: int = 0
    """Bytes of objects that were written."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests + other.requests, self.read + other.read, self.written + other.written)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests - other.requests, self.read - other.read, self.written - other.written)


class TrafficCounter:
    """The traffic of a process, which threads add to."""

    def __init__(self) -> None:
        self._lock, self._total = threading.Lock(), Traffic()

    def add(self, *, requests: int = 0, read: int = 0, written: int = 0) -> None:
        """Count some more."""
        with self._lock:
            self._total += Traffic(requests, read, written)

    def total(self) -> Traffic:
        """All of it, since the process began: the difference of two is what lies between them."""
        return self._total


TRAFFIC = TrafficCounter()
"""The traffic of this process."""

"""Python's garbage collector, which need not look while objects of many tensors are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Have Python look for no cycles meanwhile, if it does otherwise.

    What is made for each tensor is in no cycle, and is freed as ever once nothing refers to it. But for every few hundred new objects the
    collector looks through young ones, and at last through all of a process, which for tens of thousands of tensors takes as long as
    making them. If several threads do this at once, it looks again when the first of them is done.
    """
    if not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()

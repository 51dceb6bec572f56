"""Which memory is written to: threads wait for each other only where they write to the same bytes."""

from __future__ import annotations

import threading

import pytest

from ckptdiff.live import writing as writing_module
from ckptdiff.live.writing import MemoryRange, writing


def waits(first: list[MemoryRange], second: list[MemoryRange]) -> bool:
    """Whether a thread that writes to ``second`` waits for one that writes to ``first``."""
    entered, done = threading.Event(), threading.Event()

    def write() -> None:
        with writing(second):
            entered.set()
            done.wait(10)

    with writing(first):
        thread = threading.Thread(target=write)
        thread.start()
        waited = not entered.wait(0.2)
    assert entered.wait(10), "it waits although nobody writes any more"
    done.set()
    thread.join()
    return waited


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([("cpu", 100, 10)], True),
        ([("cpu", 109, 1)], True),
        ([("cpu", 0, 500)], True),
        ([("cpu", 110, 10)], False),
        ([("cpu", 90, 10)], False),
        ([("cuda:0", 100, 10)], False),
        ([("cpu", 104, 0)], False),
        ([("cpu", 300, 5), ("cpu", 40, 2), ("cpu", 205, 1)], True),
        ([], False),
    ],
)
def test_threads_wait_where_they_share_a_byte(second: list[MemoryRange], expected: bool) -> None:
    assert waits([("cpu", 200, 10), ("cpu", 100, 10)], second) == expected


def test_one_thread_does_not_wait_for_itself() -> None:
    with writing([("cpu", 0, 10)]), writing([("cpu", 5, 10)]):
        pass


def test_an_error_or_interrupt_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), writing([("cpu", 0, 10)]):
        raise KeyError

    class Interrupted(list):  # type: ignore[type-arg]
        def append(self, item: object) -> None:
            super().append(item)
            raise KeyboardInterrupt

    monkeypatch.setattr(writing_module, "_held", held := Interrupted())
    with pytest.raises(KeyboardInterrupt), writing([("cpu", 0, 10)]):
        pytest.fail("it was interrupted before")
    assert held == []

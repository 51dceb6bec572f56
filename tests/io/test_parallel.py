"""The thread pool: results in order, errors, bounds; and SHA-256 computed beside it."""

from __future__ import annotations

import hashlib
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ckptdiff.io.parallel import FileHasher, run_ordered, sha256_file
from ckptdiff.io.source import LocalFile


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_results_come_in_order(threads: int) -> None:
    assert list(run_ordered((partial(pow, k, 2) for k in range(100)), threads)) == [k * k for k in range(100)]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_an_error_starts_no_further_job(threads: int) -> None:
    started = []

    def job(k: int) -> int:
        started.append(k)
        return 10 // (5 - k)

    with pytest.raises(ZeroDivisionError):
        list(run_ordered((partial(job, k) for k in range(1000)), threads))
    assert 5 in started and len(started) <= 6 + 2 * threads


def test_what_began_has_ended_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a thread is started, of which the executor then knows nothing: its job has ended, and no other one begins."""
    start, begun, done = threading.Thread.start, list[int](), list[int]()

    def interrupted(self: threading.Thread) -> None:
        start(self)
        while not begun:
            time.sleep(0.001)
        raise KeyboardInterrupt

    def job(k: int) -> None:
        begun.append(k)
        time.sleep(0.2)
        done.append(k)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_ordered((partial(job, k) for k in range(9)), 3))
    assert begun == done == [0]
    time.sleep(0.3)
    assert begun == [0]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (5 << 20) + 3])
def test_sha256_whoever_advances(size: int, tmp_path: Path) -> None:
    """Eight threads with goals in any order, also past the end, and a last part that nobody asked for."""
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "f").write_bytes(data)
    file = LocalFile(tmp_path / "f")
    hasher = FileHasher(file)
    goals = np.random.default_rng(1).integers(0, size + 10, (8, 50))
    threads = [threading.Thread(target=lambda row=row: [hasher.advance(int(goal)) for goal in row]) for row in goals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hasher.hexdigest() == hashlib.sha256(data).hexdigest() == sha256_file(file)
    file.close()

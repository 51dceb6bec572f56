"""A publisher, its worker and a subscriber killed at random moments: all that is reported is exact, nothing has to be cleaned up.

``python -m tests.support.publishing_kills --kills 50 --steps 200`` takes minutes, and is run by hand.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import ckptdiff
from tests.support.publishing_kills import kills
from tests.support.states import check_chain, states


@pytest.mark.slow
def test_ten_kills() -> None:
    kills(10, 24, "")


def test_a_killed_worker_is_an_error_until_resumed(tmp_path: Path) -> None:
    run = states(4)
    with ckptdiff.Publisher(tmp_path / "chain", base=run[0], worker="process", threads=1) as publisher:
        publisher.publish(run[1], step=1).result()
        process = publisher._way._worker.process  # type: ignore[union-attr]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(2):
            with pytest.raises(ckptdiff.ResourceError, match=r"the publisher's process was killed by signal 9: call resume\(\)"):
                publisher.publish(run[2], step=2).result()
        assert publisher.resume().step == 1  # type: ignore[union-attr]
        publisher.publish(run[2], step=2).result()
    check_chain(tmp_path / "chain", {1: run[1], 2: run[2]}, run[0])

"""Runs of ``chain add`` that are killed at random moments, and two at once: what is listed is whole, and the same command completes it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.chain.history import read_history
from ckptdiff.io.store_urls import open_store
from tests.support.chains import LEFT_OUT, check_steps, training_run
from tests.support.kills import default_signals, wait_for

COUNT = 6


def command(chain: Path, run: list[Path], *options: str) -> list[str]:
    return [sys.executable, "-m", "ckptdiff", "chain", "add", str(chain), *map(str, run), "--keyframe-every", "2", *options]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)


def seen(chain: Path) -> int:
    """How many files of a chain there are, work included."""
    return sum(len(names) for _, _, names in os.walk(chain))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    kept = training_run(tmp_path / "kept", COUNT)
    shutil.copytree(tmp_path / "kept", tmp_path / "run")
    run, chain, rng = [tmp_path / "run" / path.name for path in kept], tmp_path / "a chain", random.Random(3)
    for number in range(4):
        child, before = start(command(chain, run, "--remove-originals")), seen(chain)
        wait_for(lambda before=before, child=child: seen(chain) > before + 3 or child.poll() is not None)  # type: ignore[misc]
        time.sleep(rng.random() * 0.25)
        signum = signal.SIGINT if number % 3 == 1 else signal.SIGKILL
        child.send_signal(signum)
        _, stderr = child.communicate(timeout=120)
        assert child.returncode in (0, 130 if signum == signal.SIGINT else -signum) and "Traceback" not in stderr, stderr
        history = read_history(open_store(chain))
        steps = [step.number for step in history.steps]
        assert steps == list(range(100, 100 * len(steps) + 1, 100)) and all(history.plan(at) for at in range(len(steps)))
        check_steps(chain, kept, tmp_path, steps[-1:])
        shutil.rmtree(tmp_path / f"restored-{steps[-1]}", ignore_errors=True) if steps else None
    ckptdiff.chain_add(chain, run, remove_originals=True)
    assert ckptdiff.chain_verify(chain).ok and not ckptdiff.chain_verify(chain).notes
    assert sorted(path.name for path in chain.iterdir()) == ["HEAD.json", "chain.json", "epochs", "keyframes", "steps"]
    assert all(os.listdir(path) == [LEFT_OUT] for path in run[1:])
    check_steps(chain, kept, tmp_path, range(100, 100 * COUNT, 100))


@pytest.mark.slow
def test_two_at_once(tmp_path: Path) -> None:
    """One of them is refused, or both end as if one had come after the other."""
    run, chain = training_run(tmp_path / "run", 4), tmp_path / "chain"
    children = [start(command(chain, run)) for _ in range(2)]
    ends = [(child.communicate(timeout=120)[1], child.returncode) for child in children]
    for stderr, code in ends:
        refused = (
            "another publisher has taken over",
            "another publisher takes over",
            "was made by another run",
            "is not a chain, and not empty",
        )
        assert code == 0 or (code == 3 and any(text in stderr for text in refused)), ends
    ckptdiff.chain_add(chain, run)
    assert ckptdiff.chain_verify(chain).ok
    check_steps(chain, run, tmp_path, [100, 300])

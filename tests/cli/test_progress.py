"""No silent wait: what is compiled is told once, and is no part of the time that a command took."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptdiff.cli import demo, progress
from ckptdiff.kernels import compiling

COMMAND = [sys.executable, "-m", "ckptdiff"]
LINE = "ckptdiff: compiling what {} needs on this machine, once (about {} s)\n"


def run(arguments: list[str], kernels: Path, **more: str) -> tuple[dict[str, float], str, float]:
    """What a command prints on its two streams, and its seconds of wall time."""
    began = time.perf_counter()
    environment = {**os.environ, "CKPTDIFF_CACHE_DIR": str(kernels), **more}
    done = subprocess.run([*COMMAND, *arguments, "--json"], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr, time.perf_counter() - began


def on_terminal(arguments: list[str], kernels: Path) -> str:
    """All that a command prints on a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "CKPTDIFF_CACHE_DIR": str(kernels), "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    text = b""
    try:
        while part := os.read(leader, 65536):
            text += part
    except OSError:  # the child has closed its end
        pass
    os.close(leader)
    assert child.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())


@pytest.mark.slow
def test_compiling_is_told_once_and_is_not_in_the_time(tmp_path: Path) -> None:
    """The numbers of kernels that :mod:`ckptdiff.cli.progress` expects are those of this pair, which has one dtype."""
    base, target = map(str, demo.write_pair(tmp_path))
    patch, first = str(tmp_path / "patch"), tmp_path / "first"
    for command, arguments in (
        ("make", [base, target, "-o", patch]),
        ("apply", [base, patch, "-o", str(tmp_path / "out")]),
        ("report", [base, target, "--rank", "sample"]),
    ):
        kernels = tmp_path / command
        expected = progress.KERNELS[command]
        found, told, wall = run([command, *arguments], kernels)
        assert told == LINE.format(command, round(expected * progress.SECONDS_A_KERNEL))
        assert len(list(kernels.iterdir())) == expected, command
        if "seconds" in found:
            assert found["seconds"] < wall / 2  # compiling is by far the most of it
    found, told, _ = run(["make", base, target, "-o", str(tmp_path / "again")], tmp_path / "make")
    assert told == ""
    shown = on_terminal(["report", base, target], first)
    steps = re.findall(r"compiling what report needs on this machine, once \(about 2 s\) \S+ (\d+) of about 8 kernels", shown)
    assert steps == sorted(steps, key=int) and set(steps) >= set("01234567")  # the bar moves with each kernel
    assert "counting" in shown


def test_a_stopwatch_stands_still_while_a_kernel_is_compiled() -> None:
    counts: list[int] = []
    watch, before = compiling.Stopwatch(), compiling.seconds()
    with compiling.told(lambda count, unkept: counts.append(count)):
        assert not compiling.active()
        compiling.begin()
        assert compiling.active()
        time.sleep(0.3)
        assert watch.seconds() < 0.2 and compiling.seconds() - before > 0.29
        compiling.end()
    assert not compiling.active() and watch.seconds() < 0.2 and counts[1] == counts[0] + 1
    compiling.begin()
    compiling.end()
    assert len(counts) == 2


def test_kernels_that_cannot_be_kept(tmp_path: Path) -> None:
    """Then "once" would be untrue."""
    base, target = map(str, demo.write_pair(tmp_path))
    file = tmp_path / "file"
    file.touch()
    own = {"XDG_CACHE_HOME": str(file), "NUMBA_CACHE_DIR": ""}
    _, told, _ = run(["report", base, target, "--rank", "none"], file, **own)
    why = f"{file} is not a folder; CKPTDIFF_CACHE_DIR names another folder"
    assert told == f"ckptdiff: compiling what report needs (about 2 s), for this run alone: {why}\n"

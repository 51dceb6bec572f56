"""Signals at random moments, at each rename, and while the command line starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.io.signals import held, raised
from tests.support.checkpoints import tree
from tests.support.kills import BEFORE, NOTHING_LEFT, default_signals, kills
from tests.support.small_pair import Pair

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True).returncode != 0,
    reason="needs strace, and leave to trace",
)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_kills_at_random_moments(place: str, tmp_path: Path) -> None:
    """``python -m tests.support.kills`` makes more of them."""
    folder = tmp_path / "place" if place == "disk" else Path("/dev/shm", f"ckptdiff-kills-{os.getpid()}")
    try:
        ends = kills(12, {"disk": 100, "memory": 200}[place], [folder])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert ends["130"] >= 3 and ends["-9"] >= 1, ends


def traced(log: Path, calls: str, inject: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command under strace, which lets system calls fail, or a signal come as they begin."""
    options = [option for text in inject for option in ("-e", f"inject={text}")]
    command = ["strace", "-f", "-o", log, "-e", f"trace={calls}", *options, sys.executable, "-m", "ckptdiff", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, preexec_fn=default_signals)


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("verb", ["make", "apply"])
def test_an_interrupt_at_each_rename(verb: str, exchange: bool, folders: Pair, tmp_path: Path) -> None:
    """At 687b727 the first left no output, and said that nothing unfinished was left behind. Without exchange the calls are a refused
    exchange, the old output away, the new one into its place, and the old one renamed before it is removed."""
    out = tmp_path / "place" / "out"
    shutil.copytree(folders.patch if verb == "make" else folders.target, out)
    config = "files/config.json.zst" if verb == "make" else "config.json"
    new = tree(out)
    without = [] if exchange else ["renameat2:error=EINVAL"]
    inputs = [folders.base, folders.target if verb == "make" else folders.patch]
    calls = ["renameat2"] if exchange else ["rename:when=1", "rename:when=2", "rename:when=3"]
    for call in calls:
        (out / config).write_text("old")
        name, _, when = call.partition(":")
        signalled = f"{name}:signal=SIGINT" + (f":{when}" if when else "")
        done = traced(
            tmp_path / "log", "rename,renameat,renameat2,link,linkat", [*without, signalled], verb, *inputs, "-o", out, "--overwrite"
        )
        log = (tmp_path / "log").read_text()
        assert len(re.findall(r"\brename(?:at2)?\(", log)) == (1 if exchange else 4), log
        assert done.returncode == 130 and done.stderr == f"ckptdiff: interrupted; {out} is written, and whole\n", done
        assert tree(out) == new and os.listdir(out.parent) == ["out"]


@needs_strace
@pytest.mark.slow
def test_a_kill_between_two_renames_is_reported_and_mended(folders: Pair, tmp_path: Path) -> None:
    out, old = tmp_path / "place" / "out", tree(folders.base)
    shutil.copytree(folders.base, out)
    command = ["apply", folders.base, folders.patch, "-o", out, "--overwrite"]
    done = traced(tmp_path / "log", "rename,renameat2", ["renameat2:error=EINVAL", "rename:signal=SIGKILL:error=EINTR:when=2"], *command)
    assert done.returncode == -signal.SIGKILL
    (work,) = out.parent.iterdir()
    assert tree(work / "old") == old and tree(work / "result") == tree(folders.target)
    told = subprocess.run([sys.executable, "-m", "ckptdiff", "compare", out, folders.base, "--json"], capture_output=True, text=True)
    text = f"no such file or folder; a command that was killed while it replaced {out} left the old one in {work / 'old'}: run it again,"
    assert told.returncode == 3 and text in json.loads(told.stdout)["error"]["message"]
    ckptdiff.apply(folders.base, folders.patch, out, overwrite=True)
    assert tree(out) == tree(folders.target) and os.listdir(out.parent) == ["out"]


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("signum", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_command_line_starts(signum: str, tmp_path: Path) -> None:
    """From the first line of ours on, at some of the files that are opened. At 687b727 a traceback of whatever was being imported."""
    traced(tmp_path / "log", "openat", [], "info", tmp_path / "none")
    opened = [line for line in (tmp_path / "log").read_text().splitlines() if " openat(" in line]
    first = next(k for k, line in enumerate(opened) if "/ckptdiff/io/__pycache__/signals" in line) + 1
    moments = range(first, len(opened), max((len(opened) - first) // 6, 1))
    assert len(opened) - first > 100
    for nth in moments:
        done = traced(tmp_path / "log", "openat", [f"openat:signal={signum}:when={nth}"], "info", tmp_path / "none")
        if done.returncode == -getattr(signal, signum) == -signal.SIGTERM:
            assert done.stderr == ""  # before the first line of ours has installed what handles it
        else:
            assert done.returncode == 130 and done.stderr in (BEFORE, NOTHING_LEFT), (nth, done)


def test_an_interrupt_within_an_exec_ends_with_130_too(tmp_path: Path) -> None:
    """Run by ``-m``, Python would end itself by SIGINT: so did one that came while dataclasses made a class, when it had long been told."""
    code = """
import sys
from ckptdiff import __main__
from ckptdiff.verbs import info as verb

def info(patch):
    exec("raise KeyboardInterrupt")

verb.info = info
sys.argv = ["ckptdiff", "info", "patch"]
__main__.main()
"""
    (tmp_path / "interrupted.py").write_text(code)
    where = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(Path(ckptdiff.__file__).parents[1])))}
    done = subprocess.run([sys.executable, "-m", "interrupted"], capture_output=True, text=True, env=where)
    assert (done.returncode, done.stderr) == (130, NOTHING_LEFT)


# --- who has the signals ---


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """As a shell starts a program, whatever started the tests."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_IGN)):
        signal.signal(signum, handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_signals_wait_until_a_step_is_whole() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), raised():
        with held():
            signal.raise_signal(signal.SIGTERM)
            with held():
                signal.raise_signal(signal.SIGINT)
            steps.append("whole")
        steps.append("never")
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored_and_other_threads_have_no_signals() -> None:
    with raised(), held():
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    done: list[bool] = []

    def run() -> None:
        with raised(), held():
            done.append(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("verb", ["make", "apply"])
def test_an_interrupt_after_the_rename_says_that_the_output_is_there(
    verb: str, folders: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one while the work folder is removed waits as well."""
    real = shutil.rmtree

    def rmtree(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(*arguments, **options)  # type: ignore[arg-type]

    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    target = folders.target if verb == "make" else folders.patch
    getattr(ckptdiff, verb)(folders.base, target, out)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(KeyboardInterrupt, match=r"out is written, and whole$"):
        getattr(ckptdiff, verb)(folders.base, target, out, overwrite=True)
    assert tree(out) == tree(folders.patch if verb == "make" else folders.target) and os.listdir(out.parent) == ["out"]

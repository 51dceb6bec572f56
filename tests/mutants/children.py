"""Mutants run in children: a fork for each, which may do what it likes but write elsewhere, take memory, or take time.

A case is what a mutant must do as the vectors say; the first that it does not do kills it, and so do a crash and an alarm.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

MEMORY = 6 << 30
"""Bytes of address space."""


class WritesElsewhere(RuntimeError):
    """A mutant would write outside its folder."""


def confine(folder: str) -> None:
    """From now on nothing in this process may be written outside ``folder``."""

    def refuse(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            full = os.path.abspath(os.fsdecode(path))
            if not (full + "/").startswith(folder + "/") and not full.startswith(("/dev/null", "/proc/")):
                raise WritesElsewhere(full)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            refuse(args[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
            if event != "shutil.rmtree" and not os.path.isabs(os.fsdecode(args[0])):
                return  # relative to a folder that was opened, by rmtree
            refuse(args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            refuse(args[1])

    sys.addaudithook(hook)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, if the machine has one."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ckptdiff-mutants-", dir=place)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Work = Callable[[Path, Callable[[Any], None]], None]


def in_child(work: Work, folder: Path, seconds: float, keep: Path | None = None) -> tuple[list[Any], str]:
    """Run ``work`` in a fork, with a folder of its own (``keep``, which stays).

    Returns:
        What it reported, and how it ended: "", "time-out", "crash: ..." or "signal N".
    """
    reading, writing = os.pipe()
    own = keep or folder / "child"
    own.mkdir(parents=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w", buffering=1) as pipe:

                def report(value: Any) -> None:
                    pipe.write(json.dumps(value) + "\n")

                tempfile.tempdir = str(own)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                confine(str(own))
                alarm(seconds)
                try:
                    work(own, report)
                    status = 0
                except BaseException as error:
                    report({"crash": f"{type(error).__name__}: {error}"[:200], "where": traceback.format_exc()[-600:]})
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = [json.loads(line) for line in pipe if line.endswith("\n")]
    ended = os.waitpid(pid, 0)[1]
    if not keep:
        shutil.rmtree(own, ignore_errors=True)
    if os.WIFSIGNALED(ended):
        number = os.WTERMSIG(ended)
        return lines, "time-out" if number == signal.SIGPROF else f"signal {number}"
    crash = next((line["crash"] for line in lines if isinstance(line, dict) and "crash" in line), "")
    return lines, f"crash: {crash}" if crash else ""


def alarm(seconds: float) -> None:
    """End this process by SIGPROF after so many seconds of processor time, however busy the machine is."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def first_failure(cases: Iterable[Any], judge: Callable[[Any], str], patience: Callable[[Any], float]) -> Callable[[Path, Any], None]:
    """Work for :func:`in_child`: report the name of each case before it is judged, and stop at the first that fails."""

    def work(folder: Path, report: Callable[[Any], None]) -> None:
        for case in cases:
            report({"case": case.name})
            alarm(patience(case))
            wrong = judge(case)
            if wrong:
                report({"wrong": wrong})
                return
        report({"survived": True})

    return work

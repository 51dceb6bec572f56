"""Three processes that follow the chain: from the start, joining late, and killed and started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STAYED, KILLED, JOINED = "stayed", "was killed and started again", "joined late"


class Followers:
    """The subscribers of a run of so many steps. One is killed after 2 fifths of them, with SIGKILL, and started again; one joins after 3.

    The chain has one step more than the trainer: its first one is the policy before training.
    """

    def __init__(self, chain: Path, base: Path, steps: int) -> None:
        self._arguments = [str(chain), str(base), str(steps + 1)]
        self._kill, self._join = 2 * steps // 5, 3 * steps // 5
        self._running = dict[str, subprocess.Popen[str]]()

    def __enter__(self) -> Followers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def _start(self, name: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("subscriber.py")), *self._arguments]
        self._running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})

    def at(self, step: int) -> None:
        """Do what comes after a step of the trainer."""
        if step == 1:
            self._start(STAYED)
            self._start(KILLED)
        if step == self._kill:
            self._running[KILLED].kill()
            self._running[KILLED].wait()
            print(f"     a subscriber is killed and started again after step {step}", flush=True)
            self._start(KILLED)
        if step == self._join:
            print(f"     a subscriber joins after step {step}", flush=True)
            self._start(JOINED)

    def ends(self) -> dict[str, str]:
        """The identities that they end with."""
        found = {}
        for name, process in self._running.items():
            lines = process.communicate(timeout=300)[0].splitlines()
            taken = [line for line in lines if line.startswith("step")]
            print(f"     the subscriber that {name} took {len(taken)} updates: {taken[0]} ... {taken[-1]}", flush=True)
            found[name] = lines[-1].removeprefix("identity ")
        return found

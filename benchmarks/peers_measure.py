"""Run commands and take their figures; compare what they rebuilt. Imports little: a child's peak RSS begins at its parent's."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers_known import CHILD, Command, Pair, Peer, Plan

CHUNK = 1 << 22
Figures = dict[str, float]


class StepError(Exception):
    """A peer's command failed."""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def waited(process: subprocess.Popen[bytes], limit: float) -> resource.struct_rusage:
    """Wait for a command, but for no more than ``limit`` seconds; what it and its children used."""
    timer = threading.Timer(limit, stop, (process,))
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        stop(process)
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def run(command: Command, limit: float, env: dict[str, str] | None = None, fine: tuple[int, ...] = (0,)) -> tuple[Figures, dict[str, Any]]:
    """Wall and CPU seconds and peak RSS in MB of one process and its children, and the JSON object it printed last.

    ``env`` is the whole environment, by default this one's; ``fine`` are the exit codes that are no failure.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True, env=env)
        usage = waited(process, limit)
        wall = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        printed = out.read()
        if process.returncode not in fine:
            said = (err.read() or printed).decode(errors="replace").strip().splitlines() or [""]
            cause = f"stopped after {limit:.0f} s" if wall >= limit else said[-1].strip()[:200] or f"exit {process.returncode}"
            label = " ".join(command[2:4]) if command[1] == CHILD else f"{Path(command[0]).name} {command[1]}"
            raise StepError(f"{label}: {cause}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss / 1024}, reported(printed)


def reported(printed: bytes) -> dict[str, Any]:
    """The JSON object on the last line of what a child script printed, if it is one."""
    last = printed.strip().splitlines()[-1:]
    try:
        found = json.loads(last[0]) if last else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def run_all(commands: list[Command], limit: float) -> Figures:
    """Commands one after the other: seconds added, the highest RSS; ``work`` is the codec's own time where it tells it."""
    total: Figures = {"wall": 0.0, "cpu": 0.0, "rss": 0.0}
    for command in commands:
        figures, told = run(command, limit)
        total = {"wall": total["wall"] + figures["wall"], "cpu": total["cpu"] + figures["cpu"], "rss": max(total["rss"], figures["rss"])}
        if "work" in told:
            total.update(work=told["work"], start=told["import"])
    return total


def size_of(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def same_file(one: Path, two: Path) -> bool:
    if one.stat().st_size != two.stat().st_size:
        return False
    with open(one, "rb") as a, open(two, "rb") as b:
        while chunk := a.read(CHUNK):
            if chunk != b.read(CHUNK):
                return False
    return True


def tensors(path: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """Dtype, shape, and place of each tensor of a safetensors file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(size))
    start, found = 8 + size, {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = (entry["dtype"], entry["shape"], start + begin, start + end)
    return found


def pieces(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(begin)
        for first in range(begin, end, CHUNK):
            yield file.read(min(CHUNK, end - first))


def exactness(pair: Pair, rebuilt: Path) -> str:
    """``file`` if it is the target's file; ``tensors`` if every tensor is, but not the file; else what is wrong."""
    if not rebuilt.is_file():
        return "INEXACT: it left no file"
    if same_file(pair.target, rebuilt):
        return "file"
    try:
        wanted, found = tensors(pair.target), tensors(rebuilt)
    except (ValueError, KeyError, TypeError):
        return "INEXACT: the file differs and is no safetensors file"
    lost, added = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    wrong = [name for name in wanted.keys() & found.keys() if not same_tensor(pair.target, wanted[name], rebuilt, found[name])]
    if not (lost or added or wrong):
        return "tensors"
    counts = [f"{len(names)} {what}" for names, what in ((wrong, "differ"), (lost, "missing"), (added, "too many")) if names]
    return f"INEXACT: of {len(wanted)} tensors {', '.join(counts)}"


def same_tensor(one: Path, a: tuple[str, list[int], int, int], two: Path, b: tuple[str, list[int], int, int]) -> bool:
    if a[:2] != b[:2] or a[3] - a[2] != b[3] - b[2]:
        return False
    return all(x == y for x, y in zip(pieces(one, *a[2:]), pieces(two, *b[2:]), strict=True))


@dataclass
class Row:
    """What came of one peer on one pair."""

    peer: Peer
    python: str = ""
    version: str = ""
    skipped: str = ""
    exact: str = ""
    samples: dict[str, list[Figures]] = field(default_factory=dict)  # by plan
    failures: dict[str, str] = field(default_factory=dict)  # by plan
    warm: dict[str, list[float]] = field(default_factory=dict)  # seconds of encode and decode in one process
    slow: bool = False

    def better(self) -> Figures:
        """Of each figure the median over the runs, and the lowest of the plans."""
        medians = [{key: statistics.median(s[key] for s in samples) for key in samples[0]} for samples in self.samples.values()]
        return {key: min(found[key] for found in medians) for key in (medians[0] if medians else {})}

    def status(self) -> str:
        """``file``, ``tensors``, ``INEXACT: ...``, ``failed: ...`` or ``skipped: ...``."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        failed = "; ".join(f"{name} {why}".strip() for name, why in self.failures.items())
        return self.exact if self.samples else f"failed: {failed}"

    def sizes_vary(self) -> bool:
        """Whether a patch was larger in one run than in another: no peer does that, unless it was changed meanwhile."""
        return any(len({s.get("bytes") for s in samples}) > 1 for samples in self.samples.values())

    def judge(self, exact: str) -> None:
        """Keep the worst verdict of all runs."""
        order = ("", "file", "tensors")
        worse = exact not in order or (self.exact in order and order.index(exact) > order.index(self.exact))
        self.exact = exact if worse else self.exact

    def drop_first(self) -> None:
        """Forget the warm-up, where there is more."""
        self.samples = {name: samples[1:] or samples for name, samples in self.samples.items()}


def sample(plan: Plan, limit: float) -> Figures:
    """One make and one apply of one plan."""
    found: Figures = {}
    for verb, commands in (("make", plan.make), ("apply", plan.apply)):
        if commands:
            found.update({f"{verb} {key}": value for key, value in run_all(commands, limit).items()})
            if verb == "make":
                found["bytes"] = size_of(plan.patch)
    return found


def turn(row: Row, pair: Pair, folder: Path, limit: float, patience: float) -> None:
    """All plans of a peer once. A peer that needs longer than ``patience`` is not run again, nor a plan that failed."""
    started, work = time.perf_counter(), Path(tempfile.mkdtemp(dir=folder))
    try:
        for name, plan in row.peer.plans(row.peer, pair, work, row.python).items():
            if name in row.failures:
                continue
            try:
                found = sample(plan, limit)
                row.judge(exactness(pair, plan.output))
                row.samples.setdefault(name, []).append(found)
            except (StepError, OSError) as error:
                row.failures[name] = str(error)
                row.samples.pop(name, None)
            for left in (plan.patch, plan.output):
                left.unlink(missing_ok=True)
        row.slow = time.perf_counter() - started > patience
    finally:
        shutil.rmtree(work)


def warm(row: Row, pair: Pair, runs: int, limit: float, patience: float) -> None:
    """Encode and decode of a library peer from warm memory; not where that is slow, and cold figures serve as well."""
    cold = row.better()
    if "make work" in cold and (cold["make work"] + cold["apply work"]) * (runs + 1) < patience / 4:
        try:
            row.warm = run([row.python, CHILD, row.peer.name, "warm", str(pair.base), str(pair.target), str(runs)], limit)[1]
        except StepError as error:
            row.failures["warm"] = str(error)


def race(rows: list[Row], pair: Pair, folder: Path, runs: int, limit: float, patience: float) -> None:
    """Peers take turns, so that a drifting machine hits all alike. The first turn warms up and is dropped where it is not the only one."""
    for _ in range(runs + 1):
        for row in rows:
            if not (row.skipped or row.slow) and (row.samples or not row.failures):
                turn(row, pair, folder, limit, patience)
    for row in rows:
        row.drop_first()

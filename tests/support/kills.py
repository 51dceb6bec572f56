"""Kills of make and apply at random moments: nothing half-written is ever seen, and the next run mends what is left.

By hand, 400 of them, on the disk and in memory: ``python -m tests.support.kills --count 400``. A failure prints its number, and
``--seed`` repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

import ckptdiff
from tests.support.checkpoints import bf16, perturb, tree, write_sharded

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
WORK = re.compile(r"\.out\.ckptdiff-[a-z0-9_]{8}")
NOTHING_LEFT = "ckptdiff: interrupted; nothing unfinished was left behind\n"
BEFORE = "ckptdiff: interrupted\n"


def sizes(path: Path) -> dict[str, int]:
    """What a reader sees of a file or folder by its path: names and sizes."""
    if path.is_file():
        return {".": path.stat().st_size}
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if not file.is_dir()}


@dataclass
class Poller:
    """A thread that looks at a path all the time, and keeps what it should never have seen."""

    path: Path
    whole: list[dict[str, int]]
    may_be_absent: bool
    seen: list[str] = field(default_factory=list)
    looks: int = 0

    def __enter__(self) -> Poller:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.looks += 1
            try:
                before = self.path.stat().st_ino
            except FileNotFoundError:
                if not self.may_be_absent:
                    self.seen.append("absent")
                continue
            try:
                found: object = sizes(self.path)
            except FileNotFoundError as error:
                found = str(error)
            same = self.path.exists() and self.path.stat().st_ino == before  # else it was exchanged while it was listed
            if same and found not in self.whole:
                self.seen.append(f"half: {found}")
            time.sleep(0.0002)


@dataclass
class Bench:
    """A base, an old and a new target of other shards, and the patches to them; trees and sizes of what make and apply give."""

    folder: Path
    trees: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    sizes: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        base = {f"layer.{k}": bf16(rng.normal(0, 0.02, (256, 1024))) for k in range(12)}
        write_sharded(self.folder / "base", {"model.safetensors": base}, index=None)
        for name, shards in (("old", 3), ("new", 2)):
            moved = {key: perturb(rng, value, 0.05) for key, value in base.items()}
            parts = [dict(list(moved.items())[k::shards]) for k in range(shards)]
            files = {f"model-{k + 1:05}-of-{shards:05}.safetensors": part for k, part in enumerate(parts)}
            write_sharded(self.folder / name, files)
        for name in ("base", "old", "new"):
            (self.folder / name / "config.json").write_text(json.dumps({"name": name}))
        for name in ("old", "new"):
            ckptdiff.make(self.folder / "base", self.folder / name, self.folder / f"make-{name}")
            ckptdiff.apply(self.folder / "base", self.folder / f"make-{name}", self.folder / f"apply-{name}")
            for verb in ("make", "apply"):
                self.trees[verb, name] = tree(self.folder / f"{verb}-{name}")
                self.sizes[verb, name] = sizes(self.folder / f"{verb}-{name}")

    def inputs(self, verb: str) -> list[str]:
        return [str(self.folder / "base"), str(self.folder / {"make": "new", "apply": "make-new"}[verb])]

    def command(self, verb: str, out: Path, overwrite: bool) -> list[str]:
        return [sys.executable, "-m", "ckptdiff", verb, *self.inputs(verb), "-o", str(out), *(["--overwrite"] if overwrite else [])]

    def run(self, verb: str, out: Path) -> None:
        """The command again, in this process, which has compiled its kernels."""
        {"make": ckptdiff.make, "apply": ckptdiff.apply}[verb](*self.inputs(verb), out, overwrite=out.exists())

    def prepare(self, verb: str, place: Path, overwrite: bool) -> Path:
        """An output in an empty folder: absent, or the old one."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if overwrite:
            shutil.copytree(self.folder / f"{verb}-old", place / "out")
        return place / "out"


def default_signals() -> None:
    """In a child: a shell that runs the tests with & has it ignore SIGINT."""
    for signum in SIGNALS[1:]:
        signal.signal(signum, signal.SIG_DFL)


def kill(bench: Bench, place: Path, rng: random.Random, seconds: float) -> str:
    """One kill, and all that must hold after it; says what was killed when, and how it ended. Raises AssertionError."""
    verb, overwrite, signum = rng.choice(["make", "apply"]), rng.random() < 0.6, rng.choice(SIGNALS)
    writing = rng.random() < 0.6
    out = bench.prepare(verb, place, overwrite)
    whole = [bench.sizes[verb, name] for name in (("old", "new") if overwrite else ("new",))]
    with Poller(out, whole, may_be_absent=not overwrite) as poller:
        child = subprocess.Popen(
            bench.command(verb, out, overwrite), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
        )
        if writing:
            wait_for(lambda: any(WORK.fullmatch(name) for name in os.listdir(place)) or child.poll() is not None)
        time.sleep(rng.random() * (0.2 if writing else 1.2) * seconds)
        child.send_signal(signum)
        stderr = child.communicate(timeout=120)[1]
    what = f"{verb}{' --overwrite' if overwrite else ''} {signum.name} {'writing' if writing else 'anywhere'}: {child.returncode}"
    left = sorted(set(os.listdir(place)) - {"out"})
    check_end(bench, verb, out, overwrite, signum, child.returncode, stderr, left)
    assert not poller.seen, (what, poller.seen[:3])
    bench.run(verb, out)
    assert tree(out) == bench.trees[verb, "new"] and os.listdir(place) == ["out"], (what, os.listdir(place))
    return what


def wait_for(happened: Callable[[], bool]) -> None:
    """Poll for at most a minute."""
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.0005)


def check_end(bench: Bench, verb: str, out: Path, overwrite: bool, signum: int, code: int, stderr: str, left: list[str]) -> None:
    """The exit code, what was said, and what is there agree."""
    found = tree(out) if out.exists() else None
    new, old = bench.trees[verb, "new"], bench.trees[verb, "old"] if overwrite else None
    where = (verb, overwrite, signum, code, stderr, left)
    assert found in (new, old), where
    if signum == signal.SIGKILL:
        assert code in (-signal.SIGKILL, 0) and all(WORK.fullmatch(name) for name in left), where
        return
    assert not left, where
    if code == 0:  # it was over before the signal came
        assert found == new, where
    elif code == 130:
        written = f"ckptdiff: interrupted; {out} is written, and whole\n"
        assert stderr in (BEFORE, NOTHING_LEFT, written), where
        assert found == new or stderr != written, where
    else:  # while Python itself starts, before a line of ours is run
        assert found == old and "ckptdiff/" not in stderr, where
        assert (code, stderr) == (-signum, "") or (code == -signal.SIGINT and "KeyboardInterrupt" in stderr) or code == 1, where


def kills(count: int, seed: int, places: list[Path], say: Callable[[str], None] = lambda _: None) -> Counter[str]:
    """Kill ``count`` runs in turn in each of some folders that are ours; how they ended, by exit code."""
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ckptdiff-kills-") as folder:
        bench = Bench(Path(folder))
        out = bench.prepare("make", places[0], False)
        started = time.monotonic()
        subprocess.run(bench.command("make", out, False), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        for number in range(seed, seed + count):
            try:
                what = kill(bench, places[number % len(places)], random.Random(number), seconds)
            except AssertionError as error:
                raise AssertionError(f"kill {number}: {error}") from error
            ends[what.rpartition(" ")[2]] += 1
            say(f"{number}: {what}")
    return ends


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as disk, tempfile.TemporaryDirectory(prefix="kills-", dir="/dev/shm") as memory:
        places = [Path(disk, "place"), Path(memory, "place")]
        print(dict(kills(options.count, options.seed, places, partial(print, flush=True))))


if __name__ == "__main__":
    main()

"""Kills of make, apply and apply --in-place at random moments, each gone on with by the same command, until it is done: exact, and no unit
but those under way is done twice.

By hand, 50 kills on a sharded pair of 2 GB: ``python -m tests.support.resumed_kills --count 50 --size 2000``. A failure prints its number,
and ``--seed`` repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ckptdiff
from ckptdiff.io.in_place import is_begun
from ckptdiff.io.parallel import JOB_BYTES
from ckptdiff.io.unit_log import read_records
from tests.support.checkpoints import bf16, perturb, tree, write_sharded

START = """
import sys
from ckptdiff.io import unit_log
unit_log.UNIT_BYTES = int(sys.argv.pop(1))
from ckptdiff.__main__ import main
main()
"""
"""The command line with units of another size."""
ROWS, COLUMNS = 1024, 1024
"""Shape of most tensors; one in sixteen has eight times the rows."""


def write_pair(folder: Path, megabytes: int, shards: int = 3) -> None:
    """A base and a target of so many megabytes, in shards: most tensors changed a little, some not, one new."""
    rng = np.random.default_rng(0)
    base, target, size, number = dict[str, Any](), dict[str, Any](), 0, 0
    while size < megabytes * 1_000_000:
        shape = (ROWS * (8 if number % 16 == 3 else 1), COLUMNS)
        value = bf16(rng.normal(0, 0.02, shape))
        name = f"layer.{number:04}.weight"
        base[name] = value
        target[name] = value if number % 7 == 5 else perturb(rng, value, 0.05)
        size, number = size + 2 * shape[0] * shape[1], number + 1
    target[name] = bf16(rng.normal(0, 0.02, shape))
    for side, tensors in (("base", base), ("target", target)):
        parts = [dict(list(tensors.items())[k::shards]) for k in range(shards)]
        write_sharded(folder / side, {f"model-{k + 1:05}-of-{shards:05}.safetensors": part for k, part in enumerate(parts)})
        (folder / side / "config.json").write_text(json.dumps({"name": side}))


@dataclass
class Bench:
    """A pair in a folder, and its patch; ``unit``: bytes of a unit."""

    folder: Path
    megabytes: int
    unit: int
    threads: int = 2
    trees: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        write_pair(self.folder, self.megabytes)
        ckptdiff.make(self.folder / "base", self.folder / "target", self.folder / "patch")
        self.trees = {"make": tree(self.folder / "patch"), "apply": tree(self.folder / "target")}
        self.trees["in-place"] = self.trees["apply"]

    @property
    def most_under_way(self) -> int:
        """Units that may be under way: one a thread; or more where units are smaller than what threads are given ahead."""
        return max(self.threads, 1 + -(-2 * self.threads * JOB_BYTES // self.unit))

    def prepare(self, verb: str, place: Path) -> None:
        """An empty folder, with a base of its own to apply in place to."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if verb == "in-place":
            shutil.copytree(self.folder / "base", place / "out")

    def command(self, verb: str, place: Path) -> list[str]:
        """The command that writes ``out`` in a folder."""
        base, target, patch, out = (str(path) for path in (*(self.folder / name for name in ("base", "target", "patch")), place / "out"))
        rest = {"make": ["make", base, target, "-o", out], "apply": ["apply", base, patch, "-o", out]}
        rest["in-place"] = ["apply", out, patch, "--in-place"]
        return [sys.executable, "-c", START, str(self.unit), *rest[verb], "--threads", str(self.threads)]

    def start(self, verb: str, place: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(verb, place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def logs(place: Path) -> Iterator[Path]:
    """The logs of unfinished work beside the output, and in it."""
    for folder in [*place.glob(".out.ckptdiff-*"), place / "out" / ".ckptdiff-in-place"]:
        if (folder / "log").exists():
            yield folder / "log"


def units_under_way(place: Path) -> tuple[int, int]:
    """How many units were begun and are not done, which are all that is done twice; and how many are done."""
    begun, done = set[object](), set[object]()
    for log in logs(place):
        with open(log, "rb") as file:
            for record in read_records(file):
                begun |= {record.content["begin"]} if "begin" in record.content else set()
                done |= {record.content["done"]} if "done" in record.content else set()
    return len(begun - done), len(done)


def kill_and_go_on(bench: Bench, verb: str, place: Path, rng: random.Random, seconds: float, kills: int) -> list[str]:
    """Kill a command several times, then let it end; says what was done by each kill. Raises AssertionError."""
    bench.prepare(verb, place)
    said, before = [], 0
    for _ in range(kills):
        child = bench.start(verb, place)
        time.sleep(rng.random() * seconds)
        child.send_signal(signal.SIGKILL)
        stderr = child.communicate(timeout=600)[1]
        if child.returncode == 0 or "is already the target" in stderr:
            break
        assert child.returncode == -signal.SIGKILL, stderr
        twice, done = units_under_way(place)
        if verb == "in-place" and before and not is_begun(place / "out"):
            break  # the same
        assert twice <= bench.most_under_way and done >= before, (verb, twice, done, before)
        said.append(f"{done} done, {twice} under way")
        before = done
        if verb != "in-place" and (place / "out").exists():
            break  # it was killed while it cleaned up
    is_written = (place / "out").exists() and tree(place / "out") == bench.trees[verb]
    child = bench.start(verb, place)
    stderr = child.communicate(timeout=1200)[1]
    if is_written:
        assert child.returncode == 3 and ("exists" in stderr or "is already the target" in stderr), stderr
    else:
        assert child.returncode == 0 and (before == 0 or "going on after" in stderr), stderr
    assert tree(place / "out") == bench.trees[verb], verb
    assert [path.name for path in place.iterdir()] == ["out"]
    return said


def kills(bench: Bench, count: int, seed: int, place: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, int]:
    """Kill ``count`` runs in all, verb by verb; how many of each were killed, and how many had finished units by then."""
    seconds = dict[str, float]()
    for verb in ("make", "apply", "in-place"):
        bench.prepare(verb, place)
        started = time.monotonic()
        child = bench.start(verb, place)
        assert child.wait() == 0, child.communicate()
        seconds[verb] = time.monotonic() - started
    ends = dict[str, int]()
    number = seed
    while sum(value for key, value in ends.items() if "killed" in key) < count:
        rng = random.Random(number)
        verb = ("make", "apply", "in-place")[number % 3]
        try:
            said = kill_and_go_on(bench, verb, place, rng, seconds[verb], rng.randint(1, 4))
        except AssertionError as error:
            raise AssertionError(f"{number}: {error}") from error
        ends[f"{verb} killed"] = ends.get(f"{verb} killed", 0) + len(said)
        ends[f"{verb} with units"] = ends.get(f"{verb} with units", 0) + sum(not text.startswith("0 ") for text in said)
        say(f"{number}: {verb}: {'; '.join(said)}")
        number += 1
    return ends


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=2000, help="megabytes of the pair")
    parser.add_argument("--unit", type=int, default=1 << 26, help="bytes of a unit")
    parser.add_argument("--folder", help="where to put all files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resumed-kills-", dir=options.folder) as folder:
        bench = Bench(Path(folder), options.size, options.unit)
        print(kills(bench, options.count, options.seed, Path(folder, "place"), partial(print, flush=True)))


if __name__ == "__main__":
    main()

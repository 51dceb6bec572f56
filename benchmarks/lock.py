"""How long make and apply hold Python's lock, by block of 2 MiB and by tiny tensor: what limits how many cores help.

    python benchmarks/lock.py FOLDER [--mb 512] [--tensors 10000] [--rounds 3] [--program PATH]

makes two pairs of bf16 checkpoints of each kind in FOLDER, one twice as large as the other (2 % of the elements moved by an ulp), and runs
both verbs on two threads under ``py-spy record --gil``, which says how often a thread that holds the lock is seen. The difference between
the larger and the smaller pair is what the further blocks or tensors cost, without start-up; medians of rounds. A thread that holds the
lock and waits for a core is seen too: on a busy machine all of this is too much. Needs ``pip install py-spy``, and the right to trace.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from many_tensors import Tensors, pair, write

RATE = 1000
"""Samples a second."""
SIDE = 4096
"""Rows and columns of a matrix of 32 MiB: 16 blocks."""


def matrices(megabytes: int) -> tuple[Tensors, Tensors]:
    """A base and a target of large matrices."""
    rng, old, new = np.random.default_rng(0), Tensors(), Tensors()
    for k in range(megabytes * (1 << 20) // (2 * SIDE * SIDE)):
        old[f"layers.{k}.weight"] = rng.integers(0x3C00, 0x3E00, (SIDE, SIDE)).astype(np.uint16)
        new[f"layers.{k}.weight"] = old[f"layers.{k}.weight"] + (rng.random((SIDE, SIDE), np.float32) < 0.02)
    return old, new


def lock_seconds(command: list[str]) -> float:
    """Seconds for which a command's threads held the lock."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        record = ["py-spy", "record", "--gil", "--rate", str(RATE), "--format", "raw", "--output", file.name, "--", *command]
        subprocess.run(record, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return sum(int(line.rpartition(" ")[2]) for line in Path(file.name).read_text().splitlines()) / RATE


def verbs(folder: Path, program: list[str]) -> dict[str, float]:
    """Seconds of lock of each verb on a pair."""
    base, target, patch, out = (str(folder / name) for name in ("base", "target", "patch", "out"))
    for path in (patch, out):
        shutil.rmtree(path, ignore_errors=True)
    commands = {"make": ["make", base, target, "-o", patch], "apply": ["apply", base, patch, "-o", out]}
    return {verb: lock_seconds([*program, *command, "--threads", "2"]) for verb, command in commands.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=int, default=512, help="of the smaller pair of large matrices")
    parser.add_argument("--tensors", type=int, default=10_000, help="of the smaller pair of tiny tensors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", type=Path, default=Path(sys.executable).with_name("ckptdiff"), help="another ckptdiff to measure")
    options = parser.parse_args()
    program, rows = [sys.executable, str(options.program)], list[dict[str, object]]()
    for what, count in (("block", options.mb // 2), ("tensor", options.tensors)):
        folders = [options.folder / f"{what}s-{times * count}" for times in (1, 2)]
        for times, folder in enumerate(folders, 1):
            if not folder.exists():
                for side, tensors in zip(
                    ("base", "target"), matrices(2 * times * count) if what == "block" else pair(times * count, 8), strict=True
                ):
                    write(folder / side, tensors, 8)
        found = [[verbs(folder, program) for folder in folders] for _ in range(options.rounds)]
        for verb in ("make", "apply"):
            each = statistics.median(large[verb] - small[verb] for small, large in found) / count
            rows.append({"verb": verb, "by": what, "count": count, "lock_us": round(1e6 * each, 1)})
    print("| verb | microseconds of lock | a |\n|---|---|---|")
    for row in rows:
        print(f"| `{row['verb']}` | {row['lock_us']} | {row['by']} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

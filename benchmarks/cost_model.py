"""A model of what verbs cost: CPU seconds = a + b x tensors + c x blocks + bytes / rate, fitted, checked, and taken to large models.

    python benchmarks/cost_model.py FOLDER [--share 0.02] [--runs 3] [--lock] [--quick] [--verbs make,apply] [--json FILE]

makes pairs of bf16 checkpoints in FOLDER, of few and many, small and large tensors, where ``--share`` of the elements moved by 1 to 3 ulps;
runs each verb on each pair as a whole process and takes the least CPU seconds of ``--runs``; fits the four numbers of each verb by least
squares of relative errors, none of them below zero; and compares the fit with pairs that it has not seen. Rebuilt files are compared with
the target's. ``--lock`` also counts for how long the processes hold Python's lock, by py-spy (``pip install py-spy``), and fits that. The
last table is what the model says of wall time on more cores than were measured: the largest of CPU seconds by cores, the seconds of the
lock, and the SHA-256 of the largest file, which no second core can help with. It knows nothing of disks: files are in memory.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers_measure import run

from ckptdiff.format.digests import BLOCK
from ckptdiff.format.safetensors_library import write_tensors

MIB = 1 << 20
PROGRAM = str(Path(sys.executable).with_name("ckptdiff"))  # as installed: with -m it could be that of the current folder
SAMPLES = 1000
"""How often in a second py-spy looks."""


class Size(NamedTuple):
    """The size of a checkpoint."""

    tensors: int
    nbytes: int
    """Bytes of one tensor."""

    @property
    def blocks(self) -> int:
        return self.tensors * math.ceil(self.nbytes / BLOCK)

    @property
    def total(self) -> int:
        return self.tensors * self.nbytes

    def __str__(self) -> str:
        return f"{self.tensors:,} x {self.nbytes:,}"


FITTED = (Size(1, 128), Size(2_000, 128), Size(10_000, 128), Size(2_000, 64 << 10), Size(250, MIB), Size(64, 8 * MIB), Size(24, 32 * MIB))
CHECKED = (Size(5_000, 4 << 10), Size(400, MIB // 2), Size(10, 64 * MIB))

QUICK = (
    (Size(1, 128), Size(4_000, 128), Size(100, MIB), Size(2, 64 * MIB)),
    (Size(40, 2 * MIB),),
)
"""Fewer and smaller pairs, to be fitted and to be checked: with one run each, some minutes."""

MODELS = {
    "8 B (291 tensors, 16.1 GB, files of 5.0 GB)": (291, 16.1e9, 5.0e9),
    "70 B (723 tensors, 141 GB, files of 5.0 GB)": (723, 141e9, 5.0e9),
    "671 B (90,427 tensors, 689 GB, files of 4.3 GB)": (90_427, 689e9, 4.3e9),
}
CORES = (2, 16, 64)


def write_pair(folder: Path, size: Size, share: float) -> None:
    """A base and a target, the same every time."""
    rng = np.random.default_rng(size.tensors)
    sides: dict[str, dict[str, tuple[str, np.ndarray[Any, Any]]]] = {"base": {}, "target": {}}
    for k in range(size.tensors):
        old = ((rng.standard_normal(size.nbytes // 2, np.float32) * 0.02).view(np.uint32) >> 16).astype(np.uint16)
        moved = rng.random(len(old), np.float32) < share
        new = old.copy()
        new[moved] += rng.integers(1, 4, int(moved.sum())).astype(np.uint16)
        for side, units in (("base", old), ("target", new)):
            sides[side][f"model.layers.{k}.mlp.down_proj.weight"] = "BF16", units
    for side, tensors in sides.items():
        (folder / side).mkdir(parents=True)
        write_tensors(folder / side / "model.safetensors", tensors, {"format": "pt"})


def commands(folder: Path) -> dict[str, list[str]]:
    """The command of each verb."""
    base, target, patch, out = (str(folder / name) for name in ("base", "target", "patch", "out"))
    return {
        "make": ["make", base, target, "-o", patch, "--overwrite"],
        "info": ["info", patch],
        "verify": ["verify", patch, "--base", base],
        "apply": ["apply", base, patch, "-o", out, "--overwrite"],
        "report": ["report", base, target, "--rank", "none"],
    }


def lock_seconds(command: Sequence[str], scratch: Path) -> float:
    """For how long a process holds Python's lock after its imports, as py-spy samples it."""
    spy = ["py-spy", "record", "--gil", "--nonblocking", "-r", str(SAMPLES), "-f", "raw", "-o", str(scratch)]
    subprocess.run([*spy, "--", sys.executable, PROGRAM, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = (line.rsplit(" ", 1) for line in scratch.read_text().splitlines())
    # Samples without a frame of ours are the loading of libraries and threads at rest
    return sum(int(count) for stack, count in rows if "ckptdiff" in stack and "importlib" not in stack) / SAMPLES


def measured(folder: Path, size: Size, share: float, runs: int, lock: bool, verbs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The figures of each verb on a pair."""
    write_pair(folder, size, share)
    for verb, command in commands(folder).items():
        if verb not in verbs:
            continue
        run([PROGRAM, *command], 3600.0)  # compiles what is not compiled yet, and brings the files into memory
        figures = [run([PROGRAM, *command], 3600.0)[0] for _ in range(runs)]
        row = {"verb": verb, "tensors": size.tensors, "blocks": size.blocks, "bytes": size.total, "size": str(size)}
        row |= {"cpu": min(f["cpu"] for f in figures), "wall": min(f["wall"] for f in figures), "rss": max(f["rss"] for f in figures)}
        if lock:
            row["lock"] = min(lock_seconds(command, folder / "spy") for _ in range(runs))
        yield row
    if "apply" in verbs and not filecmp.cmp(folder / "target" / "model.safetensors", folder / "out" / "model.safetensors", shallow=False):
        raise SystemExit(f"{size}: not exact")
    shutil.rmtree(folder)


def terms(row: dict[str, Any]) -> list[float]:
    """What the four numbers are multiplied by."""
    return [1.0, float(row["tensors"]), float(row["blocks"]), float(row["bytes"])]


def fit(rows: Sequence[dict[str, Any]], what: str) -> list[float]:
    """The four numbers that fit best, none below zero: one that would be is left out."""
    matrix, values = np.array([terms(row) for row in rows]), np.array([max(row[what], 1e-3) for row in rows])
    kept = list(range(4))
    while True:
        found = np.linalg.lstsq(matrix[:, kept] / values[:, None], np.ones(len(values)), rcond=None)[0]
        if found.min() >= 0:
            break
        del kept[int(found.argmin())]
    numbers = [0.0] * 4
    for k, value in zip(kept, found.tolist(), strict=True):
        numbers[k] = value
    return numbers


def predicted(numbers: Sequence[float], row: dict[str, Any]) -> float:
    return sum(number * term for number, term in zip(numbers, terms(row), strict=True))


def sha256_rate() -> float:
    """Bytes that one core hashes in a second."""
    data, started = bytes(64 * MIB), time.perf_counter()
    hashlib.sha256(data).digest()
    return len(data) / (time.perf_counter() - started)


def print_fit(verbs: Sequence[str], fits: dict[str, dict[str, list[float]]], rows: Sequence[dict[str, Any]]) -> None:
    """The numbers of each verb, and how far they are from what was measured."""
    for what in next(iter(fits.values())):
        print(f"\n| {what} | a, s | b, µs a tensor | c, µs a block | rate, GB/s | fitted within | pairs not seen within |")
        print("|---|---|---|---|---|---|---|")
        for verb in verbs:
            a, b, c, d = fits[verb][what]
            mine = [row for row in rows if row["verb"] == verb]
            errors = [max(abs(predicted(fits[verb][what], row) / row[what] - 1) for row in mine if row["seen"] == seen) for seen in (1, 0)]
            rate = f"{1e-9 / d:.2f}" if d else "-"
            print(f"| {verb} | {a:.2f} | {1e6 * b:.0f} | {1e6 * c:.0f} | {rate} | {errors[0]:.0%} | {errors[1]:.0%} |")


def print_predictions(verbs: Sequence[str], fits: dict[str, dict[str, list[float]]], sha: float) -> None:
    """What the model says of large checkpoints."""
    print(f"\nSHA-256: {sha / 1e9:.2f} GB/s a core. Predicted, not measured: seconds of wall time, files in memory.\n")
    print("| model | verb | " + " | ".join(f"{cores} cores" for cores in CORES) + " |\n|---|---|" + "---|" * len(CORES))
    for model, (tensors, nbytes, largest) in MODELS.items():
        row = {"tensors": tensors, "blocks": nbytes / BLOCK + tensors, "bytes": nbytes}
        for verb in verbs:
            cpu, least = predicted(fits[verb]["cpu"], row), predicted(fits[verb].get("lock", [0.0] * 4), row)
            least = max(least, largest / sha if verb == "make" else 0.0)
            print(f"| {model} | {verb} | " + " | ".join(f"{max(cpu / cores, least):.0f}" for cores in CORES) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbs", default=",".join(commands(Path())))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = list[dict[str, Any]]()
    pairs = QUICK if arguments.quick else (FITTED, CHECKED)
    for seen, sizes in zip((True, False), pairs, strict=True):
        for size in sizes:
            made = measured(arguments.folder / "pair", size, arguments.share, arguments.runs, arguments.lock, arguments.verbs.split(","))
            rows += [row | {"seen": seen} for row in made]
    what = ["cpu", *(["lock"] if arguments.lock else [])]
    verbs = list(dict.fromkeys(row["verb"] for row in rows))
    seen_rows = {verb: [row for row in rows if row["verb"] == verb and row["seen"]] for verb in verbs}
    fits = {verb: {name: fit(seen_rows[verb], name) for name in what} for verb in verbs}
    print("| verb | tensors x bytes | " + " | ".join(f"{name}, s" for name in what) + " | wall, s | peak MB |")
    print("|---|---|" + "---|" * (len(what) + 2))
    for row in rows:
        figures = " | ".join(f"{row[name]:.2f}" for name in (*what, "wall"))
        print(f"| {row['verb']} | {row['size']} | {figures} | {row['rss']:.0f} |")
    print_fit(verbs, fits, rows)
    print_predictions(verbs, fits, sha256_rate())
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "fits": fits}))


if __name__ == "__main__":
    main()

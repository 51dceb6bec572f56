"""What a tensor costs: verbs on a pair of tens of thousands of tiny tensors with DeepSeek-V3's names, in shards.

    python benchmarks/many_tensors.py FOLDER [--tensors 90427] [--shards 163] [--side 8] [--live 5000,10000,20000,40000]

makes FOLDER/base and FOLDER/target (bf16, one element in 50 of every tensor moved by an ulp) if they are not there, runs ``make``,
``info``, ``verify`` and ``apply`` as whole processes, and ``diff``, ``from_bytes`` and ``apply_`` in this one for each number of
``--live``; prints a Markdown table of CPU seconds, microseconds a tensor and peak memory, and the same as JSON. Rebuilt files are compared
with the target's.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers_measure import run

import ckptdiff
from ckptdiff.format.safetensors_library import write_tensors

EXPERTS = 256
PARTS = ("gate_proj", "up_proj", "down_proj")
Tensors = dict[str, np.ndarray[Any, Any]]


def names(count: int) -> Iterator[str]:
    """Names of DeepSeek-V3's kind: experts of a layer, each with three projections of a weight and its scales."""
    for k in range(count):
        left, kind = divmod(k, 2)
        left, part = divmod(left, len(PARTS))
        layer, expert = divmod(left, EXPERTS)
        yield f"model.layers.{layer}.mlp.experts.{expert}.{PARTS[part]}.{('weight', 'weight_scale_inv')[kind]}"


def pair(count: int, side: int) -> tuple[Tensors, Tensors]:
    """Tensors of a base and a target; the same every time."""
    rng = np.random.default_rng(0)
    old = rng.integers(0x3C00, 0x3E00, (count, side, side)).astype(np.uint16)
    new = old + (rng.random(old.shape) < 0.02).astype(np.uint16)
    every = list(names(count))
    return dict(zip(every, old, strict=True)), dict(zip(every, new, strict=True))


def write(folder: Path, tensors: Tensors, shards: int) -> None:
    """A sharded checkpoint with an index."""
    folder.mkdir(parents=True)
    every, index = list(tensors), dict[str, str]()
    for k in range(shards):
        name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = every[k * len(every) // shards : (k + 1) * len(every) // shards]
        write_tensors(folder / name, {key: ("BF16", tensors[key]) for key in part}, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))


def verbs(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """CPU seconds and peak memory of each verb."""
    base, target, patch, out = (str(folder / name) for name in ("base", "target", "patch", "out"))
    program = [str(Path(sys.executable).with_name("ckptdiff"))]  # as installed: with -m it could be that of the current folder
    for path in (patch, out):
        shutil.rmtree(path, ignore_errors=True)
    for verb, command in {
        "make": ["make", base, target, "-o", patch],
        "info": ["info", patch],
        "verify": ["verify", patch],
        "verify --base": ["verify", patch, "--base", base],
        "apply": ["apply", base, patch, "-o", out],
    }.items():
        found = run([*program, *command], 3600.0)[0]
        yield {"verb": verb, "tensors": count, "cpu": found["cpu"], "wall": found["wall"], "rss": found["rss"]}
    differing = [file.name for file in Path(target).iterdir() if not filecmp.cmp(file, Path(out, file.name), shallow=False)]
    if differing:
        raise SystemExit(f"not exact: {differing}")


def live(count: int) -> Iterator[dict[str, Any]]:
    """CPU seconds of the calls for tensors in memory."""
    old, new = pair(count, 16)
    seconds, clock = dict[str, float](), time.process_time()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.process_time() - clock, time.process_time()

    data = ckptdiff.diff(old, new).to_bytes()
    lap("diff")
    patch = ckptdiff.Patch.from_bytes(data)
    lap("from_bytes")
    model = {name: tensor.copy() for name, tensor in old.items()}
    lap("")
    patch.apply_(model)
    lap("apply_")
    if any(not np.array_equal(model[name], new[name]) for name in new):
        raise SystemExit("apply_ did not give the target")
    yield from ({"verb": name, "tensors": count, "cpu": found} for name, found in seconds.items() if name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensors", type=int, default=90_427)
    parser.add_argument("--shards", type=int, default=163)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--live", default="5000,10000,20000,40000")
    arguments = parser.parse_args()
    if not (arguments.folder / "target").exists():
        for name, tensors in zip(("base", "target"), pair(arguments.tensors, arguments.side), strict=True):
            write(arguments.folder / name, tensors, arguments.shards)
    rows = list(verbs(arguments.folder, arguments.tensors)) if arguments.tensors else []
    small = {name: array[:1] for name, array in pair(1, 16)[0].items()}
    ckptdiff.Patch.from_bytes(ckptdiff.diff(small, small).to_bytes()).apply_(small)  # imports and kernels
    for count in filter(None, arguments.live.split(",")):
        rows += live(int(count))
    print("| call | tensors | CPU, s | µs a tensor | peak MB |\n|---|---|---|---|---|")
    for row in rows:
        memory = f"{row['rss']:.0f}" if "rss" in row else ""
        print(f"| {row['verb']} | {row['tensors']:,} | {row['cpu']:.2f} | {1e6 * row['cpu'] / row['tensors']:.1f} | {memory} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

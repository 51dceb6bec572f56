"""What composing a chain of sparse patches takes, and what it gives beside the direct patch.

    python benchmarks/compose.py FOLDER [--units 40000000] [--changed 0.02] [--chains 25,100] [--threads 1] [--runs 3]

Makes a chain of steps of a bf16 model in FOLDER, unless it is there: of each step the share ``--changed`` of elements moves by an ulp, most
of them among one eighth of the elements, as in training. Composes the first N patches for each N of ``--chains`` in one process, the first
time to warm up, and compares the result byte for byte with what ``make --codec sparse`` gives of base and target. ``MB/s a core`` is 10^6
bytes of patches by a second of CPU, digests included. Prints a Markdown table and JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ckptdiff
from ckptdiff.format.safetensors import predicted_header

WIDTH = 2048
LIKELY = 8
"""One element in so many moves often."""


def shapes(units: int) -> dict[str, tuple[int, ...]]:
    """Matrices until there are about so many elements, with a norm for each."""
    found: dict[str, tuple[int, ...]] = {}
    for k in range(max(units // (2 * WIDTH * WIDTH), 1)):
        found |= {f"layers.{k}.{name}.weight": (WIDTH, WIDTH) for name in ("up", "down")}
        found[f"layers.{k}.norm.weight"] = (WIDTH,)
    return found


def steps(units: int, changed: float, count: int) -> Iterator[np.ndarray[Any, Any]]:
    """The elements of all tensors at each step, from step 0 on; the array is the same, changed in place."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(units, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    current = values.astype(np.uint16)
    often = np.flatnonzero(rng.random(units) < 1 / LIKELY)
    yield current
    for _ in range(count):
        for where, share in ((often, 0.75 * changed * LIKELY), (None, 0.25 * changed)):
            size = len(often) if where is not None else units
            picked = rng.integers(0, size, int(size * share))
            picked = np.unique(picked if where is None else where[picked])
            current[picked] += rng.choice(np.array([1, 0xFFFF], np.uint16), len(picked))
        yield current


def write(path: Path, header: bytes, values: np.ndarray[Any, Any]) -> None:
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(values.view(np.uint8).data)


def make_chain(folder: Path, units: int, changed: float, lengths: list[int]) -> None:
    """The base, a patch for each step, and the direct patch of each length."""
    folder.mkdir(parents=True, exist_ok=True)
    found = shapes(units)
    header = predicted_header((name, "BF16", shape, 2 * int(np.prod(shape))) for name, shape in found.items())
    count = sum(int(np.prod(shape)) for shape in found.values())
    base, before, after = (folder / f"{name}.safetensors" for name in ("base", "before", "after"))
    for step, values in enumerate(steps(count, changed, max(lengths))):
        write(after if step else base, header, values)
        if step:
            ckptdiff.make(before if step > 1 else base, after, folder / f"{step:05}.safetensors", codec="sparse", overwrite=True)
            if step in lengths:
                ckptdiff.make(base, after, folder / f"direct-{step}.safetensors", codec="sparse", overwrite=True)
            after.replace(before)
    before.unlink()
    (folder / "chain.json").write_text(json.dumps({"units": units, "changed": changed, "lengths": lengths}))


def measured(folder: Path, length: int, threads: int, runs: int) -> dict[str, Any]:
    patches, out = [folder / f"{step:05}.safetensors" for step in range(1, length + 1)], folder / "composed.safetensors"
    size, direct = sum(path.stat().st_size for path in patches), folder / f"direct-{length}.safetensors"
    found = []
    for run in range(runs + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        ckptdiff.compose(patches, output=out, threads=threads, overwrite=True)
        if run:
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
    if out.read_bytes() != direct.read_bytes():
        raise SystemExit(f"{length} patches do not compose to the direct one")
    cpu, wall = min(found)
    return {
        "patches": length,
        "patches_bytes": size,
        "cpu": cpu,
        "wall": wall,
        "mb_s_a_core": size / cpu / 1e6,
        "bytes": out.stat().st_size,
        "direct_bytes": direct.stat().st_size,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--units", type=int, default=40_000_000)
    parser.add_argument("--changed", type=float, default=0.02)
    parser.add_argument("--chains", default="25,100")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.chains.split(",")]
    facts, path = {"units": arguments.units, "changed": arguments.changed, "lengths": lengths}, arguments.folder / "chain.json"
    if not path.exists() or json.loads(path.read_text()) != facts:
        make_chain(arguments.folder, arguments.units, arguments.changed, lengths)
    rows = [measured(arguments.folder, length, arguments.threads, arguments.runs) for length in lengths]
    print("| patches | MB | CPU, s | wall, s | MB/s a core | bytes | bytes of make | peak MB |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        texts = f"{row['patches']} | {row['patches_bytes'] / 1e6:.1f} | {row['cpu']:.2f} | {row['wall']:.2f} | {row['mb_s_a_core']:.0f}"
        print(f"| {texts} | {row['bytes']:,} | {row['direct_bytes']:,} | {row['peak_mb']:.0f} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

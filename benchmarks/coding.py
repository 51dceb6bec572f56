"""What the ``context`` codec takes in memory: every block of a pair encoded and decoded, warm, by one thread and by several.

    python benchmarks/coding.py BASE TARGET [...] [--threads 2] [--runs 5]

BASE and TARGET are safetensors files with the same tensors. Prints a Markdown table and JSON: best of the runs, in MB of target
and in nanoseconds of wall time a unit; ``faults``: page faults of one more run by all threads. What is decoded is compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.codecs import apply_change, context
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.kernels.changes import changes_of
from ckptdiff.patching.encode_group import row_width

Job = tuple[Bytes, Bytes, Dtype, BlockLayout]


def jobs_of(base: Tensor, target: Tensor) -> list[Job]:
    """Base, target, dtype and place of each block."""
    dtype, width = DTYPES[target.dtype], row_width(target)
    both = [t.read(0, t.nbytes, "whole").copy() for t in (base, target)]
    places = (BlockLayout(width, s // dtype.carrier % width) if width else WITHOUT_ROWS for s in range(0, target.nbytes, BLOCK))
    return [(*(x[k * BLOCK : (k + 1) * BLOCK] for x in both), dtype, place) for k, place in enumerate(places)]


def encode(base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout) -> bytes:
    return context.pack(base, changes_of(base, target, dtype), dtype, layout)


def best(function: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measured(jobs: list[Job], threads: int, runs: int) -> dict[str, float]:
    coded = [encode(*job) for job in jobs]
    size, units = sum(len(job[1]) for job in jobs), sum(len(job[1]) // job[2].carrier for job in jobs)

    def decode(k: int) -> None:
        base, target, dtype, _ = jobs[k]
        copy = base.copy()
        if not np.array_equal(apply_change(context.unpack(memoryview(coded[k]), copy, len(copy), dtype), copy, dtype)[0], target):
            raise AssertionError(f"block {k} does not come back")

    row: dict[str, float] = {"bytes": sum(map(len, coded)), "target": size}
    for count in dict.fromkeys((1, threads)):
        with ThreadPoolExecutor(count) as pool:
            for name, function in (
                ("encode", lambda: list(pool.map(lambda job: encode(*job), jobs))),
                ("decode", lambda: list(pool.map(decode, range(len(jobs))))),
            ):
                function()
                seconds = best(function, runs)
                row |= {f"{name}_{count}_ns": 1e9 * seconds / units, f"{name}_{count}_mb_s": size / seconds / 1e6}
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            list(pool.map(lambda job: encode(*job), jobs))
            row["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="BASE TARGET")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for base, target in zip(arguments.files[::2], arguments.files[1::2], strict=True):
        with open_checkpoint(base) as old, open_checkpoint(target) as new:
            (before,), (after,) = old.scopes.values(), new.scopes.values()
            jobs = [job for name, tensor in after.items() for job in jobs_of(before[name], tensor)]
        row = rows[str(target)] = measured(jobs, arguments.threads, arguments.runs)
        if len(rows) == 1:
            print("| target | " + " | ".join(row) + " |\n|---" + "|---" * len(row) + "|")
        print(f"| {target} | " + " | ".join(f"{x:,.1f}" if isinstance(x, float) else f"{x:,}" for x in row.values()) + " |", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

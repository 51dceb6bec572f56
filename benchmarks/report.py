"""The counting pass of ``report`` beside reading both files and hashing them with XXH3: whole in the page cache, in turn.

    python benchmarks/report.py BASE TARGET [--runs 5]

BASE and TARGET are safetensors files. Reading and hashing takes one thread, the report as many as it takes by default. Prints
JSON: medians in seconds, their ratio, peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import xxhash

import ckptdiff


def read_and_hash(path: Path) -> None:
    hasher, buffer = xxhash.xxh3_128(), bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(memoryview(buffer)[:count])


def peak_rss_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"read": [], "report": []}
    changed = 0.0
    for run in range(arguments.runs + 1):
        start = time.perf_counter()
        read_and_hash(arguments.base)
        read_and_hash(arguments.target)
        middle = time.perf_counter()
        totals = ckptdiff.report(arguments.base, arguments.target, rank="none").totals
        changed = 1 - totals.sparsity
        if run:  # the first warms up
            times["read"].append(middle - start)
            times["report"].append(time.perf_counter() - middle)
    read, report = (statistics.median(times[key]) for key in ("read", "report"))
    print(json.dumps({"changed": changed, "read_s": read, "report_s": report, "ratio": report / read, "peak_rss_mb": peak_rss_mb()}))


if __name__ == "__main__":
    main()

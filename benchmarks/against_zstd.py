"""Time ``ckptdiff make --codec sparse`` and ``apply`` against ``zstd --patch-from``, whole processes, in one run.

    python benchmarks/against_zstd.py SMALL_FOLDER [LARGE_FOLDER] [--runs 5] [--out FILE]

Each folder holds base.safetensors and target.safetensors (``synthetic.py`` makes them). Commands take turns, so that a
drifting machine hits all alike; the table gives medians. zstd runs with ``-3 --long=31``, once with
``--single-thread`` and once with ``-T2``; the ratio is to the better of the two, figure by figure. All results are
compared with the target byte for byte. Writes a Markdown table to stdout, and it and the rows as JSON to FILE.md and FILE.json.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CKPTDIFF = shutil.which("ckptdiff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])) or "ckptdiff"


def timed(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak RSS in MB of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{error.decode()}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss / 1024}


def commands(folder: Path, work: Path) -> dict[str, list[str]]:
    base, target = str(folder / "base.safetensors"), str(folder / "target.safetensors")
    zstd = ["zstd", "-q", "-f", "--long=31"]
    patch, ours = f"{work}/patch.safetensors", ["--threads", "2", "--overwrite"]
    rows = {
        "ckptdiff make": [CKPTDIFF, "make", base, target, "-o", patch, "--codec", "sparse", *ours],
        "zstd -3 --single-thread": [*zstd, "-3", "--single-thread", f"--patch-from={base}", target, "-o", f"{work}/single.zst"],
        "zstd -3 -T2": [*zstd, "-3", "-T2", f"--patch-from={base}", target, "-o", f"{work}/two.zst"],
        "ckptdiff apply": [CKPTDIFF, "apply", base, patch, "-o", f"{work}/rebuilt.safetensors", *ours],
        "zstd -d of --single-thread": [*zstd, "-d", f"--patch-from={base}", f"{work}/single.zst", "-o", f"{work}/single"],
        "zstd -d of -T2": [*zstd, "-d", f"--patch-from={base}", f"{work}/two.zst", "-o", f"{work}/two"],
        "cp": ["cp", target, f"{work}/copy"],
        "ckptdiff --version (start-up)": [CKPTDIFF, "--version"],
    }
    return rows


def race(folder: Path, runs: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        rows = commands(folder, Path(work))
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for run in range(runs + 1):
            for name, command in rows.items():
                found = timed(command)
                if run:
                    samples[name].append(found)
        for rebuilt in ("rebuilt.safetensors", "single", "two"):
            if not filecmp.cmp(folder / "target.safetensors", Path(work, rebuilt), shallow=False):
                raise SystemExit(f"{rebuilt} is not the target")
        result = {name: {key: statistics.median(s[key] for s in found) for key in found[0]} for name, found in samples.items()}
        for name, file in (("ckptdiff make", "patch.safetensors"), ("zstd -3 --single-thread", "single.zst"), ("zstd -3 -T2", "two.zst")):
            result[name]["bytes"] = Path(work, file).stat().st_size
    return result


def report(folder: Path, rows: dict[str, dict[str, float]], runs: int) -> str:
    megabytes = (folder / "target.safetensors").stat().st_size / 1e6
    lines = [f"{folder.name}: {megabytes:.0f} MB, medians of {runs} runs", ""]
    lines += ["| command | wall s | CPU s | peak RSS MB | patch bytes |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        nbytes = int(row["bytes"]) if "bytes" in row else ""
        lines.append(f"| {name} | {row['wall']:.2f} | {row['cpu']:.2f} | {row['rss']:.0f} | {nbytes} |")
    for ours, theirs in (
        ("ckptdiff make", ("zstd -3 --single-thread", "zstd -3 -T2")),
        ("ckptdiff apply", ("zstd -d of --single-thread", "zstd -d of -T2")),
    ):
        ratios = {key: rows[ours][key] / min(rows[name][key] for name in theirs) for key in ("wall", "bytes") if key in rows[ours]}
        lines.append("")
        lines.append(f"{ours} / better zstd: " + ", ".join(f"{key} {ratio:.3f}" for key, ratio in ratios.items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {folder.name: race(folder, arguments.runs) for folder in arguments.folders}
    text = "\n".join(report(folder, results[folder.name], arguments.runs) for folder in arguments.folders)
    if len(results) == 2:
        small, large = results.values()
        growth = {name: large[name]["rss"] / small[name]["rss"] for name in ("ckptdiff make", "ckptdiff apply")}
        text += "\npeak RSS on the second pair / on the first: " + ", ".join(f"{k} {v:.3f}" for k, v in growth.items()) + "\n"
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text)
        arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Diff and apply on a torch device, in GB/s of the weights' bytes, beside a copy on that device and the host's way.

    python benchmarks/gpu.py [--device auto] [--mb 2000] [--changed 1] [--runs 5] [--out gpu]

Makes bf16 tensors of 64 MB on the device, of which the share ``--changed`` (per cent) moves by one ulp. Prints a Markdown table and
writes OUT.md and OUT.json. ``diff`` and ``apply_`` are whole calls, digests of base and result included; the parts are what they
consist of. On the CPU device the figures say how torch's operations compare with ckptdiff's kernels, and nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ckptdiff
from ckptdiff.device.leaves import leaf_digests
from ckptdiff.device.ops import apply_changes, find_changes, units_of, zigzag
from ckptdiff.device.resolve import resolve_device
from ckptdiff.format.dtypes import DTYPES

BF16 = DTYPES["BF16"]
State = dict[str, Any]


def make(device: torch.device, mb: int, changed: float) -> tuple[State, State]:
    generator = torch.Generator().manual_seed(0)
    old, new = {}, {}
    for k in range(max(1, mb // 64)):
        weights = (torch.randn(4096, 8192, generator=generator) * 0.02).bfloat16()
        moved = torch.rand(weights.shape, generator=generator) < changed / 100
        old[f"layers.{k}"] = weights.to(device)
        new[f"layers.{k}"] = (weights.view(torch.int16) + moved).to(torch.int16).view(torch.bfloat16).to(device)
    return old, new


def seconds(device: torch.device, runs: int, call: Callable[[], Any]) -> float:
    """Median, after one run that warms up."""
    found = []
    for _ in range(runs + 1):
        synchronize(device)
        begun = time.perf_counter()
        call()
        synchronize(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows_of(device: torch.device, old: State, new: State, runs: int) -> dict[str, float]:
    size = sum(array.nbytes for array in old.values()) / 1e9
    flat = {k: (units_of(old[k].view(torch.uint8).view(-1), BF16), units_of(new[k].view(torch.uint8).view(-1), BF16)) for k in old}
    found = {k: find_changes(a, b, BF16) for k, (a, b) in flat.items()}
    state = {k: a.clone() for k, (a, _) in flat.items()}
    host = [{k: v.cpu() for k, v in side.items()} for side in (old, new)]
    loaded = ckptdiff.diff(old, new).load(old)

    def switch() -> None:
        loaded.apply_()
        loaded.revert_()

    def switch_unchecked() -> None:
        loaded.apply_(check=False)
        loaded.revert_(check=False)

    calls: dict[str, tuple[float, Callable[[], Any]]] = {
        "copy on the device": (1, lambda: [a.clone() for a, _ in flat.values()]),
        "find changes (both sides)": (2, lambda: [find_changes(a, b, BF16) for a, b in flat.values()]),
        "move, and back": (
            2,
            lambda: [apply_changes(state[k], p, zigzag(d), BF16, back) for k, (p, d) in found.items() for back in (False, True)],
        ),
        "XXH3 of one side": (1, lambda: leaf_digests([a.view(torch.uint8) for a, _ in flat.values()])),
        "diff, sparse": (1, lambda: ckptdiff.diff(old, new)),
        "diff, sparse, from the host's memory": (1, lambda: ckptdiff.diff(*host)),
        "diff, context": (1, lambda: ckptdiff.diff(old, new, codec="context")),
        "apply_ and revert_": (2, switch),
        "apply_ and revert_, unchecked": (2, switch_unchecked),
    }
    return {name: times * size / seconds(device, runs, call) for name, (times, call) in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--changed", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    old, new = make(device, arguments.mb, arguments.changed)
    rows = rows_of(device, old, new, arguments.runs)
    facts: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "mb": arguments.mb,
        "changed_percent": arguments.changed,
        "gb_s": rows,
    }
    if device.type == "cuda":
        facts["peak_device_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    table = "\n".join(f"| {what} | {rate:.2f} | {rate / rows['copy on the device']:.3f} |" for what, rate in rows.items())
    head = f"{name}, torch {torch.__version__}, {arguments.mb} MB, {arguments.changed} % changed"
    text = f"{head}\n\n| | GB/s | of a copy |\n|---|---|---|\n{table}\n"
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text)
        arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

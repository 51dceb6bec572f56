"""Diff and apply of tensors in memory, warm, beside PULSE: both in one process, in turn, with as many threads each.

    VENV/bin/python benchmarks/in_memory.py BASE TARGET [--codec context] [--runs 5] [--threads 2]

BASE and TARGET are bf16 safetensors files; VENV has ckptdiff and the peers of ``peers.txt``. ckptdiff is ``diff`` with
``to_bytes``, and ``Patch.from_bytes`` with ``apply_``; PULSE is ``Snapshot.encode_step``, and ``parse_patch`` with
``apply_patch``: format 3 beside ``context``, format 1 beside ``sparse``. All take digests of base and result. Results are
compared with the target bit by bit. ``extra MB`` is by how much the process's peak memory grew. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from basilica._pulse import codec as pulse
from safetensors.torch import load_file

import ckptdiff

VERSIONS = {"context": 3, "sparse": 1}
State = dict[str, Any]


class Ours:
    """ckptdiff as a trainer and an engine would call it."""

    def __init__(self, base: State, target: State, codec: str, threads: int) -> None:
        self.base, self.target, self.codec, self.threads = base, target, codec, threads
        self.state: State = {}

    def fresh(self) -> None:
        self.state = {name: tensor.clone() for name, tensor in self.base.items()}

    def encode(self) -> int:
        self.patch = ckptdiff.diff(self.base, self.target, codec=self.codec, threads=self.threads).to_bytes()
        return len(self.patch)

    def decode(self) -> None:
        ckptdiff.Patch.from_bytes(self.patch).apply_(self.state, threads=self.threads)

    def exact(self) -> bool:
        return all(torch.equal(self.state[name].view(torch.int16), data.view(torch.int16)) for name, data in self.target.items())


class Pulse:
    """PULSE as its trainer and its engine call it."""

    def __init__(self, base: State, target: State, version: int, threads: int) -> None:
        self.base, self.target, self.version, self.threads = base, target, version, threads

    def fresh(self) -> None:
        self.source, self.sink = pulse.Snapshot(self.base), pulse.Snapshot(self.base)

    def encode(self) -> int:
        model = pulse.ModelMeta(id="race", digest="", param_count=self.source.param_count())
        self.patch = self.source.encode_step(
            self.target.items(), step=1, base_step=0, model=model, workers=self.threads, format_version=self.version
        )[0]
        return len(self.patch)

    def decode(self) -> None:
        self.sink.apply_patch(pulse.parse_patch(self.patch))

    def exact(self) -> bool:
        return all(torch.equal(self.sink.tensor(name).view(torch.int16), data.view(torch.int16)) for name, data in self.target.items())


def measured(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, MB by which peak memory exceeded what was held before, and the result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun = memory("VmRSS:"), time.perf_counter()
    result = call()
    return round(time.perf_counter() - begun, 5), round(memory("VmHWM:") - before), result


def memory(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("target")
    parser.add_argument("--codec", choices=VERSIONS, default="context")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # which PULSE reads when it first does something
    pair = load_file(arguments.base), load_file(arguments.target)
    peer = f"pulse{VERSIONS[arguments.codec]}"
    racers: dict[str, Ours | Pulse] = {"ckptdiff": Ours(*pair, arguments.codec, arguments.threads)}
    racers[peer] = Pulse(*pair, VERSIONS[arguments.codec], arguments.threads)
    rows: dict[str, dict[str, Any]] = {name: {"encode": [], "decode": [], "extra MB": [0, 0]} for name in racers}
    for run in range(arguments.runs + 1):  # the first warms up
        for name, racer in racers.items():
            racer.fresh()
            encode, more, size = measured(racer.encode)
            decode, much, _ = measured(racer.decode)
            rows[name].update(bytes=size, exact=racer.exact())
            if run:
                rows[name]["encode"].append(encode)
                rows[name]["decode"].append(decode)
            rows[name]["extra MB"] = [max(pair) for pair in zip(rows[name]["extra MB"], (more, much), strict=True)]
    ratios = {k: round(statistics.median(rows["ckptdiff"][k]) / statistics.median(rows[peer][k]), 3) for k in ("encode", "decode")}
    ratios["bytes"] = round(rows["ckptdiff"]["bytes"] / rows[peer]["bytes"], 4)
    print(json.dumps({"rows": rows, f"ckptdiff / {peer}": ratios}, indent=1))


if __name__ == "__main__":
    main()

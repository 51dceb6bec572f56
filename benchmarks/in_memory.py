"""Encode and decode in memory, warm, beside PULSE v3: both in one process, in turn, with two threads each.

    VENV/bin/python benchmarks/in_memory.py BASE TARGET [--runs 5]

BASE and TARGET are bf16 safetensors files; VENV has ckptdiff and the peers of ``peers.txt``. ckptdiff codes every block with
``context`` and takes the digests of base, target and result; PULSE is ``Snapshot.encode_step(format_version=3)`` and
``parse_patch`` with ``apply_patch``, which take digests too. Results are compared with the target bit by bit. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from basilica._pulse import codec as pulse
from safetensors.torch import load_file

from ckptdiff.codecs import context
from ckptdiff.codecs.place import Place
from ckptdiff.digests import BLOCK, xxh128
from ckptdiff.dtypes import DTYPES, Bytes

THREADS = 2
BF16 = DTYPES["BF16"]
State = dict[str, Any]


def blocks_of(state: State) -> list[tuple[str, int, Place]]:
    """Name, first byte, and place of every block."""
    found = []
    for name, tensor in state.items():
        width = tensor.shape[-1] if tensor.ndim > 1 else 0
        for start in range(0, tensor.numel() * 2, BLOCK):
            found.append((name, start, Place(width, start // 2 % width) if width else Place()))
    return found


def as_bytes(state: State) -> dict[str, Bytes]:
    return {name: tensor.view(torch.int16).numpy().reshape(-1).view(np.uint8) for name, tensor in state.items()}


class Ours:
    """ckptdiff's codec over all blocks on a pool of threads."""

    def __init__(self, base: State, target: State) -> None:
        self.base, self.target, self.blocks = as_bytes(base), as_bytes(target), blocks_of(base)
        self.pool = ThreadPoolExecutor(THREADS)
        self.state: dict[str, Bytes] = {}

    def fresh(self) -> None:
        self.state = {name: data.copy() for name, data in self.base.items()}

    def encode(self) -> int:
        def one(block: tuple[str, int, Place]) -> bytes:
            name, start, place = block
            old, new = self.base[name][start : start + BLOCK], self.target[name][start : start + BLOCK]
            xxh128(old), xxh128(new)
            return context.encode(old, new, BF16, place)[0]

        self.coded = list(self.pool.map(one, self.blocks))
        return sum(map(len, self.coded))

    def decode(self) -> None:
        def one(block: tuple[str, int, Place], coded: bytes) -> None:
            name, start, _ = block
            part = self.state[name][start : start + BLOCK]
            xxh128(part)
            context.decode(memoryview(coded), part, len(part), BF16)
            xxh128(part)

        list(self.pool.map(one, self.blocks, self.coded))

    def exact(self) -> bool:
        return all(np.array_equal(self.state[name], data) for name, data in self.target.items())


class Pulse:
    """PULSE as its trainer and its engine call it."""

    def __init__(self, base: State, target: State) -> None:
        self.base, self.target = base, target

    def fresh(self) -> None:
        self.source, self.sink = pulse.Snapshot(self.base), pulse.Snapshot(self.base)

    def encode(self) -> int:
        model = pulse.ModelMeta(id="race", digest="", param_count=self.source.param_count())
        self.patch = self.source.encode_step(self.target.items(), step=1, base_step=0, model=model, workers=THREADS, format_version=3)[0]
        return len(self.patch)

    def decode(self) -> None:
        self.sink.apply_patch(pulse.parse_patch(self.patch))

    def exact(self) -> bool:
        return all(torch.equal(self.sink.tensor(name).view(torch.int16), data.view(torch.int16)) for name, data in self.target.items())


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    pair = load_file(arguments.base), load_file(arguments.target)
    racers: dict[str, Ours | Pulse] = {"ckptdiff": Ours(*pair), "pulse3": Pulse(*pair)}
    rows: dict[str, dict[str, Any]] = {name: {"encode": [], "decode": []} for name in racers}
    for run in range(arguments.runs + 1):  # the first warms up
        for name, racer in racers.items():
            racer.fresh()
            encode, size = timed(racer.encode)
            decode, _ = timed(racer.decode)
            rows[name].update(bytes=size, exact=racer.exact())
            if run:
                rows[name]["encode"].append(round(encode, 3))
                rows[name]["decode"].append(round(decode, 3))
    ratios = {k: round(statistics.median(rows["ckptdiff"][k]) / statistics.median(rows["pulse3"][k]), 3) for k in ("encode", "decode")}
    ratios["bytes"] = round(rows["ckptdiff"]["bytes"] / rows["pulse3"]["bytes"], 4)
    print(json.dumps({"rows": rows, "ckptdiff / pulse3": ratios}, indent=1))


if __name__ == "__main__":
    main()

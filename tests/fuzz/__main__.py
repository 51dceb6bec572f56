"""A campaign: python -m tests.fuzz TARGET [--seconds N | --count N] [--seed N] [--corpus DIR] [--no-atheris] [INPUT...]

With atheris (``pip install atheris``) inputs are chosen by which lines of the readers they reach, and new ones are kept in the
corpus; without it by seed and number alone. INPUT files are run once each, to look at a finding again. See README.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

GUIDES = ["ckptdiff", "minimal_reader"]
NAMES = """
adaptive adaptive_block adaptive_blocks changes classes context_groups context_map escapes gram histogram leaves mask_ops moves pace
range_coder rans raw_bits static tokens ulps
"""
KERNELS = [f"ckptdiff.kernels.{name}" for name in NAMES.split()]
"""Packages that guide atheris, and modules of kernels, which Numba must compile as they are: the minimal reader's loops stand for them."""
EVERY = 10_000
"""Executions between two lines of sums."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, help="executions, instead of --seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with and to add to (atheris)")
    parser.add_argument("--no-atheris", action="store_true")
    parser.add_argument("inputs", nargs="*", type=Path)
    options = parser.parse_args()
    atheris = None if options.no_atheris or options.inputs else _atheris()
    if atheris is None:
        _unguided(_target(options.target), options)
    else:
        with atheris.instrument_imports(include=GUIDES, exclude=KERNELS, enable_loader_override=False):
            target = _target(options.target)
        _guided(atheris, target, options)


def _atheris() -> Any:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: inputs by seed and number", file=sys.stderr)
        return None


def _target(name: str) -> Any:
    targets = importlib.import_module("tests.fuzz.targets").TARGETS
    if name not in targets:
        sys.exit(f"no target {name}: there are {', '.join(targets)}")
    return targets[name]


def _unguided(target: Any, options: argparse.Namespace) -> None:
    from tests.fuzz.engine import Tally, judge, loop

    if options.inputs:
        for path in options.inputs:
            print(path, judge(target, path.read_bytes()))
        return
    total, seed, end = Tally(), options.seed, time.monotonic() + options.seconds
    while total.executions < options.count if options.count else time.monotonic() < end:
        part = loop(target, seed, min(options.count or EVERY, EVERY))
        total.executions += part.executions
        total.sealed += part.sealed
        total.results += part.results
        seed += 1
        print(json.dumps({"target": target.name, **total.to_json()}), flush=True)


def _guided(atheris: Any, target: Any, options: argparse.Namespace) -> None:
    from tests.fuzz.engine import Tally

    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="ckptdiff-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(target.seeds()):
        (corpus / f"seed-{k:04}").write_bytes(data)
    tally, end = Tally(), time.monotonic() + options.seconds

    def run(data: bytes) -> None:
        tally.add(target.run(data))
        over = tally.executions >= options.count if options.count else time.monotonic() > end
        if over or tally.executions % EVERY == 0:
            print(json.dumps({"target": target.name, **tally.to_json()}), flush=True)
        if over:
            os._exit(0)  # atheris would go on

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        made = target.mutate(np.random.default_rng(seed), data)
        return made if len(made) <= most else data[:most]

    flags = [
        f"-seed={options.seed}",
        "-max_len=65536",
        "-rss_limit_mb=4096",
        "-timeout=60",
        "-mutate_depth=1",
        "-print_final_stats=0",
        f"-artifact_prefix={corpus}/finding-",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

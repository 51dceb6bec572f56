"""Rank of an update: ckptdiff beside ``torch.linalg.matrix_rank``, one after the other in one process with the same threads.

    python benchmarks/rank.py [--shape 1024x3584 --shape 4096x14336] [--density 0.1] [--device cuda]

Updates as bf16 checkpoints have them: N(0, 0.02) weights rounded to bf16, a share of them moved by one ulp. Prints a Markdown
table and JSON. torch takes the singular values in float32; ``spectrum`` gives all eigenvalues of the Gram matrix in float64.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ckptdiff.analysis.rank import spectrum


def update(rows: int, columns: int, density: float) -> np.ndarray[Any, Any]:
    """target - base of a random bf16 matrix."""
    rng = np.random.default_rng(0)
    units = (rng.normal(0, 0.02, (rows, columns)).astype("<f4").view("<u4") >> 16).astype("<u2")
    moved = units + (rng.random(units.shape) < density)
    old, new = ((x.astype("<u4") << 16).view("<f4") for x in (units, moved))
    return np.asarray(new - old)


def timed(function: Callable[[], int]) -> tuple[int, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="ROWSxCOLUMNS; default 1024x3584, 2048x7168, 4096x4096, 4096x14336")
    parser.add_argument("--density", type=float, default=0.1, help="share of elements that moved")
    parser.add_argument("--device", help="a torch device for spectrum, too")
    arguments = parser.parse_args()
    rows = []
    print("| update | torch s | rank | ckptdiff s | rank | torch / ckptdiff |\n" + "|---" * 6 + "|")
    for shape in arguments.shape or ("1024x3584", "2048x7168", "4096x4096", "4096x14336"):
        d = update(*map(int, shape.split("x")), arguments.density)
        theirs = timed(lambda d=d: int(torch.linalg.matrix_rank(torch.from_numpy(d))))
        ours = timed(lambda d=d: spectrum(d, arguments.device, torch.get_num_threads()).rank)
        row = {"torch_s": theirs[1], "torch_rank": theirs[0], "s": ours[1], "rank": ours[0], "ratio": theirs[1] / ours[1]}
        print(f"| {shape} | " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values()) + " |", flush=True)
        rows.append({"shape": shape, **row})
    print(json.dumps({"density": arguments.density, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()

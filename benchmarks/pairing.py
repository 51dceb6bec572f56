"""What it costs to pair the tensors of two checkpoints, and how sure the evidence is.

    python benchmarks/pairing.py BASE TARGET... [--rounds 5]

prints for each target how its tensors were paired, the least CPU of a few rounds (headers are open, kernels not needed), and over all
tensors that stand against one whole base tensor of their size: the largest ratio of the distance of the samples to that of the samples
rotated (0.75 is the limit up to which they count as related), and the share of units whose sign differs. Writes pairing.json too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.pairing import Pairing, pair
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.samples import compare
from ckptdiff.format.dtypes import DTYPES


def sureness(base: Checkpoint, target: Checkpoint, pairing: Pairing) -> tuple[float, float]:
    """The largest ratio of a related pair whose samples differ, and the share of turned signs of all floats."""
    worst, turned, units = 0.0, 0, 0
    for key, found in pairing.counterparts.items():
        tensor, old = target.tensor(key), found.base.whole
        if old is None or not found.related or not DTYPES[tensor.dtype].is_float:
            continue
        sample = compare(found.base, tensor)
        worst = max(worst, sample.bits / sample.rotated if sample.rotated else 0.0)
        shift, unit = 8 * DTYPES[tensor.dtype].carrier - 1, f"<u{DTYPES[tensor.dtype].carrier}"
        a, b = (side.read(0, tensor.nbytes, name).view(unit) >> shift for side, name in ((old, "base"), (tensor, "target")))
        turned, units = turned + int(np.count_nonzero(a != b)), units + len(a)
    return worst, turned / max(units, 1)


def measure(base_path: Path, target_path: Path, rounds: int) -> dict[str, Any]:
    with open_checkpoint(base_path) as base, open_checkpoint(target_path) as target:
        seconds = []
        for _ in range(rounds):
            begun = time.process_time()
            pairing = pair(base, target)
            seconds.append(time.process_time() - begun)
        ratio, signs = sureness(base, target, pairing)
        means = Counter(found.means if found.related is not False else "unrelated" for found in pairing.counterparts.values())
        tensors = sum(len(file.header.tensors) for file in target.weights)
    row = {"target": target_path.name, "tensors": tensors, "paired": dict(means), "cpu_ms": round(1000 * min(seconds), 1)}
    return row | {"worst_ratio": round(ratio, 3), "turned_signs": round(signs, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("targets", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("pairing.json"))
    arguments = parser.parse_args()
    print("| target | tensors | paired | CPU, ms | worst ratio | turned signs |\n|---|---|---|---|---|---|")
    rows = []
    for target in arguments.targets:
        rows.append(measure(arguments.base, target, arguments.rounds))
        row = rows[-1]
        paired = ", ".join(f"{count} {'by ' * (means != 'unrelated')}{means}" for means, count in row["paired"].items())
        figures = f"{row['cpu_ms']} | {row['worst_ratio']} | {row['turned_signs']:.4%}"
        print(f"| {row['target']} | {row['tensors']} | {paired} | {figures} |", flush=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

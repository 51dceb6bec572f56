"""How few bytes any codec could need for a made bf16 pair: the entropy of its changes, given all that made them.

    python benchmarks/floor.py FOLDER [--tensors 12]

FOLDER is of ``made_pairs.py``. A coder that knows the base, and for nothing the step and the scale of every row and column, still has
to tell which weights changed, to which side and how far: -log2 of the probability that the fp32 weight, anywhere within its bf16
rounding interval, leaves it by a normal update of the known size; and one bit for the side, as updates are symmetric. The distance
is taken at its entropy by how large the update is against an ulp. "By class" knows the share of changes by exponent instead. Over the
first rows of some tensors, scaled up; prints JSON. Does not import ckptdiff.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_pairs import CHUNK, Recipe, Spec, bf16, kept, model, sides
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def mean_cdf(x: Doubles, sigma: Doubles) -> Doubles:
    """The integral of the normal distribution function of standard deviation ``sigma`` up to x."""
    z = torch.from_numpy(x / sigma)
    return np.asarray(x * torch.special.ndtr(z).numpy() + sigma * np.exp(-0.5 * (x / sigma) ** 2) / math.sqrt(2 * math.pi))


def entropy(counts: NDArray[Any]) -> float:
    """Bits of so many of each kind."""
    some = counts[counts > 0].astype(np.float64)
    return float(-(some * np.log2(some / some.sum())).sum())


def costs(spec: Spec, index: int, recipe: Recipe, step: float) -> dict[str, Any]:
    """Bits of the first rows of a tensor, by what is known; and for each exponent how many stay and change."""
    rng = np.random.default_rng((recipe.seed, index))  # the order of made_pairs.chunks
    columns = rng.lognormal(0, 0.5, spec.columns).astype(np.float32)
    count = min(max(1, CHUNK // spec.columns), spec.shape[0])
    scale = rng.lognormal(0, 0.15, (count, 1)).astype(np.float32) * np.float32(spec.deviation)
    weights = rng.standard_normal((count, spec.columns), np.float32) * scale + np.float32(spec.mean)
    update = rng.standard_normal((count, spec.columns), np.float32)
    rows = rng.lognormal(0, 0.5, (count, 1)).astype(np.float32)
    base, target = sides(weights, update * rows * columns, step, "BF16")
    assert (base == bf16(weights)).all()
    exponent = (base >> 7 & 255).astype(np.int64)
    ulp = np.exp2(np.maximum(exponent, 1) - 134.0)
    width = np.where((base & 127 == 0) & (exponent > 1), 0.75 * ulp, ulp)  # below a power of two ulps are half as large
    sigma = (step * rows * columns).astype(np.float64)
    stays = (mean_cdf(width, sigma) - 2 * mean_cdf(np.zeros_like(width), sigma) + mean_cdf(-width, sigma)) / width
    stays, changed = np.clip(stays, 1e-12, 1 - 1e-12), base != target
    moved = np.abs((target & 0x7FFF).astype(np.int64) - (base & 0x7FFF))[changed]
    ratio = np.round(2 * np.log2((sigma / ulp)[changed])).astype(np.int64)
    by_exponent = np.zeros((256, 2))
    np.add.at(by_exponent, (exponent.ravel(), changed.ravel().astype(np.int64)), 1)
    return {
        "changed": int(changed.sum()),
        "which": float(-np.log2(np.where(changed, 1 - stays, stays)).sum()),
        "how far": float(changed.sum()) + sum(entropy(np.unique(moved[ratio == r], return_counts=True)[1]) for r in np.unique(ratio)),
        "by exponent": by_exponent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensors", type=int, default=12)
    arguments = parser.parse_args()
    facts = kept(arguments.folder)
    recipe = Recipe(**facts["recipe"])
    matrices = [(i, spec) for i, spec in enumerate(model(int(recipe.mb * 1e6), 2)) if len(spec.shape) > 1]
    picked = [matrices[0], *random.Random(1).sample(matrices[1:], min(arguments.tensors, len(matrices) - 1))]
    found = [costs(spec, i, recipe, facts["step"]) for i, spec in picked]
    changed = sum(row["changed"] for row in found)
    by_class = sum(entropy(row) for row in sum(row["by exponent"] for row in found))
    far = sum(row["how far"] for row in found)
    bits = {"all known": sum(row["which"] for row in found) + far, "by class": by_class + far}
    scaled = {name: round(value / changed * facts["changed"] / 8) for name, value in bits.items()}
    print(json.dumps({"bits a change": {k: round(v / changed, 3) for k, v in bits.items()}, "bytes": scaled}, indent=1))


if __name__ == "__main__":
    main()

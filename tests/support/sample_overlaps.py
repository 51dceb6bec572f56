"""Overlaps of updates of a small model of the Llama kind, made from counts."""

from __future__ import annotations

import numpy as np

from ckptdiff.analysis.overlap import OverlapResult, TensorOverlap
from tests.support.sample_reports import llama


def sample(k: int = 3, layers: int = 4, same: float = 0.5) -> OverlapResult:
    """Updates of a small model; each one's changes lie in the next one's, and chance by size gives ``same`` of those they share."""
    tensors = []
    for i, (name, _, _, shape) in enumerate(llama(layers, 64, 400)):
        n = int(np.prod(shape))
        changed = np.array([n * (j + 1) // (k + 3 + i % 3) for j in range(k)]) * ("norm" not in name)
        both = np.minimum.outer(changed, changed)
        ever = np.maximum.accumulate(changed) + changed // 5
        moved = np.diff(changed, prepend=0)
        counts = (n, changed, both, both * 3 // 4, int(changed.min()), moved, ever, ever - changed)
        tensors.append(TensorOverlap("model", name, *counts, both * same, both * 0.25, float(changed.min()) * same))
    return OverlapResult("base", tuple(f"checkpoint-{100 * (j + 1)}" for j in range(k)), 0.0, tuple(tensors), ())

"""The small pair of checkpoints that many tests share: the fixtures ``files`` and ``folders`` of ``tests/conftest.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.checkpoints import TensorData, bf16, perturb, random_tensor


@dataclass(frozen=True)
class Pair:
    """A base, a target made from it, and the patch between them."""

    base: Path
    target: Path
    patch: Path


def tensors() -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    """The tensors of the base and of the target: two change, one does not."""
    rng = np.random.default_rng(3)
    base = {"a.weight": bf16(rng.normal(0, 0.02, (40, 64))), "b.weight": random_tensor(rng, "F32", (30,)), "c": bf16([1.0, 2.0])}
    target = {**base, "a.weight": perturb(rng, base["a.weight"], 0.02), "b.weight": perturb(rng, base["b.weight"], 0.1)}
    return base, target

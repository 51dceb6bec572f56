"""How often the nulls' 95 % intervals hold a shuffle that torch draws: ``python -m tests.support.null_coverage [SEEDS] [TENSOR...]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ckptdiff.analysis.intervals import NullSettings, prediction_interval
from ckptdiff.analysis.matrix_nulls import MatrixSides, matrix_nulls
from tests.support.null_oracles import (
    base_of,
    exponents,
    principal_mask,
    spectrum_figures,
    state,
    torch_flipped,
    torch_shuffled,
    turned_figures,
)
from tests.support.real_pairs import TARGETS

TENSOR = "model.layers.{}.self_attn.k_proj.weight"
FIGURES = ("stable_rank", "effective_rank", "rank", "top_energy")
TURNS = ("largest_angle", "mean_angle", "drift")


def sides_of(base: Any, target: Any) -> MatrixSides:
    """A matrix as the package has it."""
    return MatrixSides(base.float().numpy(), target.float().numpy(), exponents(base).numpy().astype(np.uint8).reshape(-1), "BF16")


def covered(pair: str, name: str, seeds: Sequence[int], draws: int = 5) -> dict[str, int]:
    """Of so many seeds, in how many each interval holds torch's own draw of the null."""
    base, target = base_of(pair)[name], state(pair)[name]
    sides, sizes = sides_of(base, target), exponents(base)
    change = target.double() - base.double()
    k = max(1, min(base.shape) // 8)
    mask = principal_mask(base, k)
    found: dict[str, int] = {}
    for seed in seeds:
        nulls = matrix_nulls(sides, NullSettings(draws, seed), (name,), None, 1)
        moved = torch_shuffled(change, sizes, 10_000 + seed)
        truths = {
            "flipped": spectrum_figures(torch_flipped((target - base).double(), 20_000 + seed)),
            "shuffled": spectrum_figures(moved.bfloat16()),
        }
        for null, truth in truths.items():
            for figure in FIGURES:
                side = prediction_interval(getattr(getattr(nulls, null), figure)).side(truth[figure])
                found[f"{null} {figure}"] = found.get(f"{null} {figure}", 0) + (side == 0)
        assert nulls.principal is not None
        turned = turned_figures(base, base.double() + moved, k)
        for figure in TURNS:
            side = prediction_interval([getattr(draw, figure) for draw in nulls.principal.shuffled]).side(turned[figure])
            found[f"shuffled {figure}"] = found.get(f"shuffled {figure}", 0) + (side == 0)
        mean, deviation = nulls.principal.inside_by_size, nulls.principal.variance_by_size**0.5
        inside = int((mask & (moved != 0)).sum())
        found["shuffled principal_overlap"] = found.get("shuffled principal_overlap", 0) + (abs(inside - mean) <= 1.959964 * deviation)
    return found


def main(arguments: Sequence[str]) -> None:
    """Print the counts for three real pairs."""
    count = int(arguments[0]) if arguments else 100
    torch.set_num_threads(1)
    for pair in TARGETS:
        for name in arguments[1:] or [TENSOR.format(3)]:
            print(pair, name)
            for figure, times in covered(pair, name, range(count)).items():
                print(f"  {figure:30} {times:3} of {count}")


if __name__ == "__main__":
    main(sys.argv[1:])

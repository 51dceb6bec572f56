"""Nulls and size statistics of bf16 matrices in plain torch, and the matrices that they are tried on: real ones, and made ones."""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support.real_pairs import BASE

MADE = "made"
"""A target that is always there: its update has two directions and noise, of which bf16 swallows most."""
SHAPES = {"k_proj": (24, 64), "o_proj": (64, 64), "up_proj": (96, 64), "down_proj": (64, 96)}


def base_of(target: str) -> dict[str, Any]:
    """The tensors that a target was trained from."""
    return state(f"{MADE}-base" if target == MADE else "tiny6m-base")


@cache
def state(name: str) -> dict[str, Any]:
    """The tensors of a checkpoint."""
    if not name.startswith(MADE):
        return load_file(BASE.parent / name / "model.safetensors")
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(6):
        for kind, shape in SHAPES.items():
            base = (0.02 * torch.randn(shape, generator=random)).bfloat16()
            left, right = torch.randn(shape[0], 2, generator=random), torch.randn(2, shape[1], generator=random)
            update = 1e-5 * (left @ right + torch.randn(shape, generator=random))
            part = "self_attn" if kind in ("k_proj", "o_proj") else "mlp"
            tensors[f"model.layers.{layer}.{part}.{kind}.weight"] = base if name != MADE else (base.float() + update).bfloat16()
    return tensors


def exponents(base: Any) -> Any:
    """Exponent field of each element of a bf16 tensor."""
    return (base.view(torch.int16).to(torch.int32) >> 7) & 0xFF


def changed(base: Any, target: Any) -> Any:
    """Whether the bits of bf16 elements differ."""
    return base.view(torch.int16) != target.view(torch.int16)


def spectrum_figures(update: Any) -> dict[str, float]:
    """The figures of an update that stand beside nulls."""
    values = torch.linalg.svdvals(update.double())
    energy = torch.cumsum(values**2, 0)
    return {
        "rank": int(torch.linalg.matrix_rank(update.double(), rtol=max(update.shape) * 2.0**-23)),
        "stable_rank": float(energy[-1] / values[0] ** 2),
        "effective_rank": int((energy < 0.99 * energy[-1]).sum()) + 1,
        "top_energy": float(energy[min(8, len(energy)) - 1] / energy[-1]),
    }


def turned_figures(base: Any, target: Any, k: int) -> dict[str, float]:
    """Principal angles in degrees and the normalized spectral shift, by the definitions."""
    (u, s, v), (u1, s1, v1) = (torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in (base, target))
    cosines = torch.cat([torch.linalg.svdvals(a.T @ b) for a, b in ((u[:, :k], u1[:, :k]), (v[:k].T, v1[:k].T))])
    angles = torch.rad2deg(torch.arccos(cosines.clamp(max=1.0)))
    shift = float(torch.linalg.norm(s1 - s) / torch.linalg.norm(s))
    return {"largest_angle": float(angles.max()), "mean_angle": float(angles.mean()), "drift": shift}


def principal_mask(base: Any, k: int) -> Any:
    """The top half of |W_k|."""
    u, s, v = torch.linalg.svd(base.double(), full_matrices=False)
    sizes = ((u[:, :k] * s[:k]) @ v[:k]).abs()
    return sizes >= sizes.flatten().kthvalue(sizes.numel() - sizes.numel() // 2 + 1).values


def by_size(sizes: Any, first: Any, second: Any) -> tuple[float, float]:
    """Mean and variance of how many elements two random sets of such sizes share, from the hypergeometric probabilities where a bin is
    small, else from the formula of its variance."""
    mean, variance = 0.0, 0.0
    for size in sizes.unique():
        there = sizes == size
        n, a, b = int(there.sum()), int((first & there).sum()), int((second & there).sum())
        if n <= 300:
            odds = {k: comb(a, k) * comb(n - a, b - k) / comb(n, b) for k in range(max(0, a + b - n), min(a, b) + 1)}
            here = sum(k * p for k, p in odds.items())
            spread = sum((k - here) ** 2 * p for k, p in odds.items())
        else:
            here, spread = a * b / n, a * b * (n - a) * (n - b) / (n * n * (n - 1))
        mean, variance = mean + here, variance + spread
    return mean, variance


def torch_shuffled(update: Any, sizes: Any, seed: int) -> Any:
    """The update with its positions shuffled among elements of the same size, by torch's generator."""
    random = torch.Generator().manual_seed(seed)
    flat, result = update.flatten(), torch.empty_like(update).flatten()
    for size in sizes.unique():
        places = torch.nonzero(sizes.flatten() == size).flatten()
        result[places] = flat[places[torch.randperm(len(places), generator=random)]]
    return result.reshape(update.shape)


def torch_flipped(update: Any, seed: int) -> Any:
    """The update with random signs, by torch's generator."""
    random = torch.Generator().manual_seed(seed)
    return update * (2 * torch.randint(0, 2, update.shape, generator=random, dtype=torch.float64) - 1)


def explained(sizes: Any, moved: Any) -> float:
    """R^2 of which elements changed, as one minus the variance within bins over the whole."""
    flags = moved.flatten().double()
    within = sum(float(((flags[places] - flags[places].mean()) ** 2).sum()) for places in (sizes.flatten() == s for s in sizes.unique()))
    return 1 - within / float(((flags - flags.mean()) ** 2).sum())

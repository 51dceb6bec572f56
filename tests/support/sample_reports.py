"""Report objects as ``ckptdiff report`` makes them, from a small model of the Llama kind made with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

COUNTS = "elements bit_identical equal within_atol within_rtol within_atol_rounded one_ulp up down".split()
Update = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def round_bf16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest BF16, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def ordered(values: np.ndarray) -> np.ndarray:
    """BF16 values as integers whose difference is the distance in ulps."""
    bits = (values.view(np.uint32) >> 16).astype(np.int64)
    return np.where(bits >= 0x8000, 0x8000 - bits, bits)


def rl_update(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """A few Adam steps of 1e-6: only where they reach half an ulp does the stored BF16 change."""
    return round_bf16(base + rng.normal(0, 2e-6, base.shape).astype(np.float32))


def low_rank_update(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """A merged adapter of rank 4 (kept as float32, so that its rank stays 4)."""
    if base.ndim < 2:
        return base
    return base + np.float32(0.01) * (rng.normal(size=(base.shape[0], 4)) @ rng.normal(size=(4, base.shape[1]))).astype(np.float32)


def no_update(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    return base


def counts(base: np.ndarray, target: np.ndarray) -> dict[str, int]:
    d, steps = np.abs(target - base), np.abs(ordered(target) - ordered(base))
    same = base.view(np.uint32) == target.view(np.uint32)
    values = (base.size, same, base == target, d <= 1e-5, d <= 1e-3 * np.abs(base), round_bf16(d) <= round_bf16(np.float32(1e-5)))
    rest = (steps == 1, target > base, target < base)
    return dict(zip(COUNTS, [int(np.sum(v)) for v in values + rest], strict=True))


def spectrum(base: np.ndarray, target: np.ndarray) -> dict[str, Any] | None:
    d = (target - base).astype(np.float64)
    values = np.linalg.svd(d, compute_uv=False)
    if values[0] == 0:
        return None
    energy, parts = values**2 / np.sum(values**2), values / np.sum(values)
    rank = int(np.sum(values > values[0] * max(d.shape) * np.finfo(np.float32).eps))
    picked = values[np.linspace(0, len(values) - 1, min(64, len(values))).round().astype(int)]
    empty = (1 - np.mean(d != 0)) ** np.array(d.shape[::-1])
    return {
        "index": 0,
        "rows": d.shape[0],
        "columns": d.shape[1],
        "rank": rank,
        "stable_rank": float(1 / energy[0]),
        "effective_rank": float(np.exp(-np.sum(parts * np.log(parts + 1e-300)))),
        "top_energy": [float(np.sum(energy[:k])) for k in (1, 2, 4, 8, 16, 32, 64, 128)],
        "singular_values": [float(v) for v in picked],
        "random_rank": float(min(d.shape[0] * (1 - empty[0]), d.shape[1] * (1 - empty[1]))),
        "nulls": None,
    }


def llama(layers: int, width: int, vocabulary: int) -> list[tuple[str, int | None, str, tuple[int, ...]]]:
    """Names, layers, modules and shapes."""
    wide = width * 11 // 4
    found: list[tuple[str, int | None, str, tuple[int, ...]]] = [("model.embed_tokens.weight", None, "embedding", (vocabulary, width))]
    for i in range(layers):
        at = f"model.layers.{i}."
        found += [(f"{at}self_attn.{m}_proj.weight", i, m, (width if m in "qo" else width // 4, width)) for m in "qkvo"]
        found += [(f"{at}mlp.{m}_proj.weight", i, m, (wide, width)) for m in ("gate", "up")]
        found.append((f"{at}mlp.down_proj.weight", i, "down", (width, wide)))
        found += [(f"{at}{m}_layernorm.weight", i, "norm", (width,)) for m in ("input", "post_attention")]
    return [*found, ("model.norm.weight", None, "norm", (width,)), ("lm_head.weight", None, "lm_head", (vocabulary, width))]


def one_tensor(
    name: str, layer: int | None, module: str, base: np.ndarray, target: np.ndarray, rank: str, scope: str = ""
) -> dict[str, Any]:
    moved = base != target
    quantiles = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    sides = [[float(q) for q in np.quantile(moved.mean(axis=a), quantiles)] if base.ndim == 2 else None for a in (1, 0)]
    found = spectrum(base, target) if rank != "none" and base.ndim == 2 and module not in ("embedding", "lm_head") else None
    place = {"scope": scope, "name": name, "dtype": "BF16", "shape": list(base.shape), "layer": layer, "module": module}
    return {
        **place,
        **counts(base, target),
        "rows": sides[0],
        "columns": sides[1],
        "spectra": [found] if found else None,
        "exponents": None,
    }


def total(tensors: list[dict[str, Any]]) -> dict[str, int]:
    return {field: sum(t[field] for t in tensors) for field in COUNTS}


def grouped(tensors: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    values = dict.fromkeys(t[key] for t in tensors if t[key] is not None)
    return [{key: v, **total([t for t in tensors if t[key] == v])} for v in values]


def moves(base: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """Histograms over all elements."""
    at = base != target
    steps, d = np.abs(ordered(target) - ordered(base))[at], np.abs(target - base)[at].astype(np.float64)
    ulp = [{"from": 1, "to": 1, "count": int(np.sum(steps == 1))}]
    ulp += [{"from": 1 << k, "to": (2 << k) - 1, "count": int(np.sum((steps >> k) == 1))} for k in range(1, 16)]
    power, power_base = np.floor(np.log2(d)).astype(int), np.frexp(np.abs(base))[1] - 1
    sizes = [{"from": 2.0**k, "to": 2.0 ** (k + 1), "count": int(np.sum(power == k))} for k in np.unique(power).tolist()]
    exponents: list[dict[str, Any]] = [{"exponent": None, "elements": int(np.sum(base == 0)), "changed": int(np.sum(at & (base == 0)))}]
    for k in np.unique(power_base[base != 0]).tolist():
        here = (power_base == k) & (base != 0)
        exponents.append({"exponent": k, "elements": int(np.sum(here)), "changed": int(np.sum(here & at))})
    while ulp and not ulp[-1]["count"]:
        ulp.pop()
    return {"ulp": ulp, "abs": sizes, "exponents": exponents}


def rank_means(tensors: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = [s for t in tensors for s in t["spectra"] or ()]
    if not found:
        return None
    full = [min(s["rows"], s["columns"]) for s in found]
    shares = {"rank_share": "rank", "effective_share": "effective_rank", "random_rank_share": "random_rank"}
    means = {key: float(np.mean([s[f] / n for s, n in zip(found, full, strict=True)])) for key, f in shares.items()}
    return {"matrices": len(found), "stable_rank": float(np.mean([s["stable_rank"] for s in found])), **means}


def assemble(tensors: list[dict[str, Any]], histograms: dict[str, Any], rank: str = "all") -> dict[str, Any]:
    """A report object around tensors."""
    return {
        "schema": "ckptdiff-report/1",
        "base": "tiny-base",
        "target": "tiny-grpo-lr1e-6",
        "settings": {"atol": 1e-05, "rtol": 0.001, "rank": rank, "as": None, "nulls": {"draws": 0, "seed": 0}},
        "totals": total(tensors),
        "layers": grouped(tensors, "layer"),
        "modules": grouped(tensors, "module"),
        "moves": histograms,
        "size": None,
        "rank": rank_means(tensors),
        "nulls": [],
        "tensors": tensors,
        "added": [],
        "removed": [],
        "unpaired": [],
        "against_zeros": 0,
    }


def sample_report(
    update: Update = rl_update, *, layers: int = 4, width: int = 64, vocabulary: int = 400, rank: str = "all"
) -> dict[str, Any]:
    """The report of a model of random weights after an update; norms are ones, as in a fresh model."""
    rng = np.random.default_rng(7)
    tensors, all_base, all_target = [], [], []
    for name, layer, module, shape in llama(layers, width, vocabulary):
        values = np.ones(shape) if module == "norm" else rng.normal(0, 0.02, shape)
        base = round_bf16(values.astype(np.float32))
        target = update(rng, base)
        tensors.append(one_tensor(name, layer, module, base, target, rank))
        all_base.append(base.ravel())
        all_target.append(target.ravel())
    return assemble(tensors, moves(np.concatenate(all_base), np.concatenate(all_target)), rank)


def without_names(report: dict[str, Any]) -> dict[str, Any]:
    """The same with names that say nothing."""
    tensors = [{**t, "name": f"w{i}", "layer": None, "module": "other"} for i, t in enumerate(report["tensors"])]
    return assemble(tensors, report["moves"])


def many_tensors(report: dict[str, Any], number: int = 2000) -> dict[str, Any]:
    """The same tensors again and again under new layers."""
    part = [t for t in report["tensors"] if t["layer"] == 0]
    tensors = [
        {**t, "name": f"model.layers.{i}.{t['name'].split('.', 3)[3]}", "layer": i} for i in range(number // len(part) + 1) for t in part
    ]
    return assemble(tensors[:number], report["moves"])

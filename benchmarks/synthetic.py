"""Make a synthetic pair of bf16 checkpoints, one file each: random weights and an Adam-like update. No real model.

    python benchmarks/synthetic.py FOLDER --mb 488 --changed 0.01

writes FOLDER/base.safetensors and FOLDER/target.safetensors. fp32 master weights N(0, 0.02) move by an update whose
scale varies by row and column (lognormal), and are rounded to bf16; the update's size is searched for, so that about
the share ``--changed`` of elements differs. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ckptdiff.format.safetensors import predicted_header
from ckptdiff.kernels.casts import cast

WIDTH, HIDDEN = 1024, 2816


def shapes(nbytes: int) -> dict[str, tuple[int, ...]]:
    """Llama-like tensors until they fill ``nbytes`` in bf16; the last is cut."""
    left, found, layer = nbytes // 2, {}, 0

    def add(name: str, *shape: int) -> None:
        nonlocal left
        rows = min(shape[0], left // int(np.prod(shape[1:], dtype=int)))
        if rows:
            found[name] = (rows, *shape[1:])
            left -= int(np.prod(found[name]))

    add("model.embed_tokens.weight", 32000, WIDTH)
    while left >= WIDTH:
        prefix = f"model.layers.{layer}."
        for name, shape in (
            *((f"self_attn.{k}_proj", (WIDTH, WIDTH)) for k in "qkvo"),
            ("mlp.gate_proj", (HIDDEN, WIDTH)),
            ("mlp.up_proj", (HIDDEN, WIDTH)),
            ("mlp.down_proj", (WIDTH, HIDDEN)),
            ("input_layernorm", (WIDTH,)),
        ):
            add(f"{prefix}{name}.weight", *shape)
        layer += 1
    return found


def pair(rng: np.random.Generator, shape: tuple[int, ...], step: float) -> tuple[np.ndarray, np.ndarray]:
    """bf16 bytes of a tensor before and after an update of standard deviation ``step`` times row and column scales."""
    weights = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    scale = rng.lognormal(0, 0.5, (shape[0],) + (1,) * (len(shape) - 1)).astype(np.float32)
    if len(shape) > 1:
        scale = scale * rng.lognormal(0, 0.5, (1, shape[1])).astype(np.float32)
    moved = weights + rng.standard_normal(shape, np.float32) * scale * np.float32(step)
    return tuple(cast(x.reshape(-1).view(np.uint8), "F32", "BF16") for x in (weights, moved))


def find_step(changed: float) -> float:
    """The step that changes the wanted share of a sample, by bisection on its logarithm."""
    low, high = -20.0, 0.0
    for _ in range(24):
        middle = (low + high) / 2
        base, target = pair(np.random.default_rng(1), (512, WIDTH), np.exp(middle))
        share = np.mean(base.view("<u2") != target.view("<u2"))
        low, high = (middle, high) if share < changed else (low, middle)
    return float(np.exp(low))


def write(folder: Path, megabytes: float, changed: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found, step, rng = shapes(int(megabytes * 1e6)), find_step(changed), np.random.default_rng(0)
    header = predicted_header((name, "BF16", shape, 2 * int(np.prod(shape))) for name, shape in found.items())
    differ = total = 0
    with open(folder / "base.safetensors", "wb") as old, open(folder / "target.safetensors", "wb") as new:
        for file in (old, new):
            file.write(len(header).to_bytes(8, "little") + header)
        for shape in found.values():
            base, target = pair(rng, shape, step)
            old.write(base)
            new.write(target)
            differ += int(np.count_nonzero(base.view("<u2") != target.view("<u2")))
            total += len(base) // 2
    print(f"{folder}: {2 * total / 1e6:.0f} MB each, {100 * differ / total:.3f} % of {total:,} elements changed, step {step:.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=488, help="size of each file in 10^6 bytes")
    parser.add_argument("--changed", type=float, default=0.01, help="share of elements that changes")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.mb, arguments.changed)

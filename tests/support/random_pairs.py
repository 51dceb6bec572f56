"""Random pairs of checkpoints that use everything the format can say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.checkpoints import BITS, TensorData, perturb, random_tensor, write, write_sharded

SHAPES = [(), (0,), (1,), (8,), (4, 6), (3, 4, 2), (40, 12), (5, 0, 4), (1000,)]


def related(rng: np.random.Generator, name: str, base: dict[str, TensorData], target: dict[str, TensorData]) -> None:
    """Add a tensor to both sides, or to one, in one of the ways that the format knows."""
    dtype = str(rng.choice(sorted(BITS)))
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    if BITS[dtype] < 8:
        shape = (*(shape or (3,)), 8)
    tensor = random_tensor(rng, dtype, shape)
    kind = rng.choice(["same", "delta", "dense", "more", "fewer", "cast", "added", "removed", "renamed", "prefix", "copy"])
    if kind != "added":
        base[name] = tensor
    if kind in ("same", "added"):
        target[name] = tensor
    elif kind in ("delta", "dense"):
        target[name] = perturb(rng, tensor, 0.05 if kind == "delta" else 0.9)
    elif kind in ("more", "fewer") and len(shape) and shape[0]:
        rows = shape[0] + (3 if kind == "more" else -1)
        nbytes = len(tensor[2]) // shape[0] * rows
        data = perturb(rng, tensor, 0.1)[2][:nbytes]
        target[name] = (dtype, (rows, *shape[1:]), data + rng.bytes(nbytes - len(data)))
    elif kind == "cast":
        source, wide = [("BF16", "F32"), ("F16", "F32"), ("F32", "BF16")][int(rng.integers(3))]
        base[name] = random_tensor(rng, source, (50,))
        target[name] = random_tensor(rng, wide, (50,))
        if source == "BF16" and rng.random() < 0.7:
            exact = np.frombuffer(base[name][2], "<u2").astype("<u4") << 16
            target[name] = ("F32", (50,), exact.tobytes())
    elif kind == "renamed":
        target[f"new.{name}"] = tensor
    elif kind == "prefix":
        target[f"model.{name}"] = perturb(rng, tensor, 0.1)
    elif kind == "copy":
        target[name] = target[f"{name}.copy"] = perturb(rng, tensor, 0.3)
    elif kind != "removed":
        target[name] = tensor


def random_pair(rng: np.random.Generator, folder: Path) -> tuple[Path, Path]:
    """Write a base and a target: files or folders, sharded alike or not."""
    base: dict[str, TensorData] = {}
    target: dict[str, TensorData] = {}
    for k in range(int(rng.integers(1, 8))):
        related(rng, f"layers.{k}.{rng.choice(['weight', 'gewicht-ü', 'w'])}", base, target)
    order = list(target)
    rng.shuffle(order)
    target = {name: target[name] for name in order}
    metadata = [None, {"format": "pt"}, {"format": "pt", "ü": "\U0001f600", "z": '"'}][int(rng.integers(3))]
    if rng.random() < 0.6:
        pad = int(rng.integers(1, 17))
        first = bool(rng.random() < 0.7)
        return write(folder / "base.safetensors", base), write(folder / "target.safetensors", target, metadata, pad, first)
    for side, tensors in (("base", base), ("target", target)):
        count = int(rng.integers(1, 4))
        names = list(tensors)
        shards = {f"model-{k + 1:05}-of-{count:05}.safetensors": {n: tensors[n] for n in names[k::count]} for k in range(count)}
        write_sharded(folder / side, shards, "model.safetensors.index.json" if rng.random() < 0.7 else None)
        for name in ("config.json", "sub/notes.txt", "only.txt"):
            if rng.random() < 0.7:
                (folder / side / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / side / name).write_bytes(b"common text " * 20 + rng.bytes(int(rng.integers(0, 30))) * int(rng.integers(0, 2)))
    return folder / "base", folder / "target"

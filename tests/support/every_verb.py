"""Runs every verb over every dtype, and prints which kernels were compiled for them."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import event

import ckptdiff
from ckptdiff.kernels import cache
from tests.support.checkpoints import BITS, TensorData, bf16, perturb, random_tensor, write, write_sharded


def tensors(rng: np.random.Generator) -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    """Every dtype: a few changes, many, all; of one element, of several blocks, of large matrices."""
    base: dict[str, TensorData] = {}
    target: dict[str, TensorData] = {}
    for dtype in BITS:
        for share in (0.001, 0.05, 0.9):
            base[f"{dtype}.{share}"] = random_tensor(rng, dtype, (72, 40))
            target[f"{dtype}.{share}"] = perturb(rng, base[f"{dtype}.{share}"], share)
        base[f"{dtype}.none"] = target[f"{dtype}.none"] = random_tensor(rng, dtype, (0, 8))
        base[f"{dtype}.one"], target[f"{dtype}.one"] = (random_tensor(rng, dtype, (8,)) for _ in range(2))
    for k, share in enumerate((0.002, 0.3)):
        base[f"layers.{k}.q_proj.weight"] = bf16(rng.normal(0, 0.02, (1200, 1000)))
        numbers = rng.normal(0, 0.02, (200, 300)).astype("<f4")
        base[f"layers.{k}.norm.weight"], base[f"layers.{k}.k_proj.weight"] = (
            ("F32", (200, 300), numbers.tobytes()),
            ("F64", (200, 300), numbers.astype("<f8").tobytes()),
        )
        base[f"layers.{k}.v_proj.weight"] = ("F16", (200, 300), numbers.astype("<f2").tobytes())
        for name in ("q_proj", "norm", "k_proj", "v_proj"):
            dtype, shape, data = base[f"layers.{k}.{name}.weight"]
            units = np.frombuffer(data, f"<u{BITS[dtype] // 8}").copy()
            units[rng.random(len(units)) < share] ^= 1
            target[f"layers.{k}.{name}.weight"] = dtype, shape, units.tobytes()
    units = rng.integers(0x3C00, 0x3D00, (300, 80)).astype("<u2")
    base["lines"] = "BF16", units.shape, units.tobytes()
    units[::5] += rng.integers(1, 9, units[::5].shape).astype("<u2")  # whole rows: the coder goes by how active they are
    target["lines"] = "BF16", units.shape, units.tobytes()
    return base, target


def run_verbs(folder: Path) -> None:
    base, target = tensors(np.random.default_rng(5))
    write(folder / "base.safetensors", base)
    write(folder / "target.safetensors", target)
    write_sharded(folder / "shards", {"a.safetensors": dict(list(target.items())[::2]), "b.safetensors": dict(list(target.items())[1::2])})
    write_sharded(folder / "whole", {"model.safetensors": base}, None)
    one, two = folder / "base.safetensors", folder / "target.safetensors"
    found = ckptdiff.report(one, two, rank="all")
    for codec in ("context", "sparse", "raw", None):
        ckptdiff.make(one, two, patch := folder / f"{codec}.safetensors", codec=codec, report=found)
        ckptdiff.apply(one, patch, folder / f"{codec}-out.safetensors")
        assert (folder / f"{codec}-out.safetensors").read_bytes() == two.read_bytes()
    ckptdiff.make(two, one, back := folder / "back.safetensors", codec="sparse")
    forth = folder / "sparse.safetensors"
    ckptdiff.compose([forth, back, forth], output=folder / "composed.safetensors")
    for base in (None, one):
        assert all(len(change.positions) for change in ckptdiff.Patch.open(forth).changes(base=base))
        assert ckptdiff.verify(patch, base=one, target=two).ok
        ckptdiff.report(one, patch, rank="sample")
    ckptdiff.make(folder / "whole", folder / "shards", folder / "patch", threads=1)
    ckptdiff.apply(folder / "whole", folder / "patch", folder / "some.safetensors", only=["*q_proj*"])
    ckptdiff.compare(two, folder / "shards")
    ckptdiff.report(one, two, rank="none", atol=1e-3)
    ckptdiff.overlap([folder / "context.safetensors", folder / "sparse.safetensors", two], one, atol=1e-5)
    mask = ckptdiff.Mask.from_patch(folder / "context.safetensors", one)
    mask.save(folder / "mask.safetensors")
    ckptdiff.Mask.union(mask, mask.random(1)).precision(ckptdiff.Mask.load(folder / "mask.safetensors"))


def run_live() -> None:
    rng = np.random.default_rng(6)
    arrays: dict[str, Any] = {kind: rng.integers(0, 99, (60, 70)).astype(kind) for kind in "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8 c8".split()}
    moved = {kind: array + (rng.random(array.shape) < 0.2).astype(kind) for kind, array in arrays.items()}
    for codec, closed in itertools.product(("context", "sparse", "raw", None), ((), (arrays,), (moved,), (arrays, moved))):
        for array in itertools.chain(arrays.values(), moved.values()):
            array.flags.writeable = not any(array is some for side in closed for some in side.values())
        model = {kind: array.copy() for kind, array in arrays.items()}
        with ckptdiff.Patch.from_bytes(ckptdiff.diff(arrays, moved, codec=codec).to_bytes()) as patch:
            loaded = patch.load(model)
            loaded.apply_()
            loaded.revert_()
            patch.apply_(model)
        assert all((model[kind] == moved[kind]).all() for kind in arrays)


def run_subnetwork() -> None:
    import torch

    from ckptdiff.subnetwork import Mask, freeze_outside

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adamax):
            model = torch.nn.Linear(30, 20).to(dtype)
            optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1)
            freeze_outside(model, Mask.from_arrays({"weight": np.random.default_rng(0).random((20, 30)) < 0.3}), optimizer)
            for _ in range(3):
                model(torch.ones(2, 30, dtype=dtype)).float().sum().backward()
                optimizer.step()


def every_verb(folder: Path) -> None:
    """Run every verb over every dtype, and print as JSON what was compiled, and how many kernels were read."""
    with event.install_recorder("numba:compile") as recorder:
        run_verbs(folder)
        run_live()
        if importlib.util.find_spec("torch"):
            run_subnetwork()
    compiled = [f"{found.data['dispatcher'].py_func.__name__}{found.data['args']}" for _, found in recorder.buffer if found.is_start]
    print(json.dumps({"compiled": compiled, "read": len(cache.read_files)}))

"""Checkpoint folders in every layout: shards with and without an index, a Hub cache, a series of checkpoints."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from tests.support.casts import f16_as_f32, f32_as_bf16
from tests.support.checkpoints import TensorData, perturb, random_tensor, tensor, write_sharded
from tests.support.roundtrips import MIB2, Tensors, put, resized

LAYOUTS: dict[str, tuple[list[str], str | None]] = {
    "one file": (["model.safetensors"], None),
    "another name": (["weights v2.safetensors"], None),
    "two shards": ([f"model-0000{k}-of-00002.safetensors" for k in (1, 2)], "model.safetensors.index.json"),
    "two without index": ([f"model-0000{k}-of-00002.safetensors" for k in (1, 2)], None),
    "three shards": ([f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)], "model.safetensors.index.json"),
    "three by index only": (["x.safetensors", "y.safetensors", "sub/z.safetensors"], "model.safetensors.index.json"),
}


def lay_out(folder: Path, tensors: Tensors, layout: str) -> Path:
    """Write tensors into a folder in one of the LAYOUTS, dealt out in turn."""
    files, index = LAYOUTS[layout]
    names = list(tensors)
    shards = {file: {name: tensors[name] for name in names[k :: len(files)]} for k, file in enumerate(files)}
    return write_sharded(folder, shards, index)


def to_hub_cache(folder: Path, cache: Path) -> Path:
    """Store a folder as the Hugging Face Hub does: a snapshot of links to blobs."""
    snapshot = cache / "models--org--name" / "snapshots" / "0123abcd"
    blobs = cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def steps(tmp: Path, rng: np.random.Generator, rows: int) -> list[Path]:
    """Four checkpoints, each made from the one before by changes, casts, new rows, renames, re-sharding and file changes."""
    w, e, s = random_tensor(rng, "BF16", [rows, 4]), random_tensor(rng, "BF16", [9, 3]), random_tensor(rng, "F32", [7])
    first = {"w": w, "e": e, "s": s, "old": random_tensor(rng, "I64", [4])}
    w2, e2 = resized(perturb(rng, w, 0.001), rows + 5, b"\x80\x3f"), perturb(rng, e, 0.1)
    second = {"w": w2, "e": e2, "head": e2, "s": s, "fresh": random_tensor(rng, "F16", [5, 5])}
    wide = tensor("F32", w2[1], np.frombuffer(w2[2], "<u2").astype("<u4") << 16)
    third = {"module.w": perturb(rng, wide, 0.001), "module.e": e2, "module.head": perturb(rng, e2, 0.1), "moved": s,
             "module.fresh": tensor("F32", [5, 5], f16_as_f32(np.frombuffer(second["fresh"][2], "<u2")))}  # fmt: skip
    narrow = f32_as_bf16(np.frombuffer(third["module.w"][2], "<u4"))
    w4 = perturb(rng, resized(tensor("BF16", w2[1], narrow), rows - 3, b""), 0.001)
    fourth = {"w": w4, "e": e2, "head": e2, "s": s, "fresh": third["module.fresh"]}
    layouts = ("two without index", "two shards", "three by index only", "one file")
    folders = []
    for k, (tensors, layout) in enumerate(zip((first, second, third, fourth), layouts, strict=True)):
        folders.append(lay_out(tmp / f"step{k}", tensors, layout))
        tokens = "".join(f"token {i}\n" for i in range(500 + 10 * k))
        put(folders[k], {"tokenizer.json": tokens, "README": "same", "tmp/config.json": f"{k // 2}"})
    (folders[1] / "README").unlink()
    return folders


def busy(tmp: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Two folders with enough blocks, kinds and files to keep eight threads apart."""
    base: dict[str, TensorData] = {f"layer.{i:02}": random_tensor(rng, "BF16", [50, 40]) for i in range(30)}
    base |= {"big": random_tensor(rng, "F32", [(2 * MIB2 + 400) // 4]), "dense": random_tensor(rng, "U8", [MIB2 + 5])}
    target = {name: perturb(rng, data, (0, 0.001, 0.3)[i % 3]) for i, (name, data) in enumerate(base.items())}
    target |= {"big": perturb(rng, base["big"], 0.0001), "dense": random_tensor(rng, "U8", [MIB2 + 5]), "again": target["layer.01"]}
    target |= {"moved": base["layer.00"], "fresh": random_tensor(rng, "F16", [33])}
    del target["layer.00"]
    a, b = lay_out(tmp / "base", base, "two shards"), lay_out(tmp / "target", target, "three shards")
    put(a, {f"{i}.json": f"text {i} " * 500 for i in range(6)})
    put(b, {f"{i}.json": f"text {i + i % 2} " * 500 for i in range(8)})
    return a, b

"""Made pairs of checkpoints: a transformer's tensors with random weights, before and after an Adam-like update.

    python benchmarks/made_pairs.py FOLDER --mb 488 --changed 12
    python benchmarks/made_pairs.py FOLDER --mb 122 --dtype F32
    python benchmarks/made_pairs.py FOLDER --renamed
    python benchmarks/made_pairs.py --count BASE TARGET

writes FOLDER/base.safetensors, FOLDER/target.safetensors and FOLDER/pair.json; with ``--renamed`` also FOLDER/renamed.safetensors, the
target under names that a trainer wraps, none of which the base has. No real model: weights are normal with a
scale per tensor and row, norms lie near one. The fp32 master weights move by a normal update whose scale varies by row
and column (lognormal). A bf16 pair holds both sides of that rounded to nearest even, and the update's size is searched
for, so that about ``--changed`` per cent of the elements differ. In an fp32 pair every element moves. Memory is bounded
by one chunk of rows, and the same arguments give the same bytes with one version of NumPy. ``--count`` prints, as JSON,
the elements of a pair of safetensors files and how many differ in their bits. Does not import ckptdiff.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 21  # elements made at a time
F32_STEP = 1e-5  # standard deviation of an fp32 pair's update, before row and column scale
ITEM = {"BF16": 2, "F32": 4}
Floats = NDArray[np.float32]
Sides = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Recipe:
    """All that a made pair depends on; ``changed`` is in per cent and says nothing for F32, where all move."""

    mb: float
    changed: float = 100.0
    dtype: str = "BF16"
    seed: int = 0


@dataclass(frozen=True)
class Spec:
    """One tensor: its weights are ``mean`` + N(0, ``deviation`` x a scale of the row)."""

    name: str
    shape: tuple[int, ...]
    mean: float
    deviation: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1


def layer(index: int, width: int, hidden: int) -> list[Spec]:
    """A decoder layer with grouped-query attention, a gated MLP and two norms."""
    prefix, inner = f"model.layers.{index}.", 0.8 / math.sqrt(width)
    return [
        Spec(f"{prefix}input_layernorm.weight", (width,), 1.0, 0.1),
        Spec(f"{prefix}self_attn.q_proj.weight", (width, width), 0.0, 1.2 * inner),
        Spec(f"{prefix}self_attn.k_proj.weight", (width // 4, width), 0.0, 1.2 * inner),
        Spec(f"{prefix}self_attn.v_proj.weight", (width // 4, width), 0.0, inner),
        Spec(f"{prefix}self_attn.o_proj.weight", (width, width), 0.0, inner),
        Spec(f"{prefix}post_attention_layernorm.weight", (width,), 1.0, 0.1),
        Spec(f"{prefix}mlp.gate_proj.weight", (hidden, width), 0.0, inner),
        Spec(f"{prefix}mlp.up_proj.weight", (hidden, width), 0.0, inner),
        Spec(f"{prefix}mlp.down_proj.weight", (width, hidden), 0.0, 0.8 / math.sqrt(hidden)),
    ]


def model(nbytes: int, itemsize: int) -> list[Spec]:
    """Tensors of about ``nbytes`` in all: whole layers, and as many vocabulary rows as are left."""
    if nbytes < 100_000_000:
        width, hidden, vocabulary = 384, 1024, 8192
    elif nbytes < 1_500_000_000:
        width, hidden, vocabulary = 1024, 2816, 32000
    else:
        width, hidden, vocabulary = 2048, 5632, 64000
    elements = nbytes // itemsize
    each = sum(spec.size for spec in layer(0, width, hidden))
    count = max(1, round((elements - vocabulary * width) / each))
    rows = max(1, (elements - count * each) // width - 1)
    embedding = Spec("model.embed_tokens.weight", (rows, width), 0.0, 0.02)
    layers = [spec for index in range(count) for spec in layer(index, width, hidden)]
    return [embedding, *layers, Spec("model.norm.weight", (width,), 1.0, 0.1)]


def header(specs: list[Spec], dtype: str) -> bytes:
    """Length and JSON of a safetensors header, padded with spaces to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        end = at + spec.size * ITEM[dtype]
        entries[spec.name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def chunks(spec: Spec, *seed: int, most: int | None = None) -> Iterator[tuple[Floats, Floats]]:
    """Runs of rows of a tensor: fp32 master weights, and their update of unit size. ``most`` ends after some rows."""
    rng = np.random.default_rng(seed)
    columns = rng.lognormal(0, 0.5, spec.columns).astype(np.float32)
    rows, step = most or spec.shape[0], max(1, CHUNK // spec.columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        scale = rng.lognormal(0, 0.15, (count, 1)).astype(np.float32) * np.float32(spec.deviation)
        weights = rng.standard_normal((count, spec.columns), np.float32)
        weights *= scale
        weights += np.float32(spec.mean)
        update = rng.standard_normal((count, spec.columns), np.float32)
        update *= rng.lognormal(0, 0.5, (count, 1)).astype(np.float32)
        update *= columns
        yield weights, update


def bf16(values: Floats) -> NDArray[np.uint16]:
    """Bits of finite fp32 values rounded to bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def sides(weights: Floats, update: Floats, step: float, dtype: str) -> Sides:
    """Both sides of a run of rows, as bit patterns."""
    moved = weights + update * np.float32(step)
    if dtype == "BF16":
        return bf16(weights), bf16(moved)
    moved = np.where(moved == weights, np.nextafter(weights, np.float32(np.inf)), moved)
    return weights.view(np.uint32), moved.view(np.uint32)


def find_step(specs: list[Spec], recipe: Recipe) -> float:
    """The update's size that changes the wanted share, by bisection on its logarithm over a few rows of each kind."""
    if recipe.dtype != "BF16":
        return F32_STEP
    kinds = {spec.name.split(".")[-2]: spec for spec in specs}
    weight = {kind: sum(s.size for s in specs if s.name.split(".")[-2] == kind) for kind in kinds}
    most = {kind: min(spec.shape[0], 1 + 300_000 // spec.columns) for kind, spec in kinds.items()}
    probes = {k: next(chunks(spec, recipe.seed, 1 << 20, i, most=most[k])) for i, (k, spec) in enumerate(kinds.items())}
    low, high = -20.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        differ = 0.0
        for kind, probe in probes.items():
            base, target = sides(*probe, math.exp(middle), "BF16")
            differ += weight[kind] * float(np.mean(base != target))
        low, high = (middle, high) if 100 * differ / sum(weight.values()) < recipe.changed else (low, middle)
    return math.exp(low)


def write(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Write a pair; its facts are returned and stored in pair.json, last."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = model(int(recipe.mb * 1e6), ITEM[recipe.dtype])
    step, start = find_step(specs, recipe), header(specs, recipe.dtype)
    differ = total = 0
    with open(folder / "base.part", "wb") as old, open(folder / "target.part", "wb") as new:
        old.write(start)
        new.write(start)
        for index, spec in enumerate(specs):
            for weights, update in chunks(spec, recipe.seed, index):
                base, target = sides(weights, update, step, recipe.dtype)
                old.write(base.data)
                new.write(target.data)
                differ += int(np.count_nonzero(base != target))
                total += base.size
    for side in ("base", "target"):
        os.replace(folder / f"{side}.part", folder / f"{side}.safetensors")
    nbytes = (folder / "target.safetensors").stat().st_size
    facts = {"recipe": asdict(recipe), "bytes": nbytes, "step": step}
    facts |= {"elements": total, "changed": differ, "percent": 100 * differ / total}
    (folder / "pair.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def kept(folder: Path) -> dict[str, Any]:
    """The facts of a complete pair in ``folder``; empty if there is none."""
    files = [folder / name for name in ("base.safetensors", "target.safetensors", "pair.json")]
    found: dict[str, Any] = json.loads(files[-1].read_text()) if all(file.exists() for file in files) else {}
    return found


def ensure(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The facts of the pair in ``folder``, made first unless it is there. A pair by another recipe is left alone."""
    found = kept(folder)
    if found and found["recipe"] != asdict(recipe):
        raise SystemExit(f"{folder} holds a pair by another recipe, {found['recipe']}: remove it or name another folder")
    return found or write(folder, recipe)


def mapped(path: Path) -> dict[str, tuple[int, NDArray[np.uint8]]]:
    """Bytes of one element (at least one), and all bytes, of each tensor."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    data, found = np.memmap(path, np.uint8, "r"), {}
    for name, entry in entries.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = (max(1, (end - begin) // max(1, math.prod(entry["shape"]))), data[begin:end])
    return found


def count(base: Path, target: Path) -> dict[str, Any]:
    """Elements of the target, and how many are not the base's: bits, not values."""
    old, elements, differ = mapped(base), 0, 0
    for name, (itemsize, data) in mapped(target).items():
        elements += len(data) // itemsize
        if name not in old or len(old[name][1]) != len(data):
            differ += len(data) // itemsize
            continue
        for first in range(0, len(data), itemsize * CHUNK):
            unequal = data[first : first + itemsize * CHUNK] != old[name][1][first : first + itemsize * CHUNK]
            differ += int(np.count_nonzero(unequal.reshape(-1, itemsize).any(axis=1)))
    return {"elements": elements, "changed": differ, "percent": 100 * differ / max(1, elements)}


def rename(folder: Path) -> Path:
    """The target of the pair in ``folder`` with other names, which is made unless it is there."""
    path = folder / "renamed.safetensors"
    if not path.exists():
        with open(folder / "target.safetensors", "rb") as source, open(folder / "renamed.part", "wb") as out:
            entries = json.loads(source.read(int.from_bytes(source.read(8), "little")))
            names = {name: f"actor.{name.replace('.self_attn.', '._fsdp_wrapped_module.self_attn.')}" for name in entries}
            text = json.dumps(
                {names[n] if n != "__metadata__" else n: entry for n, entry in entries.items()}, separators=(",", ":")
            ).encode()
            text += b" " * (-len(text) % 8)
            out.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(source, out, CHUNK)
        os.replace(folder / "renamed.part", path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--mb", type=float, default=488, help="size of each file in 10^6 bytes")
    parser.add_argument("--changed", type=float, default=1.0, help="per cent of elements that changes (bf16)")
    parser.add_argument("--dtype", choices=sorted(ITEM), default="BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--renamed", action="store_true", help="also the target with other names")
    parser.add_argument("--count", type=Path, nargs=2, metavar=("BASE", "TARGET"))
    found = parser.parse_args()
    if found.count:
        print(json.dumps(count(*found.count)))
        return
    if not found.folder:
        parser.error("want FOLDER or --count")
    facts = ensure(found.folder, Recipe(found.mb, 100.0 if found.dtype == "F32" else found.changed, found.dtype, found.seed))
    if found.renamed:
        rename(found.folder)
    share = f"{facts['percent']:.3f} % of {facts['elements']:,} {found.dtype} elements changed"
    print(f"{found.folder}: {facts['bytes']:,} bytes each, {share}, step {facts['step']:.3g}")


if __name__ == "__main__":
    main()

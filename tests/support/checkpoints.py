"""Small checkpoints for tests, written without ckptdiff, and folders compared byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E8M0", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of an element of every safetensors dtype, written here once more on purpose."""

SHARED_DATA = Path(os.environ.get("CKPTDIFF_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
"""Real checkpoint pairs, by default those that lie beside the checkout on the project's machines."""

TensorData = tuple[str, Sequence[int], bytes]


def tensor(dtype: str, shape: Sequence[int], data: bytes | np.ndarray) -> TensorData:
    """A tensor as (dtype, shape, bytes); checks that the sizes agree."""
    data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
    assert len(data) * 8 == BITS[dtype] * int(np.prod(shape, dtype=int)), (dtype, shape, len(data))
    return dtype, tuple(shape), data


def bf16(values: Any) -> TensorData:
    """A BF16 tensor of values cut (not rounded) to 16 bits."""
    array = np.asarray(values, np.float32)
    return tensor("BF16", array.shape, (array.view(np.uint32) >> 16).astype("<u2"))


def write(
    path: Path, tensors: Mapping[str, TensorData], metadata: Mapping[str, str] | None = None, pad: int = 8, first: bool = True
) -> Path:
    """Write a safetensors file with the tensors in the order given; ``first`` puts ``__metadata__`` before or after them."""
    header: dict[str, Any] = {}
    if metadata is not None and first:
        header["__metadata__"] = dict(metadata)
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    if metadata is not None and not first:
        header["__metadata__"] = dict(metadata)
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % pad)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(data for _, _, data in tensors.values()))
    return path


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, TensorData]], index: str | None = "model.safetensors.index.json") -> Path:
    """Write a folder of shards, with an index unless ``index`` is None."""
    for name, tensors in shards.items():
        write(folder / name, tensors, {"format": "pt"})
    if index:
        weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tree(path: Path) -> dict[str, str]:
    """SHA-256 of a file (as ``.``) or of every file below a folder."""
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    return {p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def perturb(rng: np.random.Generator, data: TensorData, share: float) -> TensorData:
    """The tensor with about ``share`` of its bytes changed at random (at least one, unless it is empty or share is 0)."""
    dtype, shape, raw = data
    out = np.frombuffer(raw, np.uint8).copy()
    if len(out) and share:
        chosen = rng.random(len(out)) < share
        chosen[rng.integers(len(out))] = True
        out[chosen] ^= rng.integers(1, 256, int(chosen.sum()), dtype=np.uint8)
    return dtype, shape, out.tobytes()


def random_tensor(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> TensorData:
    """A tensor of random bits."""
    return tensor(dtype, shape, rng.bytes(int(np.prod(shape, dtype=int)) * BITS[dtype] // 8))


def carrier(dtype: str) -> int:
    """Bytes of a unit (spec section 4), written here once more on purpose."""
    return 4 if dtype == "C64" else max(BITS[dtype] // 8, 1)


def changed_units(a: TensorData, b: TensorData) -> int:
    """How many units of two tensors of one dtype differ where both have them, plus the non-zero units that only ``b`` has."""
    unit = f"<u{carrier(a[0])}"
    x, y = np.frombuffer(a[2], unit), np.frombuffer(b[2], unit)
    common = min(len(x), len(y))
    return int(np.count_nonzero(x[:common] != y[:common]) + np.count_nonzero(y[common:]))


def write_raw(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    """Write a safetensors file whose header is exactly these bytes."""
    raw = header if isinstance(header, bytes) else header.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path

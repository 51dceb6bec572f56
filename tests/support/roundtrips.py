"""Make a patch, apply it, compare every byte: of files, of tensors in files, and of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ckptdiff
from ckptdiff.verbs.info import PatchInfo, TensorRow
from tests.support.checkpoints import TensorData, bf16, tree, write

MIB2 = 1 << 21
CODECS = [None, "raw", "sparse", "context"]
Tensors = Mapping[str, TensorData]


def roundtrip(tmp: Path, base: Path, target: Path, **options: Any) -> PatchInfo:
    """Make a patch, apply it, compare every byte, verify it, and say what it holds."""
    patch, out = tmp / "the patch", tmp / "the output"
    threads = 1 if target.is_file() and target.stat().st_size < MIB2 else 2
    ckptdiff.make(base, target, patch, threads=threads, force=True, **options)  # random pairs may have nothing in common
    ckptdiff.apply(base, patch, out, threads=threads)
    assert tree(out) == tree(target)
    found = ckptdiff.verify(patch, base=base, target=target, threads=threads)
    assert found.ok, found.problems
    return ckptdiff.info(patch)


def pair(tmp: Path, base: Tensors, target: Tensors, **options: Any) -> dict[str, TensorRow]:
    """Roundtrip of two files of these tensors: the rows of the patch by tensor name."""
    old = write(tmp / "base.safetensors", base, {"format": "pt"})
    new = write(tmp / "target.safetensors", target, {"format": "pt"})
    return {row.name: row for row in roundtrip(tmp, old, new, **options).tensors}


def one(tmp: Path, base: TensorData, target: TensorData, **options: Any) -> TensorRow:
    """Roundtrip of two files with one tensor each, between two that never change."""
    fence = bf16([1, 2, 3])
    rows = pair(tmp, {"a": fence, "w": base, "z": fence}, {"a": fence, "w": target, "z": fence}, **options)
    assert rows["a"].kind == rows["z"].kind == "same"
    return rows["w"]


def kinds(info: PatchInfo) -> dict[tuple[str, str], str]:
    return {(row.file, row.name): row.kind for row in info.tensors}


def file_kinds(info: PatchInfo) -> dict[str, str]:
    return {row.path: row.kind for row in info.files if row.kind != "weights"}


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write other files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def resized(data: TensorData, rows: int, fill: bytes) -> TensorData:
    """A tensor cut or extended to ``rows`` rows; new bytes repeat ``fill``."""
    dtype, shape, raw = data
    size = len(raw) * rows // shape[0]
    return dtype, (rows, *shape[1:]), (raw + fill * size)[:size]

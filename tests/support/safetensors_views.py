"""A safetensors file as the safetensors library reads it, and as ckptdiff does."""

from __future__ import annotations

from pathlib import Path

import safetensors

from ckptdiff.format.safetensors import read_header
from ckptdiff.io.source import LocalFile, read_bytes
from tests.support.checkpoints import TensorData


def library_view(data: bytes) -> dict[str, TensorData]:
    """What the safetensors library reads from the bytes of a file."""
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(data)}


def our_view(path: Path) -> dict[str, TensorData]:
    """What ckptdiff.format.safetensors reads from a file."""
    file = LocalFile(path)
    try:
        header = read_header(file)
        return {t.name: (t.dtype, t.shape, read_bytes(file, header.data_start + t.begin, t.nbytes)) for t in header.tensors}
    finally:
        file.close()

"""Chains of checkpoints and of the patches between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ckptdiff
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import TensorData, tree, write

Tensors = Mapping[str, TensorData]


def chain(folder: Path, states: Sequence[Tensors], codec: str | None = "sparse") -> tuple[list[Path], list[Path]]:
    """Write a file of each state, and make a patch from each to the next."""
    files = [write(folder / f"{k}.safetensors", state, {"format": "pt"}) for k, state in enumerate(states)]
    patches = [folder / f"patch-{k}.safetensors" for k in range(len(files) - 1)]
    for k, patch in enumerate(patches):
        ckptdiff.make(files[k], files[k + 1], patch, codec=codec, force=True, threads=1)
    return files, patches


def direct(files: Sequence[Path], out: Path, codec: str | None = "sparse") -> Path:
    """The patch that ``make`` gives of the first and the last."""
    ckptdiff.make(files[0], files[-1], out, codec=codec, force=True, threads=1)
    return out


def check_composed(files: Sequence[Path], patches: Sequence[Path], out: Path, **options: Any) -> Path:
    """Compose, and check that the result turns the first checkpoint into the last."""
    ckptdiff.compose(patches, output=out, threads=1, **options)
    assert ckptdiff.verify(out, base=files[0], target=files[-1], threads=1).ok
    applied = out.with_name(f"{out.name}-applied")
    ckptdiff.apply(files[0], out, applied, threads=1)
    assert tree(applied) == tree(files[-1])
    return out


def kinds(patch: Path) -> dict[str, tuple[str, str | None]]:
    """Kind and codec of each entry."""
    with open_patch(patch) as opened:
        return {entry.name: (entry.kind, entry.codec) for file in opened.files for entry in file.table.entries}


def moved(rng: np.random.Generator, data: TensorData, units: int) -> TensorData:
    """A BF16 tensor of which a few units have moved by an ulp."""
    values = np.frombuffer(data[2], "<u2").copy()
    values[rng.integers(0, len(values), units)] ^= 1
    return data[0], data[1], values.tobytes()

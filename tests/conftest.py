"""Fixtures: one small pair as files and as folders, and a patch of each."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.kernels import cache
from tests.support.checkpoints import bf16, perturb, random_tensor, write, write_sharded

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait for each other by spinning: many times slower on busy cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, so that no worker is left alone with one at the end."""
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -slow[item.path])


@dataclass(frozen=True)
class Pair:
    """A base, a target made from it, and the patch between them."""

    base: Path
    target: Path
    patch: Path


def tensors() -> tuple[dict, dict]:
    rng = np.random.default_rng(3)
    base = {"a.weight": bf16(rng.normal(0, 0.02, (40, 64))), "b.weight": random_tensor(rng, "F32", (30,)), "c": bf16([1.0, 2.0])}
    target = {**base, "a.weight": perturb(rng, base["a.weight"], 0.02), "b.weight": perturb(rng, base["b.weight"], 0.1)}
    return base, target


@pytest.fixture
def files(tmp_path: Path) -> Pair:
    """A pair of single files and the patch file between them."""
    base, target = tensors()
    write(tmp_path / "base.safetensors", base)
    write(tmp_path / "target.safetensors", target, {"format": "pt"})
    ckptdiff.make(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "patch.safetensors")
    return Pair(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "patch.safetensors")


@pytest.fixture
def folders(tmp_path: Path) -> Pair:
    """A pair of folders, sharded differently, and the patch folder between them."""
    base, target = tensors()
    write_sharded(tmp_path / "base", {"model.safetensors": base}, index=None)
    names = list(target)
    shards = {
        "model-00001-of-00002.safetensors": {n: target[n] for n in names[:1]},
        "model-00002-of-00002.safetensors": {n: target[n] for n in names[1:]},
    }
    write_sharded(tmp_path / "target", shards)
    for side in ("base", "target"):
        (tmp_path / side / "config.json").write_text(json.dumps({"side": side, "same": "x" * 200}))
        (tmp_path / side / "tokenizer.json").write_text("same on both sides")
    (tmp_path / "target" / "README.md").write_text("new")
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "patch")
    return Pair(tmp_path / "base", tmp_path / "target", tmp_path / "patch")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can get to, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="ckptdiff-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that this process keeps kernels in."""
    monkeypatch.setenv("CKPTDIFF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    cache.folders.cache_clear()
    yield tmp_path / "cache"
    cache.folders.cache_clear()

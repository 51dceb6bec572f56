"""Triton's kernels, by its interpreter on a CPU: ``tests/test_gpu.py`` runs them on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'ckptdiff[torch]'")
pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from ckptdiff import deviceleaves  # noqa: E402

CODE = """
import numpy as np, torch
from ckptdiff import deviceleaves
from ckptdiff.digests import BLOCK, leaves_of

deviceleaves._has_kernels = lambda device: True
deviceleaves._sums = None  # torch's way
data = np.random.default_rng(3).integers(0, 256, 5 * BLOCK + 100, dtype=np.uint8)
data[:BLOCK] = 255
parts = [data, data[: BLOCK - 1], data[3 : BLOCK + 3], data[5:]]  # the last two are not aligned
assert deviceleaves.leaf_digests([torch.from_numpy(part) for part in parts]) == [leaves_of(part) for part in parts]
"""


@pytest.mark.slow
def test_xxh3() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=300, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deviceleaves._has_kernels(torch.device("cuda")) and not deviceleaves._has_kernels(torch.device("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not deviceleaves._has_kernels(torch.device("cuda"))

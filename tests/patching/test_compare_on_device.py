"""Which tensors the device encodes, and which go to the host."""

from __future__ import annotations

import numpy as np
import pytest

import ckptdiff

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.patching.compare_on_device import DeviceComparer  # noqa: E402
from tests.support.torch_states import tensor  # noqa: E402


def test_a_device_leaves_to_the_host_what_it_must() -> None:
    """Cast and resized bases, and new tensors, go to the host."""
    rng = np.random.default_rng(8)
    old = {"cast": tensor(rng, "BF16", (30, 4)), "rows": tensor(rng, "F32", (30, 4))}
    new = {"cast": old["cast"].float() * 1.01, "rows": tensor(rng, "F32", (33, 4)), "new": tensor(rng, "U8", (9,))}
    comparer = DeviceComparer(torch.device("cpu"))
    assert comparer.blocks > 1
    assert ckptdiff.diff(old, new, codec="context", device="cpu").to_bytes() == ckptdiff.diff(old, new, codec="context").to_bytes()

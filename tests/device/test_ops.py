"""The operations of tensors on an accelerator, on torch's CPU device: every dtype, few changes and many."""

from __future__ import annotations

import numpy as np
import pytest

import ckptdiff

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.format.dtypes import DTYPES  # noqa: E402
from tests.support.torch_states import CODECS, copy_of, equal, pair  # noqa: E402


def test_moves_on_a_device() -> None:
    """Changes are found, applied and taken back by torch's operations on its CPU device: every dtype, few changes and many."""
    from ckptdiff.device.ops import apply_changes, find_changes, units_of, zigzag

    rng = np.random.default_rng(5)
    for name, share in ((name, share) for name in DTYPES for share in (0.01, 0.9)):
        dtype = DTYPES[name]
        old = torch.from_numpy(rng.integers(0, 256, 8 * 999, dtype=np.uint8))
        new = torch.where(
            torch.from_numpy(rng.random(len(old)) < share), torch.from_numpy(rng.integers(0, 256, len(old), dtype=np.uint8)), old
        )
        positions, distances = find_changes(units_of(old, dtype), units_of(new, dtype), dtype)
        state = old.clone()
        for back, expected in ((False, new), (True, old)):
            apply_changes(units_of(state, dtype), positions.int(), zigzag(distances), dtype, back)
            assert torch.equal(state, expected), name
        every = torch.zeros_like(units_of(old, dtype))
        every[positions] = zigzag(distances)
        for back, expected in ((False, new), (True, old)):
            apply_changes(units_of(state, dtype), None, every, dtype, back)
            assert torch.equal(state, expected), name


def test_tensors_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on an accelerator, whose memory the host cannot read: torch tensors stand in for them, which numpy must not touch."""
    import ckptdiff.patching.torch_dtypes as types

    plain = types.flat_bytes
    monkeypatch.setattr("ckptdiff.patching.memory.flat_bytes", lambda array, where: torch.from_numpy(np.asarray(plain(array, where))))
    for share in (0.01, 0.6):
        old, new = pair(share)
        for codec in CODECS:
            data = ckptdiff.diff(old, new, codec=codec).to_bytes()
            with monkeypatch.context() as host:
                host.setattr("ckptdiff.patching.memory.flat_bytes", plain)
                assert ckptdiff.diff(old, new, codec=codec).to_bytes() == data
            model = copy_of(old)
            loaded = ckptdiff.Patch.from_bytes(data).load(model)
            loaded.apply_()
            assert equal(model, new)
            loaded.revert_()
            assert equal(model, old)

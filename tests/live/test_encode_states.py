"""A state encoded against another one of the same names gives the bytes that any two checkpoints give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.live import patch as patch_module  # noqa: E402
from tests.support.strategies import examples_run  # noqa: E402
from tests.support.torch_states import nudge, tensor  # noqa: E402

DTYPES = ["BF16", "F16", "F32", "F64", "I8", "U8", "BOOL", "F8_E4M3"]


@settings(max_examples=examples_run(60), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.001, 0.05, 1.0]), st.sampled_from([1, 3]))
def test_the_bytes_are_those_of_the_general_way(seed: int, share: float, threads: int) -> None:
    """With repeated content, tied names and other shapes of as many units too; a device goes the general way."""
    rng = np.random.default_rng(seed)
    old = {f"{k}.{name}": tensor(rng, name, tuple(rng.integers(1, 40, rng.integers(0, 4)).tolist())) for k, name in enumerate(DTYPES)}
    old |= {"same": old["0.BF16"].clone(), "long": tensor(rng, "BF16", (3 << 20,)), "reshaped": tensor(rng, "F32", (6, 4))}
    new = {name: nudge(rng, array, share) for name, array in old.items()}
    new["reshaped"], new["same"] = new["reshaped"].reshape(4, 6), new["0.BF16"].clone()
    old["tied"], new["tied"] = old["2.F32"], new["2.F32"]
    expected = ckptdiff.diff(old, new, device="cpu").to_bytes()

    def no_other(*_: Any) -> Any:
        raise AssertionError("the general way")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patch_module, "encode_pair", no_other)
        assert ckptdiff.diff(old, new, threads=threads).to_bytes() == expected


def test_what_is_left_to_the_general_way() -> None:
    """New, removed, renamed, empty and cast tensors, and those of another size: the same bytes, whoever encodes them."""
    rng = np.random.default_rng(3)
    old = {"a": tensor(rng, "F32", (40, 9)), "b": tensor(rng, "BF16", (7,))}
    moved = {name: nudge(rng, array, 0.05) for name, array in old.items()}
    cases = [
        {**moved, "new": torch.ones(3)},
        {"a": moved["a"]},
        {"x.a": moved["a"], "x.b": moved["b"]},
        {"a": moved["a"].bfloat16(), "b": moved["b"]},
        {"a": torch.cat([moved["a"], moved["a"]]), "b": moved["b"]},
    ]
    for new in cases:
        patch = ckptdiff.diff(old, new)
        assert patch.to_bytes() == ckptdiff.diff(old, new, device="cpu").to_bytes()
    empty = {"a": torch.zeros(0, 3), "b": torch.ones(3)}
    assert ckptdiff.diff(empty, {**empty, "b": torch.zeros(3)}).to_bytes() == (
        ckptdiff.diff(empty, {**empty, "b": torch.zeros(3)}, device="cpu").to_bytes()
    )

"""Samples of a pair: what the short way takes for close, the long way does not find unrelated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.checkpoint.samples import LEAST_UNITS, is_close, relation
from ckptdiff.format.dtypes import DTYPES
from tests.support.strategies import DTYPE_NAMES, quick


@quick(300)
@given(DTYPE_NAMES, st.sampled_from([0, 1, 2, 3, 63, 64, 65, 512]), st.sampled_from([2, 3, 256]), st.integers(0, 2**32 - 1))
def test_close_samples_are_not_unrelated(dtype: str, units: int, values: int, seed: int) -> None:
    rng, kind = np.random.default_rng(seed), DTYPES[dtype].unit
    base, other = (rng.integers(0, values, units * kind.itemsize, np.uint8).view(kind) for _ in range(2))
    target: np.ndarray[Any, Any] = np.where(rng.random(units) < rng.choice([0, 0.01, 0.05, 0.3]), other, base)
    if is_close(base, target):
        assert relation(base, target, dtype).related is not False


@pytest.mark.parametrize("dtype", ["BF16", "F64", "U64", "U8"])
def test_large_distances_where_rotated_ones_are_small(dtype: str) -> None:
    """More and more places where units are far apart, in a sample whose rotated units are but one apart."""
    kind = DTYPES[dtype].unit
    base = (np.arange(2048) % 2).astype(kind)
    for places in range(0, 256, 8):
        target = base.copy()
        target[:places] = np.iinfo(kind).max
        if is_close(base, target):
            assert relation(base, target, dtype).related is True
    assert not is_close(base, target) and is_close(base, base)


def test_small_changes_are_close() -> None:
    base = np.arange(LEAST_UNITS, dtype=np.uint16) * 97
    target = base.copy()
    target[7] += 1
    assert is_close(base, target) and relation(base, target, "BF16").related is True
    assert not is_close(base, base[::-1])

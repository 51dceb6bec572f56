"""Sums of ulp distances wrap round, and those that are zero are no changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.format.dtypes import DTYPES
from ckptdiff.kernels import sums
from tests.support.strategies import DTYPE_NAMES, SEEDS, quick


@quick(80)
@given(name=DTYPE_NAMES, count=st.sampled_from([1, 63, 64, 65, 300]), times=st.integers(0, 5), seed=SEEDS)
def test_they_are_those_of_integers(name: str, count: int, times: int, seed: int) -> None:
    dtype, rng = DTYPES[name], np.random.default_rng(seed)
    bits, found, expected = 8 * dtype.carrier, np.zeros(count, dtype.unit), [0] * count
    most = (1 << bits) - 1
    for _ in range(times):
        positions = np.flatnonzero(rng.random(count) < 0.6).astype(np.int32)
        zigzags = np.array([1 + int(rng.integers(0, 1 << 62)) % rng.choice([3, most]) for _ in positions], dtype.unit)
        sums.add_changes(found, (positions, zigzags))
        for at, z in zip(positions.tolist(), zigzags.tolist(), strict=True):
            expected[at] += -(z + 1) // 2 if z & 1 else z // 2
    where, zigzags = sums.changes_of_sums(found, dtype)
    signed = [(total + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1) for total in expected]
    assert where.tolist() == [k for k, total in enumerate(signed) if total]
    assert zigzags.tolist() == [2 * total if total > 0 else -2 * total - 1 for total in signed if total]

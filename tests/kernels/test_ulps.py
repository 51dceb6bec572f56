"""The ulp distance by the kernels, and by torch's operations, against the words of the spec."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.format.dtypes import DTYPES
from ckptdiff.kernels import moves, ulps
from tests.support.checkpoints import BITS, carrier
from tests.support.strategies import FLOATS, quick, units
from tests.support.ulp_distances import zigzag, zigzags


def check_ulp_distances(name: str, base: np.ndarray, target: np.ndarray) -> None:
    """The kernels, and torch's operations, against the spec's words: distances, there and back, and as the ``context`` codec has them."""
    dtype, positions = DTYPES[name], np.arange(len(base), dtype=np.int32)
    expected = [zigzag(b, t, 8 * dtype.carrier, name in FLOATS) for b, t in zip(base.tolist(), target.tolist(), strict=True)]
    found = zigzags(name, base, target)
    assert found.tolist() == expected
    moving = base.copy()
    for back, wanted in ((False, target), (True, base)):
        moves.move_run(moving.view(np.uint8), positions, found, dtype, back, False)
        assert moving.tobytes() == wanted.tobytes()
    changes = ulps.sized_changes(base, positions, found, dtype)
    assert changes.distances.tolist() == [(z + 1) // 2 for z in expected]
    again = np.empty_like(found)
    assert ulps.zigzags_of(base, changes, dtype, again) and again.tolist() == expected
    if importlib.util.find_spec("torch"):
        import torch

        from ckptdiff.device import ops

        old, new = (ops.units_of(torch.from_numpy(side.copy()).view(torch.uint8), dtype) for side in (base, target))
        where, distances = ops.find_changes(old, new, dtype)
        assert where.tolist() == np.flatnonzero(base != target).tolist()
        assert ops.zigzag(distances).numpy().view(dtype.unit).tolist() == found[base != target].tolist()


@pytest.mark.parametrize("name", [name for name in sorted(BITS) if carrier(name) == 1])
def test_ulp_distance_of_all_pairs_of_bytes(name: str) -> None:
    """All 65,536 pairs of 8-bit units."""
    base, target = (grid.reshape(-1) for grid in np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8)))
    check_ulp_distances(name, base.copy(), target.copy())


@quick(150)
@given(name=st.sampled_from([name for name in sorted(BITS) if carrier(name) > 1]), data=st.data())
def test_ulp_distance_of_wider_units(name: str, data: Any) -> None:
    """Pairs of 16-, 32- and 64-bit units, drawn among the extremes and anywhere."""
    width = carrier(name)
    check_ulp_distances(name, data.draw(units(width, 30)), data.draw(units(width, 30)))


@pytest.mark.parametrize("name", ["F16", "BF16", "I16"])
def test_ulp_distance_of_all_units_of_16_bits(name: str) -> None:
    """From some units to all 65,536: inverse, and each distance once."""
    target = np.arange(1 << 16, dtype="<u2")
    for start in (0, 1, 0x3F80, 0x7F80, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        base = np.full(1 << 16, start, "<u2")
        z = zigzags(name, base, target)
        assert len(np.unique(z)) == 1 << 16 and z[start] == 0
        moves.move_run(base.view(np.uint8), np.arange(1 << 16, dtype=np.int32), z, DTYPES[name], False, False)
        assert base.tobytes() == target.tobytes()


@quick(200)
@given(value=st.floats(allow_nan=False, allow_infinity=False), wide=st.booleans())
def test_the_next_number_is_one_ulp_away(value: float, wide: bool) -> None:
    """F64, F32 and the parts of C64: the next number up has distance +1, the next down -1."""
    kind, unit = (np.float64, "<u8") if wide else (np.float32, "<u4")
    with np.errstate(over="ignore"):
        here = np.array([value], kind)
    if not np.isfinite(here[0]) or here[0] == 0:
        return
    for toward, z in ((np.inf, 2), (-np.inf, 1)):
        with np.errstate(over="ignore", under="ignore"):
            there = np.nextafter(here, kind(toward))
        if there[0] != 0:
            for name in ("F64",) if wide else ("F32", "C64"):
                assert zigzags(name, here.view(unit), there.view(unit)).tolist() == [z]

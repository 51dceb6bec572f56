"""Escaped values of spec section 7.1: every width in every number of planes, and nothing beyond a width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.codecs.escaped_values import write_planes
from ckptdiff.codecs.planes import Reader, read_planes
from ckptdiff.kernels.escapes import best_width, join_planes, split_escaped
from tests.support.strategies import SEEDS, quick


def read_escaped(reader: Reader, count: int, width: int, low: int, unit: np.dtype[Any]) -> Any:
    planes = list[bytes]()
    escaped = read_planes(reader, count, width, low, planes)
    data, values = np.frombuffer(bytearray().join(planes), np.uint8), np.empty(count, unit)
    end = join_planes(data, 0, count, low, escaped, width, values, 0)
    if end < 0:
        raise ValueError("too large")
    assert end == len(data)
    return values


@pytest.mark.parametrize(("width", "low"), [(width, low) for width in range(1, 9) for low in range(1, width + 1)])
@quick(12)
@given(data=st.data(), count=st.sampled_from([0, 1, 15, 16, 100, 700]))
def test_escaped_values_come_back(width: int, low: int, data: Any, count: int) -> None:
    """Escaped values of every width in every number of low planes come back, and nothing is left over."""
    unit = np.dtype("<u4") if width == 3 else np.dtype(f"<u{1 << (width - 1).bit_length()}")
    near = data.draw(st.sampled_from([(1 << 8 * low) - 1, 256, 1 << 8 * width]))
    rng = np.random.default_rng(data.draw(SEEDS))
    values = np.array([(near + int(d)) % (1 << 8 * width) for d in rng.integers(-3, 3, count)], unit)
    values = np.where(rng.random(count) < 0.5, values, rng.integers(0, 1 << min(8 * width, 63), count).astype(unit))
    planes = np.empty(2 * width * count, np.uint8)
    parts = list[bytes]()
    write_planes(planes.data, 0, count, width, low, split_escaped(values, width, low, planes), parts)
    coded = b"".join(parts)
    reader = Reader(memoryview(coded))
    found = read_escaped(reader, count, width, low, unit)
    reader.end()
    assert found.dtype == unit and found.tolist() == values.tolist()
    assert 1 <= best_width(values, width) <= width
    if coded:
        with pytest.raises(ValueError):
            read_escaped(Reader(memoryview(coded[:-1])), count, width, low, unit)


@quick(60)
@given(width=st.integers(2, 8), data=st.data())
def test_an_escaped_value_beyond_its_width_is_refused(width: int, data: Any) -> None:
    """E + (v - E) must stay below 2^(8W)."""
    low = data.draw(st.integers(1, width - 1))
    escape, unit = (1 << 8 * low) - 1, np.dtype("<u8")
    most = (1 << 8 * width) - 1 - escape
    excess = data.draw(st.integers(0, escape))
    coded = b"".join(b"\x00" + bytes([255]) for _ in range(low))
    coded += b"".join(b"\x00" + bytes([byte]) for byte in (most + excess).to_bytes(width, "little"))
    if excess == 0:
        assert read_escaped(Reader(memoryview(coded)), 1, width, low, unit).tolist() == [(1 << 8 * width) - 1]
    else:
        with pytest.raises(ValueError, match="too large"):
            read_escaped(Reader(memoryview(coded)), 1, width, low, unit)

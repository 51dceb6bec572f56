"""Planes and varints of spec section 7.1: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.codecs.planes import Reader, write_plane, write_varint
from tests.support.strategies import quick


@quick(100)
@given(plane=st.binary(max_size=300) | st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(0, 3000)))
def test_planes_come_back(plane: bytes) -> None:
    """Planes come back; none is stored in more than its bytes and one."""
    coded = write_plane(np.frombuffer(plane, np.uint8))
    assert len(coded) <= len(plane) + 1
    reader = Reader(memoryview(coded))
    assert reader.plane(len(plane)) == plane
    reader.end()
    for wrong in {len(plane) - 1, len(plane) + 1} - {-1, 0}:
        with pytest.raises(ValueError):
            reader = Reader(memoryview(coded))
            reader.plane(wrong)
            reader.end()


@quick(200)
@given(value=st.integers(0, 2**32 - 1) | st.sampled_from([0, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**32 - 1]))
def test_varints_come_back(value: int) -> None:
    """Varints come back, are minimal, and are refused when padded, cut off, or followed by nothing."""
    coded = write_varint(value)
    assert len(coded) == max(1, -(-value.bit_length() // 7)) and int("".join(f"{b & 127:07b}" for b in reversed(coded)), 2) == value
    reader = Reader(memoryview(coded + b"rest"))
    assert reader.varint() == value and reader.position == len(coded)
    padded = coded[:-1] + bytes([coded[-1] | 0x80]) + b"\x00"
    for wrong in (coded[:-1], padded, padded[:-1] + b"\x80\x00"):
        with pytest.raises(ValueError):
            Reader(memoryview(wrong)).varint()


@pytest.mark.parametrize(
    "coded", [b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80\x80\x00"]
)
def test_varints_too_large_are_refused(coded: bytes) -> None:
    """2^32 and above, and varints of six bytes, are refused."""
    with pytest.raises(ValueError):
        Reader(memoryview(coded)).varint()

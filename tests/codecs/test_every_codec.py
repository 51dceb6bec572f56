"""Every codec: decoding undoes encoding, and any other bytes are refused or give a block of the right size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptdiff.codecs import CODECS
from ckptdiff.format.dtypes import DTYPES
from tests.support.checkpoints import carrier, changed_units
from tests.support.strategies import DTYPE_NAMES, blocks, quick


@quick(300)
@given(case=blocks(), codec=st.sampled_from(sorted(CODECS)))
def test_codecs_are_inverse(case: tuple[str, np.ndarray, np.ndarray], codec: str) -> None:
    """decode undoes encode for every dtype, and both count the changed units."""
    name, base, target = case
    coded, changed = CODECS[codec].encode(base.copy(), target.copy(), DTYPES[name])
    assert changed == changed_units((name, (), base.tobytes()), (name, (), target.tobytes()))
    decoded, counted = CODECS[codec].decode(memoryview(coded), base.copy(), len(target), DTYPES[name])
    assert decoded.tobytes() == target.tobytes() and counted == changed
    assert CODECS[codec].encode(base, target, DTYPES[name])[0] == coded


@pytest.mark.parametrize("name", ["BF16", "U8", "F64"])
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_codecs_are_inverse_on_whole_blocks(name: str, codec: str) -> None:
    """A block of 2 MiB: few changes with wide gaps, and a change of every unit."""
    rng, unit = np.random.default_rng(3), f"<u{carrier(name)}"
    base = np.frombuffer(rng.bytes(1 << 21), unit)
    sparse = base.copy()
    sparse[[0, 1, 300, 70_000, len(base) - 1]] ^= 0x55
    for target in (sparse, np.invert(base)):
        coded, changed = CODECS[codec].encode(base.view(np.uint8), target.view(np.uint8), DTYPES[name])
        decoded, _ = CODECS[codec].decode(memoryview(coded), base.view(np.uint8).copy(), 1 << 21, DTYPES[name])
        assert decoded.tobytes() == target.tobytes() and changed == np.count_nonzero(base != target)


def decode_anything(codec: str, coded: bytes, base: np.ndarray, name: str) -> bool:
    """Whether a coded form is accepted; if not, the error must be a ValueError."""
    given = base.copy()
    try:
        decoded, changed = CODECS[codec].decode(memoryview(coded), given, len(base), DTYPES[name])
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        assert given.tobytes() == base.tobytes(), "a refused block changed the base"
        return False
    assert decoded.dtype == np.uint8 and decoded.shape == base.shape
    assert changed <= len(base) // carrier(name)
    return True


@quick(400)
@given(coded=st.binary(max_size=80), name=DTYPE_NAMES, count=st.sampled_from([0, 1, 3, 40]), codec=st.sampled_from(sorted(CODECS)))
@example(coded=b"\x01\x11\x00\x00\x00\x00", name="U8", count=1, codec="sparse")
@example(coded=b"\xff\xff\xff\xff\x0f\x11", name="U8", count=40, codec="sparse")
@example(coded=b"\x0d\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", name="U8", count=40, codec="raw")
def test_codecs_survive_any_bytes(coded: bytes, name: str, count: int, codec: str) -> None:
    """decode of arbitrary bytes gives a block of the right size or a ValueError."""
    decode_anything(codec, coded, np.arange(count * carrier(name), dtype=np.uint8), name)


@quick(400)
@given(case=blocks(), codec=st.sampled_from(sorted(CODECS)), data=st.data())
def test_codecs_survive_damage(case: tuple[str, np.ndarray, np.ndarray], codec: str, data: Any) -> None:
    """The same for coded forms with a byte changed, cut off, or added; bytes left over are always refused."""
    name, base, target = case
    coded = bytearray(CODECS[codec].encode(base, target, DTYPES[name])[0])
    assert not decode_anything(codec, bytes(coded) + b"\x00", base, name)
    for _ in range(data.draw(st.integers(0, 3))):
        if coded:
            coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    decode_anything(codec, bytes(coded[: data.draw(st.integers(0, len(coded)))]), base, name)

"""The ``sparse`` codec (spec section 7.4): gaps between changed units and their ulp distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptdiff.format.dtypes import DTYPES
from tests.support.codec_checks import (
    Case,
    accepts,
    check_a_whole_block,
    check_any_bytes,
    check_damage,
    check_that_decoding_undoes_encoding,
    decode,
    encode,
)
from tests.support.strategies import DAMAGE, DTYPE_NAMES, blocks, quick


@quick(150)
@given(case=blocks())
def test_decoding_undoes_encoding(case: Case) -> None:
    check_that_decoding_undoes_encoding("sparse", case)


@pytest.mark.parametrize("name", ["BF16", "U8", "F64"])
def test_whole_blocks_come_back(name: str) -> None:
    check_a_whole_block("sparse", name)


@quick(200)
@given(coded=st.binary(max_size=80), name=DTYPE_NAMES, count=st.sampled_from([0, 1, 3, 40]))
@example(coded=b"\x01\x11\x00\x00\x00\x00", name="U8", count=1)
@example(coded=b"\xff\xff\xff\xff\x0f\x11", name="U8", count=40)
def test_any_bytes_are_refused_or_give_a_block(coded: bytes, name: str, count: int) -> None:
    check_any_bytes("sparse", coded, name, count)


@quick(200)
@given(case=blocks(), damage=DAMAGE)
def test_damaged_blocks_are_refused_or_give_a_block(case: Case, damage: tuple[list[tuple[int, int]], float]) -> None:
    check_damage("sparse", case, *damage)


def test_a_block_without_changes_takes_no_bytes() -> None:
    base = np.arange(64, dtype=np.uint8)
    assert encode("sparse", base, base.copy(), DTYPES["F32"]) == (b"", 0)
    assert decode("sparse", b"", base.copy(), DTYPES["F32"])[0].tobytes() == base.tobytes()


@pytest.mark.parametrize(
    ("coded", "text"),
    [
        ("00 11", "it has 0 changes, expected 1 to 8"),
        ("09 11", "it has 9 changes, expected 1 to 8"),
        ("01 01  00 00  00 00", "bad widths: 1 planes of gaps, 0 of values"),
        ("01 10  00 00  00 00", "bad widths: 0 planes of gaps, 1 of values"),
        ("01 14  00 00  00 00", "bad widths: 4 planes of gaps, 1 of values"),
        ("01 31  00 00  00 00", "bad widths: 1 planes of gaps, 3 of values"),
        ("01 21  00 00  00 ff 00 ff", "an ulp distance is too large"),
    ],
)
def test_a_form_that_breaks_the_spec_is_refused_by_name(coded: str, text: str) -> None:
    """Blocks of 8 units of BF16."""
    assert not accepts("sparse", bytes.fromhex(coded), np.zeros(16, np.uint8), "BF16")
    with pytest.raises(ValueError, match=text):
        decode("sparse", bytes.fromhex(coded), np.zeros(16, np.uint8), DTYPES["BF16"])


@pytest.mark.parametrize("gap", [8, 9, 255])
def test_a_change_beyond_the_block_is_refused(gap: int) -> None:
    assert not accepts("sparse", bytes([1, 0x11, 0, gap, 0, 0]), np.zeros(16, np.uint8), "BF16")
    assert accepts("sparse", bytes([1, 0x11, 0, 7, 0, 0]), np.zeros(16, np.uint8), "BF16")

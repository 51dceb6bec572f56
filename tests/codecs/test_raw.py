"""The ``raw`` codec (spec section 7.3): the planes of the target, whatever the base is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptdiff.format.dtypes import DTYPES
from tests.support.codec_checks import (
    Case,
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
    check_that_decoding_undoes_encoding("raw", case)


@pytest.mark.parametrize("name", ["BF16", "U8", "F64"])
def test_whole_blocks_come_back(name: str) -> None:
    check_a_whole_block("raw", name)


@quick(200)
@given(coded=st.binary(max_size=80), name=DTYPE_NAMES, count=st.sampled_from([0, 1, 3, 40]))
@example(coded=b"\x0d\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", name="U8", count=40)
def test_any_bytes_are_refused_or_give_a_block(coded: bytes, name: str, count: int) -> None:
    check_any_bytes("raw", coded, name, count)


@quick(200)
@given(case=blocks(), damage=DAMAGE)
def test_damaged_blocks_are_refused_or_give_a_block(case: Case, damage: tuple[list[tuple[int, int]], float]) -> None:
    check_damage("raw", case, *damage)


def test_the_coded_form_does_not_depend_on_the_base() -> None:
    """So that a tensor without a base can be stored, and one whose base is of no use."""
    target, bases = np.arange(64, dtype=np.uint8), (np.zeros(64, np.uint8), np.full(64, 255, np.uint8))
    forms = {encode("raw", base, target, DTYPES["BF16"])[0] for base in bases}
    assert len(forms) == 1
    assert [decode("raw", *forms, base, DTYPES["BF16"])[0].tobytes() for base in bases] == [target.tobytes()] * 2

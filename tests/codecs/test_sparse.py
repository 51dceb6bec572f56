"""The ``sparse`` codec (spec section 7.4): gaps between changed units and their ulp distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptdiff.codecs import sparse
from ckptdiff.codecs.planes import BlockError
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


@quick(60)
@given(cases=st.lists(blocks(), min_size=1, max_size=6), offset=st.sampled_from([0, 5, 1 << 23]))
def test_many_blocks_at_once_are_each_by_itself(cases: list[Case], offset: int) -> None:
    name = cases[0][0]
    dtype, alike = DTYPES[name], [case for case in cases if case[0] == name]
    coded = [memoryview(encode("sparse", base, target, dtype)[0]) for _, base, target in alike]
    sizes, offsets = [len(base) for _, base, _ in alike], [k * offset for k in range(len(alike))]
    (positions, zigzags), counts = sparse.unpack_all(coded, sizes, offsets, dtype)
    alone = [sparse.unpack(block, None, size, dtype) for block, size in zip(coded, sizes, strict=True)]
    assert counts == [len(one) for one, _ in alone]
    assert positions.tolist() == [int(place) + start for (places, _), start in zip(alone, offsets, strict=True) for place in places]
    assert zigzags.tolist() == [int(zigzag) for _, row in alone for zigzag in row]
    for bad, text in ((b"\x01\x11\x00\xfe\x00\x00", "it changes unit 254 of 8"), (b"\x00\x11", "it has 0 changes")):
        blocks_, sizes_ = [*coded, memoryview(bad), *coded], [*sizes, 8 * dtype.carrier, *sizes]
        with pytest.raises(BlockError, match=text) as caught:
            sparse.unpack_all(blocks_, sizes_, [0] * len(blocks_), dtype)
        assert caught.value.block == len(coded)


@pytest.mark.parametrize("gap", [8, 9, 255])
def test_a_change_beyond_the_block_is_refused(gap: int) -> None:
    assert not accepts("sparse", bytes([1, 0x11, 0, gap, 0, 0]), np.zeros(16, np.uint8), "BF16")
    assert accepts("sparse", bytes([1, 0x11, 0, 7, 0, 0]), np.zeros(16, np.uint8), "BF16")

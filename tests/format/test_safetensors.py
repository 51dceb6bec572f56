"""Headers of safetensors files: what ckptdiff accepts the safetensors library accepts too, and reads alike."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.format.safetensors import header_json, parse_header
from tests.support.checkpoints import BITS, TensorData, tensor, write
from tests.support.safetensors_views import library_view, our_view
from tests.support.strategies import NAMES, quick, tensors


def test_the_library_knows_all_our_dtypes() -> None:
    """A file of every dtype is read alike by the library and by ckptdiff."""
    found = {dtype: tensor(dtype, [2, 4], bytes(range(BITS[dtype]))) for dtype in BITS}
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "x.safetensors", found)
        assert our_view(path) == library_view(path.read_bytes()) == found


@quick(80)
@given(found=st.dictionaries(NAMES, tensors(), max_size=5))
def test_headers_that_we_write(found: dict[str, TensorData]) -> None:
    """The headers of header_json are read by the library and by our own parser."""
    rows = [(name, dtype, shape, len(data)) for name, (dtype, shape, data) in found.items()]
    raw, data = header_json([("__metadata__", '{"format":"pt"}')], rows), b"".join(data for _, _, data in found.values())
    assert len(raw) % 8 == 0
    assert library_view(len(raw).to_bytes(8, "little") + raw + data) == found
    header = parse_header(raw, len(data))
    assert header.metadata == {"format": "pt"} and [t.name for t in header.tensors] == list(found)


def ours(raw: bytes, data: bytes) -> dict[str, TensorData] | None:
    """What our strict parser reads, or None if it refuses, which must be with one ValueError."""
    try:
        header = parse_header(raw, len(data))
    except ValueError as error:
        assert str(error)
        return None
    return {t.name: (t.dtype, t.shape, data[t.begin : t.end]) for t in header.tensors}


def agree(raw: bytes, data: bytes) -> bool:
    """What we accept the library must accept and read alike. Says whether we accept."""
    found = ours(raw, data)
    if found is None:
        return False
    try:
        expected = library_view(len(raw).to_bytes(8, "little") + raw + data)
    except safetensors.SafetensorError as error:
        raise AssertionError(f"accepted {raw!r}, which the library refuses: {error}") from None
    assert found == expected
    return True


HEADER = (
    '{"__metadata__":{"format":"pt","k":""},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    '"b\\u00e9/":{"dtype":"F4","shape":[4],"data_offsets":[8,10]},"c":{"dtype":"I8","shape":[0],"data_offsets":[10,10]},'
    '"d":{"dtype":"BOOL","shape":[],"data_offsets":[10,11]}}   '
)

DATA = bytes(range(11))
TOKENS = re.findall(r'"(?:[^"\\]|\\.)*"|-?\d+|\s+|.', HEADER)

FRAGMENTS = [
    *("0", "1", "2", "4", "8", "10", "11", "-0", "-1", "00", "01", "1.0", "1e0", "0.0", "18446744073709551615", "18446744073709551616"),
    *("281474976710656", "281474976710657", "null", "true", "false", "[]", "{}", '""', '"a"', '"d"', '"F32"', '"U8"', '"F6_E2M3"', '"f32"'),
    *('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"x":1,', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x"', '"\x01"'),
    *(",", ":", "[", "]", "{", "}", " ", "\n", "\t", "\r", "\x00", "\x0b", "\u2028", "\ufeff", "NaN", "//", "/**/"),
    *("0,", "1,", "281474976710656,"),
    *('"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', '"e":{"dtype":"U8","shape":[0],"data_offsets":[8,8]},', '"dtype":"U8",'),
]

EDITS = ("replace", "insert", "drop", "swap")


@quick(1000)
@given(st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, len(TOKENS) - 1), st.sampled_from(FRAGMENTS)), max_size=3))
def test_what_is_accepted_of_mutated_headers_the_library_accepts_too(edits: list[tuple[str, int, str]]) -> None:
    """Tokens of a header replaced, added, dropped and swapped: what we accept the library accepts too."""
    tokens = list(TOKENS)
    for action, position, fragment in edits:
        position %= len(tokens)
        if action == "replace":
            tokens[position] = fragment
        elif action == "insert":
            tokens.insert(position, fragment)
        elif action == "drop":
            del tokens[position]
        else:
            other = (position * 7 + len(fragment)) % len(tokens)
            tokens[position], tokens[other] = tokens[other], tokens[position]
    agree("".join(tokens).encode("utf-8", "surrogatepass"), DATA)


@quick(300)
@given(position=st.integers(0, len(HEADER.encode()) - 1), byte=st.integers(0, 255), size=st.sampled_from([10, 11, 12]))
def test_headers_with_a_changed_byte(position: int, byte: int, size: int) -> None:
    """Any byte of the header changed, with more or less data than it says."""
    raw = bytearray(HEADER.encode())
    raw[position] = byte
    accepted = agree(bytes(raw), DATA[:size] + b"\x00" * (size - 11))
    assert not accepted or size == 11


ACCEPTED = [
    (HEADER, DATA),
    ("{}", b""),
    ("{}      ", b""),
    ('{"__metadata__":{}}', b""),
    ('{"a":{"shape":[ 1 ],\n"data_offsets":[0,\t1],"dtype":"U8"}}', b"x"),
    ('{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"xy"),
    ('{"a":{"dtype":"U8","shape":[0,281474976710656],"data_offsets":[0,0]}}', b""),
    ('{"\\u0000\\ud83d\\ude00":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}', b"12345678"),
]


@pytest.mark.parametrize("case", range(len(ACCEPTED)))
def test_headers_that_are_accepted(case: int) -> None:
    """By us and by the library, so that the tests above do not hold for nothing."""
    assert agree(ACCEPTED[case][0].encode(), ACCEPTED[case][1])


def header_of(**members: str) -> str:
    """A header of one tensor ``a`` of one byte, with members replaced, or left out where empty."""
    parts = {"dtype": '"U8"', "shape": "[1]", "data_offsets": "[0,1]"} | members
    return '{"a":{' + ",".join(f'"{key}":{text}' for key, text in parts.items() if text) + "}}"


STRICT = [
    *("", "[]", "null", " {}", "\n{}", "{}\x0b", "{}\x0c", "{}\xa0", "{}x", "{}{}", "{", '{"a"}', "\ufeff{}", "{}\x00"),
    *('{"__metadata__":null}', '{"__metadata__":[]}', '{"__metadata__":"x"}', '{"__metadata__":{"a":1}}', '{"__metadata__":{"a":null}}'),
    *('{"__metadata__":{"a":{}}}', '{"__metadata__":{"a":"1","a":"1"}}', '{"__metadata__":{},"__metadata__":{}}'),
    *('{"__metadata__":{"a":"\\ud800"}}', header_of(shape="[-0]", data_offsets="[0,0]"), header_of(shape="[0]", data_offsets="[0,-0]")),
    *(header_of(dtype=text) for text in ("", "null", "1", '"u8"', '"U8 "', '"F128"', '"U\\u0000"', '["U8"]', '{"U8":1}')),
    *(header_of(shape=text) for text in ("", "null", "1", "[-1]", "[1.0]", "[1e0]", "[true]", '["1"]', "[[1]]", "[2]", "[0]", "[01]")),
    *(header_of(shape=text) for text in ("[1,]", "[1 1]", "{}", "[null]", "[281474976710657,0]", "[18446744073709551617]")),
    header_of(shape="[" + "1," * 32 + "1]"),
    *(header_of(data_offsets=text) for text in ("", "null", "[]", "[1]", "[0,1,2]", "[1,0]", "[0,2]", "[1,2]", "[-0,1]", "[false,true]")),
    *(header_of(data_offsets=text) for text in ("[0.0,1]", "[0,1.0]", '["0","1"]', "{}", "[0,281474976710657]", "[-1,0]", "[0,0]")),
    *('{"a":1}', '{"a":null}', '{"a":[]}', header_of(extra="1"), header_of(name='"a"'), header_of().replace('"a"', '""')),
    header_of().replace("{", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},', 1),
    header_of().replace("{", '{"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},', 1),
    header_of().replace("{", '{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},', 1),
    header_of().replace('"dtype":"U8"', '"dtype":"U8","dtype":"U8"'),
    header_of(dtype='"F4"'),
    header_of(dtype='"F6_E2M3"', shape="[2]"),
    header_of().replace('"a"', f'"{"n" * 4097}"'),
    "[" * 100_000,
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("case", range(len(STRICT)))
def test_headers_that_are_refused(case: int) -> None:
    """Each rule of spec section 5.3, broken once."""
    assert ours(STRICT[case].encode(), b"") is None
    assert ours(STRICT[case].encode(), b"x") is None


@pytest.mark.parametrize("shape", ["281474976710656,281474976710656,0", "65536,65536,65536,65536,0", "281474976710656,16384,0"])
def test_shapes_whose_size_overflows_before_a_zero(shape: str) -> None:
    """The library multiplies in 64 bits from the left; what it refuses we must refuse."""
    raw = f'{{"a":{{"dtype":"F64","shape":[{shape}],"data_offsets":[0,0]}}}}'.encode()
    agree(raw, b"")

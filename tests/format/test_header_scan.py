"""What the reader of plain headers takes, the strict parser takes too, and gives the same; all else is left to that one."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptdiff.format import header_scan, safetensors
from ckptdiff.format.dtypes import DTYPES, MAX_FILE
from ckptdiff.format.header_scan import PlainHeader, plain_header
from tests.support.strategies import DTYPE_NAMES, quick

METADATA = '"__metadata__":{"format":"pt","k":"a\\"b","":""},'
TENSORS = (
    '"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b.[0]/~ ":{"dtype":"F4","shape":[4],"data_offsets":[8,10]},'
    '"c":{"dtype":"I8","shape":[0],"data_offsets":[10,10]},"d":{"dtype":"BOOL","shape":[],"data_offsets":[10,11]}'
)
PLAIN = [f"{{{TENSORS}}}", f"{{{METADATA}{TENSORS}}}"]
SIZE = 11
PIECES = [
    *(
        "",
        ",",
        ":",
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        " ",
        "0",
        "1",
        "10",
        "-1",
        "1.0",
        "null",
        "[]",
        "{}",
        '""',
        '"a"',
        "a",
        "\x01",
        "\n",
        "é",
    ),
    *(
        '"__metadata__"',
        '"dtype":"U8",',
        '"x":1,',
        '"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},',
        "281474976710657",
        "\\ud800",
        "é",
    ),
    *('"__metadata__":{},', '"__metadata__":{"a":"1"},', '"k":"v",', "}}", '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'),
]


def strict(text: str, size: int) -> PlainHeader | None:
    """What the strict parser makes of a header's JSON; None where it finds a fault."""
    with mock.patch.object(safetensors, "plain_header", lambda *_: None):
        try:
            header = safetensors.parse_header(text.encode(), size)
        except ValueError:
            return None
    return header.metadata, header.tensors


def taken(text: str, size: int = SIZE) -> bool:
    """Whether the reader of plain headers takes it; what it takes is compared."""
    found = plain_header(text.encode(), size)
    assert found is None or found == strict(text, size)
    return found is not None


@quick(1000)
@given(
    st.sampled_from(PLAIN),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), st.sampled_from(PIECES)), max_size=2),
    st.sampled_from([SIZE, SIZE, SIZE, 10, 12]),
)
def test_it_takes_nothing_that_the_strict_parser_refuses(text: str, edits: list[tuple[int, int, str]], size: int) -> None:
    for at, removed, piece in edits:
        at %= len(text)
        text = text[:at] + piece + text[at + removed :]
    taken(text, size)


@st.composite
def rows(draw: Any) -> tuple[dict[str, Any], int]:
    """Tensors end to end, or nearly so, and the size of their data."""
    header, position = dict[str, Any](), 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "x.y", "__metadata__", "", " "]), max_size=4, unique=True)):
        dtype, shape = draw(DTYPE_NAMES), draw(st.lists(st.sampled_from([0, 1, 2, 4, 2**20, 2**48]), max_size=3))
        size = DTYPES[dtype].nbytes(tuple(shape)) or 0
        begin, end = position + draw(st.sampled_from([0] * 9 + [1])), position + size
        header[name], position = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}, end
    return header, position


@quick(400)
@given(rows())
def test_tensors_of_all_dtypes_and_sizes(made: tuple[dict[str, Any], int]) -> None:
    header, size = made
    assume(size <= MAX_FILE)
    taken(json.dumps(header, separators=(",", ":")), size)


def test_plain_headers_are_read() -> None:
    assert all(taken(text) for text in PLAIN)
    assert plain_header(PLAIN[0].encode(), SIZE)[0] is None  # type: ignore[index]
    assert plain_header(PLAIN[1].encode(), SIZE)[0] == {"format": "pt", "k": 'a"b', "": ""}  # type: ignore[index]
    assert taken('{"__metadata__":{},' + TENSORS + "}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a":', '"\u00e9":'),
        ('"a":', '"a\\n":'),
        ('"a":', '"d":'),
        ('"a":', '"":'),
        ("{", "{ "),
        ("[0,8]", "[0, 8]"),
        ("[0,8]", "[1,8]"),
        ('"I8"', '"I9"'),
        ("[2,1]", f"[{','.join(['1'] * 32 + ['2'])}]"),
        ('"shape":[0]', f'"shape":[0,{2**48 + 1}]'),
        ('"shape":[2,1],"data_offsets":[0,8]', '"data_offsets":[0,8],"shape":[2,1]'),
        ('"shape":[]', '"shape":[],"x":1'),
        ('"pt"', '"\\ud800"'),
        ('"pt"', "1"),
        ('"k":', '"format":'),
    ],
)
def test_all_else_is_left_to_the_strict_parser(old: str, new: str) -> None:
    text = PLAIN[1].replace(old, new, 1)
    assert text != PLAIN[1] and plain_header(text.encode(), SIZE) is None


def test_tensors_in_another_order_than_their_data_are_left_to_the_strict_parser() -> None:
    text = '{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    assert plain_header(text.encode(), 2) is None and strict(text, 2) is not None


def test_more_tensors_than_a_file_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_scan, "MAX_TENSORS", 4)
    assert taken(PLAIN[0])
    monkeypatch.setattr(header_scan, "MAX_TENSORS", 3)
    assert not taken(PLAIN[0])

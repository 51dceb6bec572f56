"""Canonical JSON of spec section 2: one spelling of each value, and every other spelling refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.errors import FormatError
from ckptdiff.format import canonical
from tests.support.strategies import TEXT, quick

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)

ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def spell(value: object) -> str:
    """Canonical JSON of spec section 2, word for word."""
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{spell(k)}:{spell(value[k])}" for k in sorted(value, key=lambda key: [ord(c) for c in key])) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spell, value)) + "]"
    return "null" if value is None else str(value).lower()  # True, False, and integers


@quick(300)
@given(value=JSON)
def test_canonical_json_is_spelled_as_the_spec_says(value: object) -> None:
    """dumps spells as the spec says, and loads undoes it."""
    data = canonical.dumps(value)
    assert data == spell(value).encode()
    found = canonical.loads(data)
    assert found == value and spell(found) == spell(value)  # == alone takes 1 for True


@quick(100)
@given(value=st.dictionaries(TEXT, JSON, max_size=4), data=st.data())
def test_other_spellings_are_refused(value: dict[str, Any], data: Any) -> None:
    """load_object takes the canonical spelling and no other of the same object."""
    right = spell(value).encode()
    assert canonical.load_object(right, "x") == value
    others = {
        json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode(),
        json.dumps(value, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(dict(sorted(value.items(), reverse=True)), ensure_ascii=False, separators=(",", ":")).encode(),
        right + b" ", right + b"\n", b" " + right, b"\xef\xbb\xbf" + right, right.replace(b"/", b"\\/"), right.decode().encode("utf-16"),
    }  # fmt: skip
    position = data.draw(st.integers(0, len(right)))
    others.add(right[:position] + data.draw(st.sampled_from([b" ", b"\t", b"0", b",", b"\x00", b"-"])) + right[position:])
    for other in others - {right}:
        try:
            found = canonical.load_object(other, "x")
        except FormatError as error:
            assert str(error).startswith("x: bad JSON: ") and "\n" not in str(error)
        else:  # the change gave the canonical spelling of something else
            assert spell(found).encode() == other and found != value


REFUSED = [
    b"1.0", b"1e0", b"1E5", b"-1.5", b"1e999", b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b"0x10", b"1_000", b"\xd9\xa1",
    b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\udfff":1}', b'["a\\ud83dz"]', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b"\xef\xbb\xbf1",
    b'{"a":1,"a":1}', b'{"a":1,"\\u0061":1}', b'[[{"b":{"a":1,"a":2}}]]', b'{"":1,"":2}', b"", b"[1,]", b'{"a":1,}', b"[1 2]", b"'a'",
    b'"\n"', b'"\x00"', b"nul", b"True", b"{1:2}", b"//1", b"1//", b"1 2", b"[" * 100_000, b"[" * 5000 + b"]" * 5000, b'{"a":' * 50_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000, b"1" * 21, b"-" + b"1" * 5000, b"9" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_json_that_is_refused(case: int) -> None:
    """Floats, NaN, repeated keys, lone surrogates, bad UTF-8, deep nesting, huge integers: one line of ValueError each."""
    with pytest.raises(ValueError) as caught:
        canonical.loads(REFUSED[case])
    assert str(caught.value)
    with pytest.raises(FormatError) as refused:
        canonical.load_object(b'{"x":' + REFUSED[case] + b"}", "here")
    assert str(refused.value).startswith("here: bad JSON: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"{}"', b"true"])
def test_json_that_is_not_an_object(data: bytes) -> None:
    """Canonical, but not an object."""
    with pytest.raises(FormatError, match="expected a JSON object"):
        canonical.load_object(data, "here")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_not_written(text: str) -> None:
    """dumps refuses what loads would refuse, in values and keys."""
    for value in (text, [text], {text: 1}, {"k": {"k": text}}):
        with pytest.raises(ValueError):
            canonical.dumps(value)

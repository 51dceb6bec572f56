"""What the reader of plain entries takes, the strict reader takes too, and gives the same; all else is left to that one."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.format import canonical
from ckptdiff.format.columns import Columns
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.format.entry_scan import BEGIN, plain_entries
from ckptdiff.format.fields import load_divided
from ckptdiff.format.table import MAX_ENTRY_DEPTH, as_name
from tests.support.strategies import DTYPE_NAMES, quick

DIGESTS = random.Random(0).randbytes(4000)
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 8, 2**21, 2**24, 2**24 + 1, 2**48, 2**48 + 1, 2**53])


def strict(text: bytes) -> list[Entry] | None:
    """What the strict reader makes of a table's JSON; None where it finds a fault."""
    read = {"removed": as_name, "tensors": Entry.read}
    try:
        fields = load_divided(text, "table", "removed tensors", read, most=1 << 17, depth=MAX_ENTRY_DEPTH, nodes=1 << 12)
    except Exception:
        return None
    return None if fields.items("removed") else fields.items("tensors")


def plain(text: bytes, blocks: int = 1 << 20) -> list[Entry] | None:
    """What the reader of plain entries makes of it, with digests that tell each place from every other; None where it takes nothing."""
    found = plain_entries(text, blocks)
    if found is None:
        return None
    columns = found.columns(b"JSON" + DIGESTS[: found.digest_size], 4)
    entries, again = list(columns.make_entries()), Columns.of(list(columns.make_entries()))
    assert all(getattr(columns, part) == getattr(again, part) for part in ("are_plain", "nbytes"))
    parts = ("names", "types", "kinds", "codecs", "changed", "blocks", "payloads", "digests", "base_digests")
    assert all(list(getattr(columns, part)) == getattr(again, part) for part in parts)
    assert b"".join(entry.digests() for entry in entries) == DIGESTS[: found.digest_size]
    assert list(pickle.loads(pickle.dumps(columns)).make_entries()) == entries
    return [entry.with_digests(b"", b"", b"") for entry in entries]


@st.composite
def entries(draw: Any) -> dict[str, Any]:
    """An entry's JSON that is mostly right: with all members that its kind needs, but some too many, or with numbers that do not fit."""
    kind, dtype = draw(st.sampled_from(["same", "delta", "new", "copy"])), draw(DTYPE_NAMES)
    shape = draw(st.lists(NUMBERS, max_size=3)) if draw(st.booleans()) else [4, 4]
    nbytes = DTYPES[dtype].nbytes(tuple(shape)) or 0
    value: dict[str, Any] = {
        "dtype": dtype,
        "kind": kind,
        "name": draw(st.sampled_from(["a", "b.weight", 'q"', "\u00e9", "", "\x7f", " "])),
    }
    value["shape"] = shape
    if kind in ("delta", "new"):
        value["blocks"] = [draw(NUMBERS) for _ in range(min(-(-nbytes // 2**21), 4))]
        value["codec"] = draw(st.sampled_from(["raw", "raw", "sparse", "context", "zip"]))
    if kind == "delta" or draw(st.integers(0, 9)) == 0:
        value["changed"] = draw(NUMBERS)
    if kind == "copy":
        value["of"] = "a"
    extra: dict[str, Any] = {"counts": False, "base": {"dtype": "F32"}, "blocks": [], "codec": "raw", "of": "x", "more": 1}
    for name in draw(st.sets(st.sampled_from(sorted(extra)), max_size=1)) if draw(st.integers(0, 4)) == 0 else ():
        value[name] = extra[name]
    return value


@quick(400)
@given(st.lists(entries(), max_size=4))
def test_it_takes_nothing_that_the_strict_reader_refuses(values: list[dict[str, Any]]) -> None:
    text = canonical.dumps({"removed": [], "tensors": values})
    found = plain(text)
    if found is not None:
        assert found == strict(text)


@quick(200)
@given(st.integers(0, 2**32 - 1))
def test_changed_bytes(seed: int) -> None:
    """Every byte of the text counts."""
    rng = random.Random(seed)
    text = bytearray(canonical.dumps({"removed": [], "tensors": PLAIN}))
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(text))
        piece = rng.choice([b"", b",", b"]", b"[", b"{", b"}", b'"', b"\\", b" ", b"0", b"1", b"a", bytes(text[at : at + 9]), b"\xc3"])
        text[at : at + rng.randint(0, 2)] = piece
    found = plain(bytes(text))
    if found is not None:
        assert found == strict(bytes(text))


PLAIN: list[dict[str, Any]] = [
    {"dtype": "BF16", "kind": "same", "name": "a", "shape": [4, 4]},
    {"blocks": [7], "changed": 3, "codec": "sparse", "dtype": "BF16", "kind": "delta", "name": "b", "shape": [16]},
    {"blocks": [9, 5], "changed": 1, "codec": "context", "dtype": "F32", "kind": "delta", "name": "c", "shape": [2**20]},
    {"blocks": [8], "codec": "raw", "dtype": "I8", "kind": "new", "name": "d", "shape": [8]},
    {"dtype": "F4", "kind": "same", "name": "e.[0]/\u007e", "shape": []},
    {"blocks": [], "codec": "raw", "dtype": "F4", "kind": "new", "name": "f", "shape": [0, 2]},
]


def test_plain_entries_are_read() -> None:
    values = [value for value in PLAIN if value["name"][0] != "e"]  # half a byte is no tensor
    text = canonical.dumps({"removed": [], "tensors": values})
    assert text.decode().startswith(BEGIN)
    found = plain(text, 2)
    assert found is not None and found == strict(text) and [entry.name for entry in found] == ["a", "b", "c", "d", "f"]
    assert plain_entries(text, 0) is None  # more blocks than the target file has room for: the strict reader counts what it may take


@pytest.mark.parametrize(
    "change",
    [
        {"name": "\u00e9"},
        {"name": "a\\b"},
        {"counts": False},
        {"base": {"dtype": "F32"}},
        {"kind": "copy", "of": "b"},
        {"shape": [3], "dtype": "F4"},
        {"dtype": "F128"},
        {"shape": [1] * 33},
        {"changed": 1},
        {"blocks": [1], "changed": 17, "codec": "sparse", "kind": "delta"},
        {"blocks": [1], "changed": 0, "codec": "sparse", "kind": "delta"},
        {"blocks": [1, 1], "changed": 1, "codec": "sparse", "kind": "delta"},
        {"blocks": [2**24 + 1], "changed": 1, "codec": "sparse", "kind": "delta"},
        {"blocks": [1], "changed": 1, "codec": "zip", "kind": "delta"},
        {"blocks": [1], "codec": "sparse", "kind": "delta"},
        {"blocks": [1], "codec": "sparse", "kind": "new"},
        {"blocks": [1], "changed": 1, "codec": "raw", "kind": "new"},
        {"blocks": [1], "codec": "raw", "kind": "same"},
    ],
)
def test_all_else_is_left_to_the_strict_reader(change: dict[str, Any]) -> None:
    text = canonical.dumps({"removed": [], "tensors": [{**PLAIN[0], **change}]})
    assert plain_entries(text, 2) is None


@pytest.mark.parametrize("numbers", ["04", "4,", ",4", "4,,4", "00", "1000000000000000"])
def test_integers_that_are_not_plain(numbers: str) -> None:
    """Where JSON has no such integers, and where the strict reader has to count digits."""
    text = canonical.dumps({"removed": [], "tensors": [PLAIN[1], PLAIN[3]]}).decode()
    for place in ('"blocks":[{}]', '"shape":[{}]', '"changed":{},'):
        before = next(place.format(found) for found in (7, 16, 3) if place.format(found) in text)
        assert plain(text.replace(before, place.format(numbers)).encode()) is None
    assert plain(text.encode()) is not None


@pytest.mark.parametrize(
    ("member", "other"),
    [
        ('"blocks":[7],', ""),
        ('"changed":3,', ""),
        ('"codec":"sparse",', ""),
        ('"codec":"raw",', ""),
        ('{"dtype":"BF16"', '{"blocks":[],"dtype":"BF16"'),
    ],
)
def test_members_that_belong_together(member: str, other: str) -> None:
    text = canonical.dumps({"removed": [], "tensors": [PLAIN[0], PLAIN[1], PLAIN[3]]}).decode()
    assert plain(text.encode()) is not None and member in text
    assert plain(text.replace(member, other).encode()) is None


def test_a_list_of_removed_tensors_is_left_to_the_strict_reader() -> None:
    assert plain_entries(canonical.dumps({"removed": ["x"], "tensors": PLAIN[:1]}), 2) is None
    assert plain_entries(canonical.dumps({"removed": [], "tensors": []}), 2) is None

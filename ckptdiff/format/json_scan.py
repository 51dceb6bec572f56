"""Where the parts of JSON lie in its bytes, before any of it is parsed (spec section 11).

A byte of JSON can take a hundred bytes of memory once it is parsed, so readers count first, and parse large documents part by part.
Nothing here checks that JSON is valid: each part still has to be parsed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

MAX_DEPTH = 64
"""Limit of the depth that objects and arrays nest."""
SCAN_BYTES = 1 << 18
"""How many bytes are scanned at once."""
WHITE_SPACE = b" \t\n\r"
OPENING, CLOSING, COMMA, COLON = 1, 2, 4, 8
"""The kinds of marks: braces and brackets that open and close, commas, and colons."""

Array: TypeAlias = npt.NDArray[Any]

_KINDS = np.zeros(256, np.uint8)
_KINDS[list(b"{[")], _KINDS[list(b"}]")], _KINDS[list(b",")], _KINDS[list(b":")] = OPENING, CLOSING, COMMA, COLON
"""By byte: the kind of mark that it is, or 0."""
_DEPTH_STEPS = np.zeros(COLON + 1, np.int64)
_DEPTH_STEPS[OPENING], _DEPTH_STEPS[CLOSING] = 1, -1
"""By kind of mark: how it changes the depth."""


class Span(NamedTuple):
    """A part of an object, which can be parsed by itself."""

    kind: Literal["member", "array", "item"]
    """A member (``"key":value``), the opening of a member that is an array (``"key":[``), or an item of that array."""
    key: str
    """The key of the array; empty for a member."""
    begin: int
    """Where the part begins in the JSON."""
    end: int
    """Where it ends."""
    nodes: int
    """How many braces and brackets in it open, and how many commas divide."""


def count_nodes(data: bytes) -> int:
    """How many braces and brackets open, and how many commas divide: JSON has at most one value more than these.

    Raises:
        ValueError: objects and arrays nest too deeply.
    """
    return sum(int(np.count_nonzero(kinds & (OPENING | COMMA))) for _, kinds, _ in _marks(data, MAX_DEPTH))


def parts(data: bytes, arrays: Collection[str] = (), exact: bool = False, depth: int = MAX_DEPTH) -> Iterator[Span]:
    """The parts of an object, in order: its members, and the items of some that are arrays.

    Args:
        data: the JSON of the object.
        arrays: the keys of members that are divided into items, if they are arrays.
        exact: whether nothing may stand between the parts, as in canonical JSON; else white space may.
        depth: how deep objects and arrays may nest.

    Raises:
        ValueError: it is not an object, or its parts do not fit together.
    """
    return _Splitter(data, {b'"%s"' % key.encode(): key for key in arrays}, exact).parts(depth)


class _Splitter:
    """The state of :func:`parts`: the member that the scan is in, and the item if the member is an array that is divided.

    Positions are -1 where there is none.
    """

    def __init__(self, data: bytes, arrays: dict[bytes, str], exact: bool) -> None:
        self.data, self.arrays, self.exact = data, arrays, exact
        self.begin = self.colon = self.item = self.closed = -1
        self.nodes = self.item_nodes = 0  # how many there were when the member, or the item, began
        self.key, self.ended, self.divided, self.several = "", False, False, False

    def parts(self, depth: int) -> Iterator[Span]:
        """The parts in order, up to a depth of nesting."""
        total, end = 0, 0
        for positions, kinds, levels in _marks(self.data, depth):
            counts = total + np.cumsum(kinds & (OPENING | COMMA) != 0)
            total = int(counts[-1]) if len(counts) else total
            needed = levels <= (2 if self.arrays else 1)
            for at, kind, level, nodes in zip(*(row[needed].tolist() for row in (positions, kinds, levels, counts)), strict=True):
                if self.ended or level < 1:
                    raise ValueError("something follows its value")
                yield from self._object_mark(at, kind, nodes) if level == 1 else self._member_mark(at, kind, nodes)
                end = at + 1
        if not self.ended:
            raise ValueError("expected an object" if self.begin < 0 else "it ends too soon")
        self._expect_nothing(end, len(self.data))

    def _expect_nothing(self, begin: int, end: int) -> None:
        """Raise ValueError if there is anything from ``begin`` to ``end``, but for white space where that is allowed."""
        between = self.data[begin:end]
        if between and (self.exact or between.strip(WHITE_SPACE)):
            raise ValueError("it is not in canonical form" if self.exact else f"something stands between its members at byte {begin}")

    def _object_mark(self, at: int, kind: int, nodes: int) -> Iterator[Span]:
        """The parts that end at a mark of the object itself."""
        if kind == OPENING:
            self._expect_nothing(0, at)
            if self.data[at : at + 1] != b"{":
                raise ValueError("expected an object")
        elif kind == COLON:
            if self.colon < 0:
                key = self.data[self.begin : at] if at - self.begin < 256 else b""
                self.colon, self.key = at, self.arrays.get(key if self.exact else key.strip(WHITE_SPACE), "")
            return
        elif self.closed >= 0:
            self._expect_nothing(self.closed, at)
        elif kind == COMMA or self.divided or self.data[self.begin : at].strip(WHITE_SPACE):
            yield Span("member", "", self.begin, at, nodes - self.nodes - (kind == COMMA))
        elif self.exact:
            self._expect_nothing(self.begin, at)
        if kind == CLOSING:
            self.ended = True
            if self.data[at : at + 1] != b"}":
                raise ValueError("an object ends with a bracket")
        self.divided = kind == COMMA
        self.begin, self.colon, self.closed, self.key, self.nodes = at + 1, -1, -1, "", nodes

    def _member_mark(self, at: int, kind: int, nodes: int) -> Iterator[Span]:
        """The parts that end at a mark of a member's value."""
        if not self.key or kind == COLON:
            return
        if kind == OPENING:
            if self.item < 0 and self.closed < 0 and self.data[at : at + 1] == b"[":
                self._expect_nothing(self.colon + 1, at)
                self.item, self.item_nodes, self.several = at + 1, nodes, False
                yield Span("array", self.key, self.begin, at + 1, 1)
        elif self.item >= 0:
            if kind == COMMA or self.several or self.data[self.item : at].strip(WHITE_SPACE):
                yield Span("item", self.key, self.item, at, nodes - self.item_nodes - (kind == COMMA))
            elif self.exact:
                self._expect_nothing(self.item, at)
            self.item, self.item_nodes, self.several = at + 1, nodes, True
            if kind == CLOSING:
                self.item, self.closed = -1, at + 1
                if self.data[at : at + 1] != b"]":
                    raise ValueError("an array ends with a brace")


def _marks(data: bytes, max_depth: int) -> Iterator[tuple[Array, Array, Array]]:
    """Positions, kinds and levels of all braces, brackets, commas and colons outside strings, some at a time.

    The level of a mark is how deep it stands; a brace or bracket stands as deep as what is between it and its other half.

    Raises:
        ValueError: objects and arrays nest deeper than ``max_depth``.
    """
    depth, inside, escaped = 0, np.uint8(0), False
    for start in range(0, len(data), SCAN_BYTES):
        text = np.frombuffer(data, np.uint8, min(SCAN_BYTES, len(data) - start), start)
        quotes, slashes = text == ord('"'), text == ord("\\")
        if escaped or slashes.any():
            free, escaped = _unescaped(slashes, escaped)
            quotes &= free
        strings = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ inside
        inside = strings[-1]
        kinds = _KINDS[text] * (strings ^ 1)
        positions = np.flatnonzero(kinds)
        kinds = kinds[positions]
        depths = depth + np.cumsum(_DEPTH_STEPS[kinds])
        levels = depths + (kinds == CLOSING)
        if len(levels):
            depth = int(depths[-1])
            if levels.max() > max_depth:
                raise ValueError("it is nested too deeply")
        yield start + positions, kinds, levels


def _unescaped(slashes: Array, first: bool) -> tuple[Array, bool]:
    """Which bytes no backslash escapes, and whether the first byte behind them is escaped; ``first``: whether the first of them is."""
    where = np.flatnonzero(slashes)
    runs = np.maximum.accumulate(np.where(np.diff(where, prepend=-2) != 1, where, 0)) if len(where) else where
    if first:
        runs = np.maximum(runs, 1)  # an escaped backslash does not escape
    free = np.ones(len(slashes) + 1, np.bool_)
    free[where[(where - runs) % 2 == 0] + 1] = False
    free[0] &= not first
    return free[:-1], not free[-1]

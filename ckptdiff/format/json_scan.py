"""Where the parts of JSON lie, found in its bytes before any of it is parsed (spec section 11).

A byte of JSON can take a hundred bytes of memory once it is parsed. So readers count first, and parse large documents part by part.
Nothing here says that JSON is valid: each part still has to be parsed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

MAX_DEPTH = 64
CHUNK = 1 << 18
SPACE = b" \t\n\r"
OPEN, CLOSE, COMMA, COLON = 1, 2, 4, 8

Array: TypeAlias = npt.NDArray[Any]

_KINDS = np.zeros(256, np.uint8)
_KINDS[list(b"{[")], _KINDS[list(b"}]")], _KINDS[list(b",")], _KINDS[list(b":")] = OPEN, CLOSE, COMMA, COLON
_STEPS = np.zeros(COLON + 1, np.int64)
_STEPS[OPEN], _STEPS[CLOSE] = 1, -1


class Span(NamedTuple):
    """A part of an object, bytes ``begin`` to ``end`` of its JSON, with ``nodes`` braces, brackets and commas that open or divide.

    ``kind``: a ``member`` (``"key":value``), the opening of a member that is an ``array`` (``"key":[``), or an ``item`` of that array.
    """

    kind: Literal["member", "array", "item"]
    key: str
    begin: int
    end: int
    nodes: int


def count_nodes(data: bytes) -> int:
    """Braces, brackets and commas that open or divide a value: an upper bound of the values in it, less one.

    Raises:
        ValueError: objects and arrays nest too deeply.
    """
    return sum(int(np.count_nonzero(kinds & (OPEN | COMMA))) for _, kinds, _ in _marks(data, MAX_DEPTH))


def parts(data: bytes, arrays: Collection[str] = (), exact: bool = False, depth: int = MAX_DEPTH) -> Iterator[Span]:
    """The members of the object that ``data`` is, and of those whose key is one of ``arrays`` each item by itself.

    ``exact``: nothing stands between the parts, as in canonical JSON; else white space may. ``depth``: how deep it may nest.

    Raises:
        ValueError: it is not an object, or its parts do not fit together.
    """
    return _Splitter(data, {b'"%s"' % key.encode(): key for key in arrays}, exact).parts(depth)


class _Splitter:
    """The state of :func:`parts`: where the current member begins, its colon, and the array in it if that is divided."""

    def __init__(self, data: bytes, arrays: dict[bytes, str], exact: bool) -> None:
        self.data, self.arrays, self.exact = data, arrays, exact
        self.begin = self.colon = self.item = self.closed = -1
        self.nodes = self.item_nodes = 0
        self.key, self.ended, self.divided, self.several = "", False, False, False

    def parts(self, depth: int) -> Iterator[Span]:
        """The parts in order."""
        total, end = 0, 0
        for places, kinds, levels in _marks(self.data, depth):
            counts = total + np.cumsum(kinds & (OPEN | COMMA) != 0)
            total = int(counts[-1]) if len(counts) else total
            kept = levels <= (2 if self.arrays else 1)
            for at, kind, level, nodes in zip(*(row[kept].tolist() for row in (places, kinds, levels, counts)), strict=True):
                if self.ended or level < 1:
                    raise ValueError("something follows its value")
                yield from self._top(at, kind, nodes) if level == 1 else self._below(at, kind, nodes)
                end = at + 1
        if not self.ended:
            raise ValueError("expected an object" if self.begin < 0 else "it ends too soon")
        self._nothing(end, len(self.data))

    def _nothing(self, begin: int, end: int) -> None:
        """Raise ValueError unless there is nothing from ``begin`` to ``end``, or white space where it may be."""
        between = self.data[begin:end]
        if between and (self.exact or between.strip(SPACE)):
            raise ValueError("it is not in canonical form" if self.exact else f"something stands between its members at byte {begin}")

    def _top(self, at: int, kind: int, nodes: int) -> Iterator[Span]:
        """A mark of the object itself."""
        if kind == OPEN:
            self._nothing(0, at)
            if self.data[at : at + 1] != b"{":
                raise ValueError("expected an object")
        elif kind == COLON:
            if self.colon < 0:
                key = self.data[self.begin : at] if at - self.begin < 256 else b""
                self.colon, self.key = at, self.arrays.get(key if self.exact else key.strip(SPACE), "")
            return
        elif self.closed >= 0:
            self._nothing(self.closed, at)
        elif kind == COMMA or self.divided or self.data[self.begin : at].strip(SPACE):
            yield Span("member", "", self.begin, at, nodes - self.nodes - (kind == COMMA))
        elif self.exact:
            self._nothing(self.begin, at)
        if kind == CLOSE:
            self.ended = True
            if self.data[at : at + 1] != b"}":
                raise ValueError("an object ends with a bracket")
        self.divided = kind == COMMA
        self.begin, self.colon, self.closed, self.key, self.nodes = at + 1, -1, -1, "", nodes

    def _below(self, at: int, kind: int, nodes: int) -> Iterator[Span]:
        """A mark of a member's value."""
        if not self.key or kind == COLON:
            return
        if kind == OPEN:
            if self.item < 0 and self.closed < 0 and self.data[at : at + 1] == b"[":
                self._nothing(self.colon + 1, at)
                self.item, self.item_nodes, self.several = at + 1, nodes, False
                yield Span("array", self.key, self.begin, at + 1, 1)
        elif self.item >= 0:
            if kind == COMMA or self.several or self.data[self.item : at].strip(SPACE):
                yield Span("item", self.key, self.item, at, nodes - self.item_nodes - (kind == COMMA))
            elif self.exact:
                self._nothing(self.item, at)
            self.item, self.item_nodes, self.several = at + 1, nodes, True
            if kind == CLOSE:
                self.item, self.closed = -1, at + 1
                if self.data[at : at + 1] != b"]":
                    raise ValueError("an array ends with a brace")


def _marks(data: bytes, most: int) -> Iterator[tuple[Array, Array, Array]]:
    """Places, kinds and levels of all braces, brackets, commas and colons outside strings; a pair's own level is that inside of it.

    Raises:
        ValueError: they nest more than ``most`` deep.
    """
    depth, inside, escaped = 0, np.uint8(0), False
    for start in range(0, len(data), CHUNK):
        text = np.frombuffer(data, np.uint8, min(CHUNK, len(data) - start), start)
        quotes, slashes = text == ord('"'), text == ord("\\")
        if escaped or slashes.any():
            free, escaped = _unescaped(slashes, escaped)
            quotes &= free
        strings = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ inside
        inside = strings[-1]
        kinds = _KINDS[text] * (strings ^ 1)
        places = np.flatnonzero(kinds)
        kinds = kinds[places]
        depths = depth + np.cumsum(_STEPS[kinds])
        levels = depths + (kinds == CLOSE)
        if len(levels):
            depth = int(depths[-1])
            if levels.max() > most:
                raise ValueError("it is nested too deeply")
        yield start + places, kinds, levels


def _unescaped(slashes: Array, first: bool) -> tuple[Array, bool]:
    """Which bytes no backslash escapes, and whether the last one escapes what follows; ``first``: the first byte is escaped."""
    where = np.flatnonzero(slashes)
    runs = np.maximum.accumulate(np.where(np.diff(where, prepend=-2) != 1, where, 0)) if len(where) else where
    if first:
        runs = np.maximum(runs, 1)  # an escaped backslash begins no escape
    free = np.ones(len(slashes) + 1, np.bool_)
    free[where[(where - runs) % 2 == 0] + 1] = False
    free[0] &= not first
    return free[:-1], not free[-1]

"""Typed getters over parsed JSON, which read it without trusting it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from ckptdiff.errors import CkptdiffError, FormatError, UnsupportedError
from ckptdiff.format.canonical import MAX_INTEGER, JsonObject, members, quote, quoted

T = TypeVar("T")
MAX_MEMBERS = 64
"""Limit of the members of an object that is read part by part: a report has fifteen."""


@lru_cache(maxsize=256)
def _words(text: str) -> frozenset[str]:
    """The words of a text, which are names of members."""
    return frozenset(text.split())


class Fields:
    """Typed getters over one JSON object that is not trusted.

    Every getter raises FormatError, with the path of the member, where the member is missing or has another type or value.
    """

    def __init__(self, value: Any, where: str, known: str) -> None:
        """Take an object.

        Args:
            value: what was parsed.
            where: its path, for messages.
            known: the names of the members that it may have, with spaces between.

        Raises:
            FormatError: it is not an object. UnsupportedError: it has another member.
        """
        if not isinstance(value, dict):
            raise FormatError(f"{where}: expected an object, found {type(value).__name__}")
        if not value.keys() <= _words(known):
            unknown = sorted(value.keys() - _words(known))
            raise UnsupportedError(f"{where}: unknown member {quoted(unknown[0])}; the patch may need a newer ckptdiff: try to upgrade")
        self.value: JsonObject = value
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def _get(self, key: str, kind: type[T]) -> T:
        if key not in self.value:
            raise FormatError(f"{self.where}: missing member {quote(key)}")
        value = self.value[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise FormatError(f"{self.where}.{key}: expected {kind.__name__}, found {type(value).__name__}")
        return value

    def text(self, key: str) -> str:
        """A member that is a string."""
        return self._get(key, str)

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """A member that is an integer from ``low`` to ``high``."""
        value = self._get(key, int)
        if not low <= value <= high:
            raise FormatError(f"{self.where}.{key}: expected {low} to {high}, found {value}")
        return value

    def hexadecimal(self, key: str, nbytes: int) -> bytes:
        """A member that is so many bytes in lower-case hexadecimal."""
        text = self.text(key)
        if len(text) != 2 * nbytes or text.strip("0123456789abcdef"):
            raise FormatError(f"{self.where}.{key}: expected {2 * nbytes} lower-case hexadecimal digits, found {quoted(text)}")
        return bytes.fromhex(text)

    def kind(self, members: dict[str, str], common: str) -> Any:
        """The member ``kind``, after a check that the object has only members that this kind may have.

        Args:
            members: for each kind, the names of the members that it may have beside the common ones, with spaces between.
            common: the names of members that all kinds may have.

        Raises:
            FormatError: the kind has no such member. UnsupportedError: there is no such kind.
        """
        kind = self.text("kind")
        if kind not in members:
            raise UnsupportedError(f"{self.where}.kind: unknown kind {quoted(kind)}: try to upgrade ckptdiff")
        allowed = _words(f"{common} {members[kind]}")
        if not self.value.keys() <= allowed:
            extra = sorted(self.value.keys() - allowed)
            raise FormatError(f"{self.where}: the kind {quote(kind)} has no member {quoted(extra[0])}")
        return kind

    def items(self, key: str) -> list[Any]:
        """The items of an array that :func:`load_divided` has read."""
        return self._get(key, list)

    def array(self, key: str, item: Callable[[Any, str], T]) -> tuple[T, ...]:
        """A member that is an array: what ``item`` makes of each of its values and their paths."""
        values = self._get(key, list)
        return tuple(item(value, f"{self.where}.{key}[{i}]") for i, value in enumerate(values))

    def object(self, key: str) -> JsonObject:
        """A member that is an object of any members."""
        return self._get(key, dict)

    def child(self, key: str, known: str) -> Fields:
        """A member that is an object of known members."""
        return Fields(self.object(key), f"{self.where}.{key}", known)


def as_text(value: Any, where: str) -> str:
    """A string; raises FormatError for anything else."""
    if not isinstance(value, str):
        raise FormatError(f"{where}: expected a string, found {type(value).__name__}")
    return value


def as_integer(value: Any, where: str) -> int:
    """An integer of at least 0; raises FormatError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FormatError(f"{where}: expected an integer of at least 0, found {quoted(value)}")
    return value


class _PartReader:
    """An object while it is read part by part: its members so far, and the first fault of an item.

    Faults of the JSON come before those of items (spec 13), so the latter wait until all parts are parsed.
    """

    def __init__(self, where: str, read: Mapping[str, Callable[[Any, str], Any]], most: int) -> None:
        self.where, self.read, self.most = where, read, most
        self.value: JsonObject = {}
        self.fault: CkptdiffError | None = None

    def add_member(self, key: str, part: Any) -> None:
        if len(self.value) == MAX_MEMBERS:
            raise ValueError(f"it has more than {MAX_MEMBERS} members")
        if key not in self.read or not isinstance(part, list):
            self.value[key] = part
            return
        self.value[key] = []
        for item in part:  # an array whose key is written with escapes comes as a whole
            self.add_item(key, item)

    def add_item(self, key: str, item: Any) -> None:
        path, items = f"{self.where}.{key}", self.value[key]
        if len(items) == self.most:
            raise FormatError(f"{path}: expected at most {self.most} items, found more")
        try:
            items.append(self.read[key](item, f"{path}[{len(items)}]") if self.fault is None else None)
        except CkptdiffError as error:
            items.append(None)
            self.fault = error


def load_divided(
    data: bytes,
    where: str,
    known: str,
    read: Mapping[str, Callable[[Any, str], Any]],
    *,
    most: int,
    nodes: int,
    depth: int,
    exact: bool = True,
    first: Callable[[JsonObject], None] = lambda _: None,
) -> Fields:
    """Read an object whose large arrays are parsed item by item, so that it never stands in memory as parsed JSON.

    Faults of the JSON come first, then unknown members and missing arrays, then those of items (spec 13).

    Args:
        data: the JSON.
        where: its path, for messages.
        known: the names of the members that it may have, with spaces between.
        read: the keys of the arrays, and what makes the item of the result from a value and its path.
        most: how many items an array may have.
        nodes: how many braces, brackets and commas a part may have.
        depth: how deep objects and arrays may nest.
        exact: whether the JSON must be canonical; if not, floats are allowed too.
        first: checks that come before that of unknown members.

    Raises:
        FormatError: it is not such an object. UnsupportedError: it has another member. Others: those of the functions.
    """
    reader = _PartReader(where, read, most)
    try:
        for array, key, part in members(data, dict.fromkeys(read, nodes), nodes, exact, not exact, depth):
            if array:
                reader.add_item(array, part)
            else:
                reader.add_member(key, part)
    except ValueError as error:
        raise FormatError(f"{where}: bad JSON: {error}: fetch the patch again") from None
    first(reader.value)
    fields = Fields(reader.value, where, known)
    for array in read:
        fields.items(array)
    if reader.fault is not None:
        raise reader.fault
    return fields

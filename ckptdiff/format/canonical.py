"""Canonical JSON (spec section 2) and the typed getters that read it without trusting it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from ckptdiff.errors import CkptdiffError, FormatError, UnsupportedError, cut
from ckptdiff.format import json_scan

T = TypeVar("T")
MAX_INTEGER = (1 << 53) - 1
"""Integers from minus this to this are read alike in every language, also where all numbers are doubles."""
MAX_MEMBERS = 64
"""Members of an object that is read part by part: a report has fifteen."""
MAX_NODES = 1 << 19
"""Braces, brackets and commas of what is parsed at once: each may take some 250 bytes of memory."""
JsonObject: TypeAlias = dict[str, Any]

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


def quote(text: str) -> str:
    """A JSON string, escaped canonically."""
    return json.dumps(text, ensure_ascii=False)


def quoted(text: object) -> str:
    """Text out of a file in quotation marks, cut as :func:`ckptdiff.errors.cut` does, for messages."""
    return quote(cut(text))


def dumps(value: object) -> bytes:
    """Canonical JSON of objects, arrays, strings, integers, booleans and null.

    Raises:
        ValueError: a string holds an unpaired surrogate.
    """
    return _ENCODER.encode(value).encode()


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {quoted(repeated)} is repeated")
    return result


def _no_number(text: str) -> Any:
    raise ValueError(f"{cut(text)} is not an integer")


def _only_integers(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not an integer")
    value = int(text) if len(text) < 18 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"{cut(text)} is too large an integer")
    return value


_DECODERS = {
    floats: json.JSONDecoder(
        object_pairs_hook=_unique, parse_constant=_no_number, parse_float=float if floats else _no_number, parse_int=_only_integers
    )
    for floats in (False, True)
}


def _parse(data: bytes, floats: bool = False) -> Any:
    """Parse strict JSON that has been counted; raises ValueError with one line that says what is wrong."""
    try:
        return _DECODERS[floats].decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None


def _encode(value: Any) -> bytes:
    """Canonical JSON of what was parsed; raises ValueError for unpaired surrogates."""
    try:
        return dumps(value)
    except UnicodeEncodeError:
        raise ValueError("it holds an unpaired surrogate") from None


def _check_nodes(found: int, most: int) -> None:
    if found > most:
        raise ValueError(f"it has {found} braces, brackets and commas, more than the {most} that it could need")


def loads(data: bytes, floats: bool = False, nodes: int = MAX_NODES) -> Any:
    """Parse strict JSON: UTF-8, no repeated keys, no unpaired surrogates, no floats unless they are asked for.

    Braces, brackets and commas are counted before anything is parsed; there may be so many ``nodes`` of them.

    Raises:
        ValueError: with one line that says what is wrong.
    """
    _check_nodes(json_scan.count_nodes(data), nodes)
    value = _parse(data, floats)
    _check_text(value, data)
    return value


def _check_text(value: Any, data: bytes) -> None:
    """Raise ValueError for unpaired surrogates, which UTF-8 cannot hold but as escapes."""
    try:
        if b"\\u" not in data:
            return
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds an unpaired surrogate") from None


def members(
    data: bytes, arrays: Mapping[str, int], nodes: int, exact: bool = False, floats: bool = False, depth: int = json_scan.MAX_DEPTH
) -> Iterator[tuple[str, str, Any]]:
    """Parse the object that ``data`` is part by part: (``""``, key, value) of a member, (key, ``""``, item) of an item of ``arrays``.

    An array of ``arrays`` itself comes first, as a member without items. Keys are unique, and all is strict as of :func:`loads`.

    Args:
        arrays: the keys of arrays to read item by item, and how many nodes an item may have.
        nodes: how many any other member may have.
        exact: the JSON must be canonical.
        depth: how deep it may nest.

    Raises:
        ValueError: with one line that says what is wrong.
    """
    keys: set[str] = set()
    last: str | None = None
    for kind, array, begin, end, size in _batches(json_scan.parts(data, arrays, exact, depth), arrays, nodes, exact):
        text = FORMS[kind] % data[begin:end]
        value = _parse(text, floats)
        if exact and _encode(value) != text:
            raise ValueError("it is not in canonical form")
        if not exact:
            _check_text(value, text)
        if len(value) != size:
            raise ValueError("it has a comma too many")
        if kind == "item":
            yield from ((array, "", item) for item in value)
            continue
        for key, item in value.items():
            if key in keys:
                raise ValueError(f"the key {quoted(key)} is repeated")
            if exact and last is not None and key < last:
                raise ValueError("it is not in canonical form")
            keys.add(key)
            last = key
            yield "", key, item


FORMS = {"item": b"[%s]", "member": b"{%s}", "array": b"{%s]}"}
PART = 1 << 17
"""Bytes of a part of canonical JSON beside its numbers: two names of escapes need less."""
BATCH = 1 << 12
BATCH_BYTES = 1 << 18
"""Braces, brackets and commas, and bytes, up to which neighbours are parsed at once, which takes less time."""


def _batches(
    parts: Iterable[json_scan.Span], arrays: Mapping[str, int], nodes: int, exact: bool
) -> Iterator[tuple[str, str, int, int, int]]:
    """Neighbouring parts of one kind together: kind, key of the array, begin, end, and how many parts."""
    kind, array, begin, end, size, total = "", "", 0, 0, 0, 0
    for part in parts:
        _check_nodes(part.nodes, arrays[part.key] if part.kind == "item" else nodes)
        if exact and part.end - part.begin > PART + 16 * nodes:
            raise ValueError(f"a part of it has {part.end - part.begin} bytes, more than it could need")
        full = total + part.nodes > BATCH or part.end - begin > BATCH_BYTES
        if size and (full or part.kind == "array" or part.kind != kind or part.key != array):
            yield kind, array, begin, end, size
            size = 0
        if not size:
            kind, array, begin, total = part.kind, part.key, part.begin, 0
        end, size, total = part.end, size + 1, total + part.nodes + 1
    if size:
        yield kind, array, begin, end, size


def load_object(data: bytes, where: str, nodes: int = MAX_NODES) -> JsonObject:
    """Parse canonical JSON of one object; anything else is a FormatError that names ``where``."""
    try:
        _check_nodes(json_scan.count_nodes(data), nodes)
        value = _parse(data)
        if _encode(value) != data:
            raise ValueError("it is not in canonical form")
    except ValueError as error:
        raise FormatError(f"{where}: bad JSON: {error}: fetch the patch again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


@lru_cache(maxsize=256)
def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Fields:
    """Typed getters over one JSON object. Errors carry the path of the member; unknown members are refused."""

    def __init__(self, value: Any, where: str, known: str) -> None:
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
        return self._get(key, str)

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        value = self._get(key, int)
        if not low <= value <= high:
            raise FormatError(f"{self.where}.{key}: expected {low} to {high}, found {value}")
        return value

    def hexadecimal(self, key: str, nbytes: int) -> bytes:
        text = self.text(key)
        if len(text) != 2 * nbytes or text.strip("0123456789abcdef"):
            raise FormatError(f"{self.where}.{key}: expected {2 * nbytes} lower-case hexadecimal digits, found {quoted(text)}")
        return bytes.fromhex(text)

    def kind(self, members: dict[str, str], common: str) -> Any:
        """The member ``kind``, one of the keys of ``members``, which say which members beside ``common`` that kind may have."""
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
        values = self._get(key, list)
        return tuple(item(value, f"{self.where}.{key}[{i}]") for i, value in enumerate(values))

    def object(self, key: str) -> JsonObject:
        return self._get(key, dict)

    def child(self, key: str, known: str) -> Fields:
        return Fields(self.object(key), f"{self.where}.{key}", known)


def as_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{where}: expected a string, found {type(value).__name__}")
    return value


def as_integer(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FormatError(f"{where}: expected an integer of at least 0, found {quoted(value)}")
    return value


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
    """An object of the members ``known`` whose arrays ``read`` are read item by item, so that what was parsed never stands whole in memory.

    Each of the arrays becomes the list of what its function made of (item, where). Faults of the JSON come first, then unknown members
    and missing arrays, then those of items (spec 13).

    Args:
        most: how many items an array may have.
        nodes: how many braces, brackets and commas a part may have.
        depth: how deep it may nest.
        exact: the JSON must be canonical; else floats are allowed too.
        first: checks that come before that of unknown members.

    Raises:
        FormatError: it is not such an object. UnsupportedError: it has another member. Others: those of the functions.
    """
    value: JsonObject = {}
    wrong: CkptdiffError | None = None

    def take(array: str, item: Any) -> None:
        nonlocal wrong
        place, found = f"{where}.{array}", value[array]
        if len(found) == most:
            raise FormatError(f"{place}: expected at most {most} items, found more")
        try:
            found.append(read[array](item, f"{place}[{len(found)}]") if wrong is None else None)
        except CkptdiffError as error:
            found.append(None)
            wrong = error

    try:
        for array, key, part in members(data, dict.fromkeys(read, nodes), nodes, exact, not exact, depth):
            if array:
                take(array, part)
            elif len(value) == MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS} members")
            elif key in read and isinstance(part, list):
                value[key] = []
                for item in part:  # an array whose key is written with escapes is not divided
                    take(key, item)
            else:
                value[key] = part
    except ValueError as error:
        raise FormatError(f"{where}: bad JSON: {error}: fetch the patch again") from None
    first(value)
    fields = Fields(value, where, known)
    for array in read:
        fields.items(array)
    if wrong is not None:
        raise wrong
    return fields

"""Canonical JSON (spec section 2) and the typed getters that read it without trusting it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from ckptdiff.errors import FormatError, UnsupportedError

T = TypeVar("T")
MAX_DEPTH = 64
JsonObject: TypeAlias = dict[str, Any]


def visible(text: str) -> str:
    """Text for people, with what cannot be seen or could steer a terminal written out: names come from files that may be hostile."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def quote(text: str) -> str:
    """A JSON string, escaped canonically."""
    return json.dumps(text, ensure_ascii=False)


def dumps(value: object) -> bytes:
    """Canonical JSON of objects, arrays, strings, integers, booleans and null.

    Raises:
        ValueError: a string holds an unpaired surrogate.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {quote(repeated)} is repeated")
    return result


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not an integer")


def _only_integers(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"{text[:20]} is too large an integer")
    if text == "-0":
        raise ValueError("-0 is not an integer")
    return int(text)


def _is_too_deep(value: Any) -> bool:
    """Whether arrays and objects nest more than MAX_DEPTH deep; Python's own limit differs from version to version."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, (dict, list))]
        if not level:
            return False
    return True


def loads(data: bytes, floats: bool = False) -> Any:
    """Parse strict JSON: UTF-8, no repeated keys, no unpaired surrogates, no floats unless they are asked for.

    Raises:
        ValueError: with one line that says what is wrong.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=float if floats else _no_number,
            parse_int=_only_integers,
        )
        if isinstance(value, (dict, list)) and _is_too_deep(value):
            raise RecursionError
        json.dumps(value, ensure_ascii=False).encode()  # unpaired surrogates fail here
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ValueError("it holds an unpaired surrogate") from None
    return value


def load_object(data: bytes, where: str) -> JsonObject:
    """Parse canonical JSON of one object; anything else is a FormatError that names ``where``."""
    try:
        value = loads(data)
        if dumps(value) != data:
            raise ValueError("it is not in canonical form")
    except ValueError as error:
        raise FormatError(f"{where}: bad JSON: {error}: fetch the patch again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


class Fields:
    """Typed getters over one JSON object. Errors carry the path of the member; unknown members are refused."""

    def __init__(self, value: Any, where: str, known: str) -> None:
        if not isinstance(value, dict):
            raise FormatError(f"{where}: expected an object, found {type(value).__name__}")
        unknown = sorted(set(value) - set(known.split()))
        if unknown:
            raise UnsupportedError(f"{where}: unknown member {quote(unknown[0])}; the patch may need a newer ckptdiff: try to upgrade")
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

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        value = self._get(key, int)
        if not low <= value <= high:
            raise FormatError(f"{self.where}.{key}: expected {low} to {high}, found {value}")
        return value

    def hexadecimal(self, key: str, nbytes: int) -> bytes:
        text = self.text(key)
        if len(text) != 2 * nbytes or text.strip("0123456789abcdef"):
            raise FormatError(f"{self.where}.{key}: expected {2 * nbytes} lower-case hexadecimal digits, found {quote(text[:80])}")
        return bytes.fromhex(text)

    def kind(self, members: dict[str, str], common: str) -> Any:
        """The member ``kind``, one of the keys of ``members``, which say which members beside ``common`` that kind may have."""
        kind = self.text("kind")
        if kind not in members:
            raise UnsupportedError(f"{self.where}.kind: unknown kind {quote(kind[:40])}: try to upgrade ckptdiff")
        extra = sorted(set(self.value) - set(f"{common} {members[kind]}".split()))
        if extra:
            raise FormatError(f"{self.where}: the kind {quote(kind)} has no member {quote(extra[0])}")
        return kind

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
        raise FormatError(f"{where}: expected an integer of at least 0, found {quote(str(value)[:40])}")
    return value

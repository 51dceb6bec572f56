"""JSON (spec section 2): written canonically, read strictly, and counted before it is parsed (spec section 11)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from json.encoder import encode_basestring
from typing import Any, TypeAlias

from ckptdiff.errors import FormatError, cut
from ckptdiff.format import json_scan

MAX_INTEGER = (1 << 53) - 1
"""Integers from minus this to this are read alike in every language, also where all numbers are doubles."""
MAX_NODES = 1 << 19
"""Limit of the braces, brackets and commas of what is parsed at once: each may take some 250 bytes of memory."""
JsonObject: TypeAlias = dict[str, Any]

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


quote: Callable[[str], str] = encode_basestring
"""Makes a JSON string of text, escaped canonically."""


def quoted(text: object) -> str:
    """Text out of a file, for messages: cut as :func:`ckptdiff.errors.cut` does, and in quotation marks."""
    return quote(cut(text))


def dumps(value: object) -> bytes:
    """Canonical JSON of objects, arrays, strings, integers, booleans and null.

    Raises:
        ValueError: a string holds an unpaired surrogate.
    """
    return _ENCODER.encode(value).encode()


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    """An object of these members; raises ValueError if a key is repeated."""
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {quoted(repeated)} is repeated")
    return result


def _refuse_number(text: str) -> Any:
    raise ValueError(f"{cut(text)} is not an integer")


def _parse_integer(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not an integer")
    value = int(text) if len(text) < 18 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"{cut(text)} is too large an integer")
    return value


_DECODERS = {
    floats: json.JSONDecoder(
        object_pairs_hook=_unique, parse_constant=_refuse_number, parse_float=float if floats else _refuse_number, parse_int=_parse_integer
    )
    for floats in (False, True)
}
"""By whether floats are allowed."""


def _parse(data: bytes, floats: bool = False) -> Any:
    """Parse strict JSON whose nodes have been counted; raises ValueError with one line that says what is wrong."""
    try:
        return _DECODERS[floats].decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None


def _encode(value: Any) -> bytes:
    """Canonical JSON of what was parsed; raises ValueError if a string holds an unpaired surrogate."""
    try:
        return dumps(value)
    except UnicodeEncodeError:
        raise ValueError("it holds an unpaired surrogate") from None


def _check_all_nodes(data: bytes, most: int) -> None:
    """Raise ValueError if JSON has too many braces, brackets and commas, or nests too deeply.

    They are scanned only if there could be too many: of a short text that takes longer than to parse it.
    """
    opened = data.count(b"{") + data.count(b"[")  # as those in strings count too, at least as many as there are
    if opened > json_scan.MAX_DEPTH or opened + data.count(b",") > most:
        _check_nodes(json_scan.count_nodes(data), most)


def _check_nodes(count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"it has {count} braces, brackets and commas, more than the {most} that it could need")


def loads(data: bytes, floats: bool = False, nodes: int = MAX_NODES) -> Any:
    """Parse strict JSON: UTF-8, no repeated keys, and no unpaired surrogates.

    Args:
        data: the JSON.
        floats: whether numbers may be floats.
        nodes: how many braces, brackets and commas it may have; they are counted before anything is parsed.

    Raises:
        ValueError: with one line that says what is wrong.
    """
    _check_all_nodes(data, nodes)
    value = _parse(data, floats)
    _check_text(value, data)
    return value


def _check_text(value: Any, data: bytes) -> None:
    """Raise ValueError if a string holds an unpaired surrogate, which UTF-8 can only hold as an escape."""
    try:
        if b"\\u" not in data:
            return
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds an unpaired surrogate") from None


def members(
    data: bytes, arrays: Mapping[str, int], nodes: int, exact: bool = False, floats: bool = False, depth: int = json_scan.MAX_DEPTH
) -> Iterator[tuple[str, str, Any]]:
    """Parse one object part by part, as strictly as :func:`loads` does, so that it never stands in memory as a whole.

    Args:
        data: the JSON of the object.
        arrays: the keys of arrays to read item by item, and how many braces, brackets and commas an item may have.
        nodes: how many of these any other member may have.
        exact: whether the JSON must be canonical.
        floats: whether numbers may be floats.
        depth: how deep objects and arrays may nest.

    Yields:
        (``""``, key, value) for a member, and (key, ``""``, item) for an item of one of ``arrays``, before whose items the empty array
        comes as a member.

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
"""How parts of each kind are made whole JSON."""
MAX_PART_TEXT = 1 << 17
"""Limit of the bytes of a part of canonical JSON beside its numbers: two names of escapes need less."""
BATCH_NODES = 1 << 12
BATCH_BYTES = 1 << 18
"""Up to so many braces, brackets and commas, and bytes, neighbouring parts are parsed at once, which takes less time."""


def _batches(
    parts: Iterable[json_scan.Span], arrays: Mapping[str, int], nodes: int, exact: bool
) -> Iterator[tuple[str, str, int, int, int]]:
    """Neighbouring parts of one kind together: their kind, the key of their array, where they begin and end, and how many they are."""
    kind, array, begin, end, size, total = "", "", 0, 0, 0, 0
    for part in parts:
        _check_nodes(part.nodes, arrays[part.key] if part.kind == "item" else nodes)
        if exact and part.end - part.begin > MAX_PART_TEXT + 16 * nodes:
            raise ValueError(f"a part of it has {part.end - part.begin} bytes, more than it could need")
        full = total + part.nodes > BATCH_NODES or part.end - begin > BATCH_BYTES
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
        _check_all_nodes(data, nodes)
        value = _parse(data)
        if _encode(value) != data:
            raise ValueError("it is not in canonical form")
    except ValueError as error:
        raise FormatError(f"{where}: bad JSON: {error}: fetch the patch again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value

"""Mutations of JSON: of its values as a tree, which keeps it JSON, and of its text."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.fuzz.engine import Rng
from tests.support.mutations import mutate

NUMBERS = [0, 1, 2, -1, 7, 8, 255, 256, 1 << 16, 1 << 21, (1 << 21) + 1, 1 << 26, (1 << 26) + 1, 1 << 31, 1 << 32, 1 << 48, (1 << 48) + 1]
NUMBERS += [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 99999999999999999999, -(1 << 63), -(1 << 63) - 1]
STRINGS = ["", "a", "/", "..", "../x", ".git/config", "a/b/c", "é", "\U0001f600", "\x7f", "\x00", "\u2028", "x" * 4096, "x" * 4097]
STRINGS += [
    "BF16",
    "F32",
    "F16",
    "F4",
    "F6_E2M3",
    "C64",
    "BOOL",
    "same",
    "delta",
    "new",
    "copy",
    "raw",
    "sparse",
    "context",
    "w",
    "U8",
    "q" * 251,
]
STRINGS += ["0" * 32, "0" * 64, "A" * 32, "ckptdiff.json", "model.safetensors"]
VALUES: list[Any] = [None, True, False, [], {}, [[]], [0], {"a": 0}, [None], *NUMBERS, *STRINGS]
MEMBERS = """
name dtype shape kind base codec changed blocks of removed tensors format version digest table header report target totals info
files identity scope path size sha256 stored base_sha256 shards same delta new copy units base_repo data_offsets __metadata__
shapes pieces
""".split()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container of a tree with each of its keys, the roots first."""
    found, level = [], [value]
    while level:
        here = level.pop(0)
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else []
        for key in keys:
            found.append((here, key))
            level.append(here[key])
    return found


def mutate_tree(rng: Rng, value: Any) -> Any:
    """Another tree, changed in one place or two."""
    value = copy.deepcopy(value)
    for _ in range(1 if rng.random() < 0.8 else 2):
        spots = places(value)
        if not spots:
            return _pick(rng, VALUES)
        _change(rng, *_pick(rng, spots), spots)
    return value


def _change(rng: Rng, holder: Any, key: Any, spots: list[tuple[Any, Any]]) -> None:
    kind, old = rng.integers(9), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1:
        _insert(rng, holder, key, copy.deepcopy(old))
    elif kind == 2:
        other, there = _pick(rng, spots)
        holder[key] = copy.deepcopy(other[there]) if isinstance(other, dict) or there < len(other) else old
    elif kind == 3:
        _insert(rng, holder, key, copy.deepcopy(_pick(rng, VALUES)))
    elif kind == 4:
        holder[key] = copy.deepcopy(_pick(rng, VALUES))
    elif isinstance(old, list) and len(old) > 1:
        i, j = (int(rng.integers(len(old))) for _ in range(2))
        old[i], old[j] = old[j], old[i]
    elif isinstance(old, (list, dict)):
        _insert(rng, old, _pick(rng, MEMBERS) if isinstance(old, dict) else 0, copy.deepcopy(_pick(rng, VALUES)))
    else:
        holder[key] = leaf(rng, old)


def _insert(rng: Rng, holder: Any, key: Any, item: Any) -> None:
    if isinstance(holder, list):
        holder.insert(min(int(key) + int(rng.integers(2)), len(holder)), item)
    else:
        holder[_pick(rng, MEMBERS) if rng.random() < 0.7 else leaf(rng, str(key))] = item


def leaf(rng: Rng, old: Any) -> Any:
    """A number near another or far from it; a string with a character changed."""
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, int):
        return old + int(rng.choice([-1, 1, 8])) if rng.random() < 0.6 else _pick(rng, NUMBERS)
    if isinstance(old, float):
        return float(rng.choice([old + 1, -old, 0.0, 1e-320, 1e308, float("inf"), float("nan")]))
    at = int(rng.integers(len(old) + 1))
    return old[:at] + str(_pick(rng, ["", "a", "/", ".", "\\", "\n", "é", "0", "_", "\ud800"])) + old[at + int(rng.integers(2)) :]


def _pick(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def dump(value: Any) -> bytes:
    """Canonical JSON, but for what only a broken writer would write: lone surrogates, and floats that are no numbers."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def mutate_text(rng: Rng, text: bytes) -> bytes:
    """The same JSON, or nearly, written in another way."""
    kind, at = rng.integers(8), int(rng.integers(len(text) + 1))
    if kind == 0:
        return (
            text[:at]
            + bytes(rng.choice([b" ", b"\n", b"\xef\xbb\xbf", b",", b"-0", b"1.0", b"1e2", b"NaN", b"\\u0041", b"\\/", b"\\ud800"]))
            + text[at:]
        )
    if kind == 1:
        deep = int(rng.choice([1, 62, 63, 64, 65, 66, 300, 2000]))
        return text[:at] + b"[" * deep + b"]" * deep + text[at:]
    if kind == 2:
        return text.replace(b'":', b'": ', 1)
    if kind == 3:
        colon = text.find(b":", at)
        return text[: colon + 1] + b"-0" + text[colon + 1 :] if colon >= 0 else text
    return mutate(rng, text)

"""The vectors as a corpus, and the two programs that know the format without knowing ckptdiff: the minimal reader and the builder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

SPEC = Path(__file__).resolve().parents[2] / "spec"


@lru_cache
def load(folder: str, name: str) -> Any:
    """A module of the specification's folder, by an ordinary import, so that a fuzzer can instrument it."""
    sys.path.insert(0, str(SPEC / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SPEC / folder))


READER, BUILD = load("", "minimal_reader"), load("vectors", "build")

Parts = dict[str, bytes]
"""Files of a scenario by path: ``base...`` and ``patch...``, as in a vector."""


def pack(parts: Parts) -> bytes:
    """A scenario as one input: a line of name and size for each part, an empty line, and the parts."""
    head = "".join(f"{name} {len(data)}\n" for name, data in parts.items())
    return head.encode() + b"\n" + b"".join(parts.values())


def unpack(data: bytes) -> Parts | None:
    """Inverse of :func:`pack`; None if the bytes are nothing of the kind, or a name is not one of a vector's."""
    head, found, body = data.partition(b"\n\n")
    parts: Parts = {}
    try:
        for line in head.decode("ascii").split("\n"):
            name, _, size = line.rpartition(" ")
            steps = name.split("/")
            if not steps[0].startswith(("base", "patch")) or any(step in ("", ".", "..") for step in steps) or len(size) > 8:
                return None
            parts[name], body = body[: int(size)], body[int(size) :]
    except ValueError:
        return None
    return parts if found else None


LARGE = {"ok_pieces_at_limit", "table_pieces_too_many"}
"""Vectors whose tables are so large that each mutation of them would take seconds."""


@lru_cache
def scenarios() -> tuple[tuple[str, str, Parts], ...]:
    """Name, expected outcome and parts of every vector."""
    return tuple(_scenarios())


def _scenarios() -> Iterator[tuple[str, str, Parts]]:
    for path in sorted((SPEC / "vectors").glob("*.vector")):
        if path.stem in LARGE:
            continue
        head, _, body = path.read_bytes().partition(b"\n\n")
        parts: Parts = {}
        lines = head.decode().split("\n")
        if any(line.startswith("units: ") for line in lines):
            continue  # its base is too large to mutate
        for line in lines:
            if line.startswith("part: "):
                name, _, size = line.removeprefix("part: ").rpartition(" ")
                parts[name], body = body[: int(size)], body[int(size) :]
        yield path.stem, lines[0].removeprefix("expect: "), parts

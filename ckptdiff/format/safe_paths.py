"""Which paths a patch may name (spec section 9)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from ckptdiff.errors import FormatError
from ckptdiff.format.canonical import quoted
from ckptdiff.format.fields import as_text

MAX_PATH = 1024
"""Limit of a path in bytes of UTF-8."""
MAX_COMPONENT = 250
"""Limit of a component in bytes: ``.zst`` still fits behind it."""
UNFINISHED = ".ckptdiff-"
"""How names of unfinished work begin, which no file of a checkpoint may have."""
MAX_COMPONENTS = 32
"""Limit of the components of a path."""


def unsafe_reason(path: str) -> str | None:
    """Why a path may not be written below an output folder, to stand behind the path in a message; None if it may."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not 1 <= len(encoded) <= MAX_PATH:
        return f"has {len(encoded)} bytes, expected 1 to {MAX_PATH}"
    if any(c in "\\:" or c < " " or c == "\x7f" for c in path):
        return "holds a backslash, a colon or a control character"
    if path == "ckptdiff.json":
        return "is the name of a patch's own index"
    if path.count("/") >= MAX_COMPONENTS:
        return f"has {path.count('/') + 1} components, expected at most {MAX_COMPONENTS}"
    for component in path.split("/"):
        if component in ("", ".", "..") or component.lower() == ".git":
            return "has an empty component, '.', '..' or '.git'"
        if component.lower().startswith(UNFINISHED):
            return f"has a component that begins with {UNFINISHED!r}, as unfinished work does"
        if len(component.encode()) > MAX_COMPONENT:
            return f"has a component longer than {MAX_COMPONENT} bytes"
    return None


def conflicting_path(paths: Iterable[str]) -> str | None:
    """The first path, in order of components, that repeats another or lies below another; None if there is none.

    In that order a path is followed at once by all that lie below it, so that only neighbours need be compared.
    """
    ordered = sorted(paths, key=lambda path: path.replace("/", "\0"))
    for above, path in itertools.pairwise(ordered):
        if path == above or path.startswith(f"{above}/"):
            return path
    return None


def safe_path(path: Any, where: str) -> str:
    """A path of a patch that may be written below an output folder; raises FormatError for any other value."""
    text = as_text(path, where)
    reason = unsafe_reason(text)
    if reason:
        raise FormatError(f"{where}: the path {quoted(text)} {reason}: do not trust this patch")
    return text

"""Which paths a patch may name (spec section 9)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from ckptdiff.errors import FormatError
from ckptdiff.format import canonical
from ckptdiff.format.canonical import quoted

MAX_PATH = 1024
MAX_COMPONENT = 250
MAX_COMPONENTS = 32


def unsafe_reason(path: str) -> str | None:
    """Why a path may not be written below an output folder, or None if it may."""
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
        if len(component.encode()) > MAX_COMPONENT:
            return f"has a component longer than {MAX_COMPONENT} bytes"
    return None


def clash(paths: Iterable[str]) -> str | None:
    """The first path, in order of components, that repeats another or has one as its directory part, or None.

    In that order a path is followed at once by all that it is a directory part of, so that neighbours alone need be compared.
    """
    ordered = sorted(paths, key=lambda path: path.replace("/", "\0"))
    for above, path in itertools.pairwise(ordered):
        if path == above or path.startswith(f"{above}/"):
            return path
    return None


def safe_path(path: Any, where: str) -> str:
    """A path that may be written below an output folder (spec 9); raises FormatError for any other."""
    text = canonical.as_text(path, where)
    reason = unsafe_reason(text)
    if reason:
        raise FormatError(f"{where}: the path {quoted(text)} {reason}: do not trust this patch")
    return text

"""Which paths a patch may name (spec section 9)."""

from __future__ import annotations

from collections.abc import Iterable

MAX_PATH = 1024
MAX_COMPONENT = 250


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
    for component in path.split("/"):
        if component in ("", ".", "..") or component.lower() == ".git":
            return "has an empty component, '.', '..' or '.git'"
        if len(component.encode()) > MAX_COMPONENT:
            return f"has a component longer than {MAX_COMPONENT} bytes"
    return None


def clash(paths: Iterable[str]) -> str | None:
    """The first path that repeats another or is a directory part of one, or None."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        parts = path.split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        if path in seen or path in folders or above & seen:
            return path
        seen.add(path)
        folders |= above
    return None

"""Sizes, shares and ratios as people write them."""

from __future__ import annotations


def size(nbytes: int) -> str:
    """A size in decimal units, as the Hub shows it."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def share(part: float, whole: float) -> str:
    """A percentage that never rounds to 0 or 100 unless it is."""
    if whole == 0:
        return "-"
    percent = 100 * part / whole
    for digits in range(2, 8):
        text = f"{percent:.{digits}f}"
        if float(text) not in (0.0, 100.0) or part in (0, whole):
            return f"{text} %"
    return f"{percent:.2g} %"


def times(larger: int, smaller: int) -> str:
    """How a size relates to another, in words that are true both ways."""
    if smaller <= larger:
        return f"{larger / max(smaller, 1):.1f} times smaller"
    return f"{smaller / max(larger, 1):.1f} times larger"

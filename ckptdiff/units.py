"""Sizes, shares and ratios as people write them."""

from __future__ import annotations


def size(nbytes: int) -> str:
    """A size in bytes, as text in decimal units, as the Hub shows it."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def share(part: float, whole: float) -> str:
    """A share as a percentage, which is never rounded to 0 or 100 unless it is that."""
    if whole == 0:
        return "-"
    percent = 100 * part / whole
    for digits in range(2, 8):
        text = f"{percent:.{digits}f}"
        if float(text) not in (0.0, 100.0) or part in (0, whole):
            return f"{text} %"
    return f"{percent:.2g} %"


def times(larger: int, smaller: int) -> str:
    """By how many times the second of two sizes is smaller, or larger, than the first."""
    if smaller <= larger:
        return f"{larger / max(smaller, 1):.1f} times smaller"
    return f"{smaller / max(larger, 1):.1f} times larger"

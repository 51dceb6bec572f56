"""Numbers as people write them: sizes, shares, ratios and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "\u2013"
"""A dash, which stands for a number that is not known."""


def byte_size(nbytes: int) -> str:
    """A size in decimal units, as the Hub shows it."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def size_ratio(larger: int, smaller: int) -> str:
    """How many times smaller (or, where the sizes are the other way round, larger) the second size is than the first."""
    if smaller <= larger:
        return f"{larger / max(smaller, 1):.1f} times smaller"
    return f"{smaller / max(larger, 1):.1f} times larger"


def percent_of(part: float, whole: float) -> str:
    """A percentage for the columns of a terminal: two decimals, or as many as keep it from reading 0 or 100 where it is neither."""
    if whole == 0:
        return "-"
    percentage = 100 * part / whole
    for digits in range(2, 8):
        text = f"{percentage:.{digits}f}"
        if float(text) not in (0.0, 100.0) or part in (0, whole):
            return f"{text} %"
    return f"{percentage:.2g} %"


def percent(share: float | None) -> str:
    """A percentage for sentences and pages: three digits, near 100 % as many as tell it from 100 %; a dash for a missing number."""
    if share is None or not math.isfinite(share):
        return MISSING
    if share == 0:
        return "0 %"
    if 0.99 < share < 1:
        decimals = min(max(1 - math.floor(math.log10(100 * (1 - share))), 1), 8)
    else:
        decimals = min(max(2 - math.floor(math.log10(abs(100 * share))), 0), 12)
    return f"{100 * share:.{decimals}f} %"


def three_digits(value: float | None) -> str:
    """A number in three digits; a dash for a missing one."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3g}"


def short_number(value: float) -> str:
    """A number without needless zeros, such as 1e-5."""
    return f"{value:g}".replace("e-0", "e-")


def count_in_words(count: int) -> str:
    """A count that one can remember, such as 7.62 billion."""
    for name, unit in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"


def shape_text(shape: Sequence[int], sign: str = "x") -> str:
    """A tensor's shape, such as 64x32."""
    return sign.join(map(str, shape)) or "scalar"

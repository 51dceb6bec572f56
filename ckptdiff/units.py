"""Numbers as people write them: sizes, shares, ratios and counts.

One rule for all of these: three significant digits, and never an exponent. Bytes below a thousand and counts below a million are written in
full, and a tolerance as it was given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "\u2013"
"""A dash, which stands for a number that is not known."""


def three_digits(value: float | None) -> str:
    """A number in three significant digits, without an exponent: 0.0123, 1.23, 12.3, 1,230; a dash for a missing one."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    if abs(float(f"{value:.{max(decimals, 0)}f}")) >= 10 ** (3 - decimals):  # 9.996 is 10.0, not 10.00
        decimals -= 1
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def percent_of(part: float, whole: float) -> str:
    """``part`` of ``whole`` as a percentage, as :func:`percent` writes it, of counts exactly; a dash if there is no whole."""
    if whole == 0:
        return MISSING
    if part == whole:
        return "100 %"
    if 0 < abs(part) * 10**6 < whole:
        return "< 0.0001 %" if part > 0 else "> -0.0001 %"
    if part < whole and 10_000 * part > 9_999 * whole:
        return "> 99.99 %"
    percentage = float(100 * part / whole)
    return f"{percentage:.2f} %" if 99.95 <= percentage < 100 else f"{three_digits(percentage)} %"


def percent(share: float | None) -> str:
    """A share as a percentage in three significant digits; a dash for a missing one.

    Only nothing is 0 % and only all is 100 %: what is less than a millionth of the whole is ``< 0.0001 %``, shares from 99.95 % on have two
    decimals, and what is above 99.99 % is ``> 99.99 %``.
    """
    return MISSING if share is None or not math.isfinite(share) else percent_of(share, 1)


def byte_size(nbytes: int) -> str:
    """A size in decimal units, as the Hub shows it: 999 B, 1.23 kB, 12.3 MB."""
    return _in_units(nbytes, (" kB", " MB", " GB", " TB", " PB", " EB")) if nbytes >= 1000 else f"{nbytes} B"


def count_in_words(count: int) -> str:
    """A count that one can remember, such as 7.62 billion; below a million the count itself."""
    if count < 10**6:
        return f"{count:,}"
    return _in_units(count / 1000, (" million", " billion", " trillion", " quadrillion", " quintillion"))


def _in_units(value: float, units: Sequence[str]) -> str:
    """A number of at least a thousand in the largest of units that are a thousand times as large as the one before."""
    thousands = 1
    while thousands < len(units) and float(f"{value / 1000**thousands:.3g}") >= 1000:
        thousands += 1
    return three_digits(value / 1000**thousands) + units[thousands - 1]


def size_ratio(larger: int, smaller: int) -> str:
    """How many times smaller (or, where the sizes are the other way round, larger) the second size is than the first."""
    if smaller <= larger:
        return f"{three_digits(larger / max(smaller, 1))} times smaller"
    return f"{three_digits(smaller / max(larger, 1))} times larger"


def short_number(value: float) -> str:
    """A tolerance as it was given, without needless zeros: 0.01, 1e-4, 2.5e-5."""
    if not 0 < abs(value) < 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:.5e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def shape_text(shape: Sequence[int], sign: str = "x") -> str:
    """A tensor's shape, such as 64x32."""
    return sign.join(map(str, shape)) or "scalar"

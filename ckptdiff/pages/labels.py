"""Text of axes and names: ticks that are powers or plain shares, and names without what they all begin with.

Shares that were measured are written by :mod:`ckptdiff.units`. A tick is no measured value: it has only the digits that its place needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from ckptdiff.errors import visible
from ckptdiff.units import percent, three_digits

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_TICKS = 6
SMALLEST_PLAIN = Decimal("0.0001")
"""The smallest share, in percent, that stands at a tick without a power of ten."""
LONGEST_LABEL = 30
"""Characters of a name on an axis; of a longer one the middle is left out."""


class Ticks(NamedTuple):
    """Places on an axis at even steps, and what stands there."""

    values: list[float]
    labels: list[str]

    def expression(self, value: str = "datum.value") -> str:
        """A Vega expression for the label of a tick, whose place is the expression ``value``; the labels are ours, never a file's."""
        step = self.values[1] - self.values[0] if len(self.values) > 1 else 1.0
        return f"{json.dumps(self.labels)}[round(({value} - ({self.values[0]!r})) / {step!r})]"


def power(base: int, exponent: int) -> str:
    """A power as one writes it: 10⁻⁵."""
    return f"{base}{str(exponent).translate(SUPERSCRIPTS)}"


def number_or_power(value: float) -> str:
    """A tolerance as a power, such as 10⁻⁵, or as a plain number, such as 0.01."""
    digits, exponent = f"{value:e}".split("e")
    factor, k = float(digits), int(exponent)
    if value == 0 or -3 < k < 4:
        return f"{value:g}"
    return power(10, k) if factor == 1 else f"{factor:g} × {power(10, k)}"


def power_of_two(exponent: int) -> str:
    """A power of two, and about how much that is: 2⁻¹⁰ (about 0.000977)."""
    value = 2.0**exponent
    if 1e-4 < value < 1e6:
        return f"{power(2, exponent)} (about {three_digits(value)})"
    factor, k = f"{value:.2e}".split("e")
    return f"{power(2, exponent)} (about {factor} × {power(10, int(k))})"


def power_ticks(low: float, high: float) -> Ticks:
    """Powers of ten between two binary exponents; powers of two where there are less than two of ten.

    Args:
        low, high: ends of an axis whose places are binary logarithms.
    """
    decade = math.log2(10)
    exponents = range(math.ceil(low / decade - 1e-9), math.floor(high / decade + 1e-9) + 1)
    base, width = (10, decade) if len(exponents) > 1 else (2, 1.0)
    if base == 2:
        exponents = range(math.ceil(low), math.floor(high) + 1)
    kept = thinned(exponents)
    return Ticks([k * width for k in kept], [power(base, k) for k in kept])


def decade_ticks(lowest: int) -> Ticks:
    """Powers of ten from ``lowest`` to 0, by their exponents."""
    kept = thinned(range(lowest, 1))
    return Ticks([float(k) for k in kept], [power(10, k) for k in kept])


def thinned(values: range) -> list[int]:
    """Every value, or every second, third, ... of more than :data:`MOST_TICKS`; the last one, too."""
    step = -(-len(values) // MOST_TICKS)
    return list(values)[::-1][:: max(step, 1)][::-1]


def share_ticks(low: float, high: float) -> Ticks:
    """Round shares from ``low`` to ``high``, which are labelled in percent."""
    if not high > low:
        low, high = 0.0, 1.0
    raw = (high - low) / (MOST_TICKS - 1)
    exponent = math.floor(math.log10(raw))
    factor = next(f for f in (1, 2, 5, 10) if f * 10.0**exponent >= raw * (1 - 1e-9))
    step = Decimal(factor).scaleb(exponent)
    numbers = range(math.ceil(low / float(step) - 1e-6), math.floor(high / float(step) + 1e-6) + 1)
    return Ticks([float(k * step) for k in numbers], [tick_percent(k * step) for k in numbers])


def tick_percent(share: Decimal) -> str:
    """A round share in percent with all of its digits and no needless zero, such as 0.5 % or 98.5 %; a tiny one with a power."""
    number = (100 * share).normalize()
    if not number or abs(number) >= SMALLEST_PLAIN:
        return f"{number:f} %"
    exponent = number.adjusted()
    return f"{number.scaleb(-exponent).normalize():f} × {power(10, exponent)} %"


def share_axis(altair: Any, low: float, high: float, **options: Any) -> Any:
    """An axis of shares."""
    ticks = share_ticks(low, high)
    return altair.Axis(values=ticks.values, labelExpr=ticks.expression(), **options)


def span(values: Sequence[float]) -> str:
    """The smallest to the largest of some shares."""
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def common_start(names: Sequence[str], ends: str = "./") -> str:
    """What all names begin with, up to a character of ``ends``; empty for less than two names, or where one is nothing else."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    start = first[: next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    start = start[: max(start.rfind(end) for end in ends) + 1]
    return "" if start in names else start


def start_words(start: str, what: str) -> str:
    """That names are shown without their common start; empty if they have none."""
    return f"All names of {what} begin with “{start}”, which is left out here." if start else ""


def axis_names(names: Sequence[str]) -> list[str]:
    """Names for an axis: what cannot be seen is written out, and of long ones the middle is left out while they stay distinct."""
    shown = [visible(name) for name in names]
    for longest in range(LONGEST_LABEL, max(map(len, shown), default=0), 5):
        for head in range(longest // 2, longest - 4):
            short = [name if len(name) <= longest else f"{name[:head]}…{name[head + 1 - longest :]}" for name in shown]
            if len(set(short)) == len(set(shown)):
                return short
    return shown

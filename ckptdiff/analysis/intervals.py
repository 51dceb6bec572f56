"""How many random draws stand for a null, their mean, and the interval in which a further one lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

DRAWS = 5
"""Draws of each null, unless another number is asked for."""
MAX_DRAWS = 1000
LEVEL = 0.95
"""Probability with which an interval holds a further draw."""


@dataclass(frozen=True, slots=True)
class NullSettings:
    """How many draws are made of each null, and from which seed."""

    draws: int = DRAWS
    """0: none; else at least 2, as an interval needs two."""
    seed: int = 0


NO_NULLS = NullSettings(draws=0)


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of random draws, and the interval that holds a further draw with probability :data:`LEVEL`."""

    mean: float
    low: float
    high: float

    def side(self, value: float) -> int:
        """1 for a value above the interval, -1 for one below it, 0 for one in it."""
        return (value > self.high) - (value < self.low)


def prediction_interval(draws: Sequence[float]) -> Interval:
    """The prediction interval of a further draw of a normal distribution: mean -+ t s sqrt(1 + 1 / n).

    t is the 0.975 quantile of Student's distribution with n - 1 degrees of freedom, s the standard deviation of the n draws (Geisser,
    "Predictive Inference", 1993, section 2.2). Where all draws are the same, so are both ends.

    Args:
        draws: at least two finite numbers.

    Raises:
        ValueError: there are less than two.
    """
    if len(draws) < 2:
        raise ValueError(f"an interval needs at least two draws, found {len(draws)}")
    n = len(draws)
    mean = math.fsum(draws) / n
    if min(draws) == max(draws):  # their mean may be off by a rounding
        return Interval(draws[0], draws[0], draws[0])
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in draws) / (n - 1))
    half = student_quantile(n - 1) * deviation * math.sqrt(1 + 1 / n)
    return Interval(mean, mean - half, mean + half)


@cache
def student_quantile(freedom: int) -> float:
    """The t between which and -t Student's distribution has the share :data:`LEVEL`, found by bisection.

    It is rounded to 9 decimals, so that it does not depend on the C library's sine and cosine.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 13.0  # 12.706 for one degree of freedom, and less for more
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < LEVEL else (low, middle)
    return round(high, 9)


def _student_within(t: float, freedom: int) -> float:
    """P(|T| <= t): Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = math.sin(angle) * (cosine if odd else 1.0)
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + total) if odd else total

"""What ``guard.py`` concludes from its figures: ratios, the noise that one commit shows against itself, verdicts. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

OLD, NEW, AGAIN = "old", "new", "again"
"""The older commit, the working tree, and the older commit installed a second time."""

ORDERS = ((OLD, NEW, AGAIN), (NEW, AGAIN, OLD), (AGAIN, OLD, NEW), (AGAIN, NEW, OLD), (OLD, AGAIN, NEW), (NEW, OLD, AGAIN))
"""Within any three rounds each tree is once first, second and last, and a drift that is linear in time cancels; within six
each follows each other equally often."""

FLOOR = 0.01
"""Nobody cares for less: the noise is never taken to be smaller."""

MEMORY_FLOOR = 0.02, 2.0
"""Of peak memory, as a share and in MB: how much of the libraries' files is mapped depends on the page cache, and so on when a tree
was installed."""

LEAST = 3
"""Fewer rounds say nothing of noise."""


def orders(first: int, rounds: int) -> list[tuple[str, str, str]]:
    """Who runs when, from round ``first`` on."""
    return list(islice(cycle(ORDERS), first, first + rounds))


def width(rounds: int) -> float:
    """How many times the usual difference between two runs of one commit the medians of ``rounds`` may be apart.

    Simulated: with both ratios beyond this, one row in fifty is flagged where nothing differs, for normal noise, Laplace's and
    Student's t of three degrees alike (4.3, 2.4, 1.75, 1.4, 1.1 and 0.85 for 3, 5, 7, 9, 12 and 18 rounds).
    """
    return max(13 / rounds, 3.6 / math.sqrt(rounds))


@dataclass(frozen=True)
class Judgement:
    """One figure of one row: medians with least and most, ratios of new to old, and what they are worth."""

    old: tuple[float, float, float]  # median, least, most; of both installs
    new: tuple[float, float, float]
    ratio: float  # of the medians
    paired: float  # the median of the ratios round by round
    itself: float  # the older commit's second install against its first, as ``ratio``
    noise: float  # both ratios must lie outside 1 / (1 + noise) and 1 + noise
    verdict: str  # "within noise", "slower", "faster"; "more" and "less" of memory


def spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def noise_of(old: list[float], again: list[float], floor: float) -> float:
    """By how much, as a share, a commit may seem to differ from itself in the medians of as many rounds."""
    usual = median(abs(math.log(b / a)) for a, b in zip(old, again, strict=True))
    shown = abs(math.log(median(again) / median(old)))
    return max(floor, math.expm1(max(width(len(old)) * usual, shown)))


def judged(
    old: list[float], new: list[float], again: list[float], words: tuple[str, str] = ("faster", "slower"), floor: float = FLOOR
) -> Judgement:
    """The verdict on one figure, a value a round of each. The reference of a round is the geometric mean of the old commit's two."""
    if not len(old) == len(new) == len(again) >= LEAST:
        raise ValueError(f"want {LEAST} or more rounds of all three, found {len(old)}, {len(new)} and {len(again)}")
    before, after = spread([*old, *again]), spread(new)
    ratio = after[0] / before[0]
    paired = median(b / math.sqrt(a * c) for a, b, c in zip(old, new, again, strict=True))
    noise, verdict = noise_of(old, again, floor), "within noise"
    if max(ratio, paired) < 1 / (1 + noise):
        verdict = words[0]
    elif min(ratio, paired) > 1 + noise:
        verdict = words[1]
    return Judgement(before, after, ratio, paired, median(again) / median(old), noise, verdict)


def judged_memory(old: list[float], new: list[float], again: list[float]) -> Judgement:
    """The verdict on peak memory in MB."""
    share, least = MEMORY_FLOOR
    return judged(old, new, again, ("less", "more"), max(share, least / median(old)))

"""Names of tensors as dotted parts: how much of two they have in common, and which layer of a base a layer of a target comes from."""

from __future__ import annotations

import difflib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ckptdiff.errors import cut

MOST_PARTS = 32
"""Last parts of a name that are compared: comparing takes the square of them."""
MOST_NEAR = 3
"""Near names that a message lists."""
NUMBERS = re.compile("[0-9]+")


def common_parts(a: str, b: str) -> int:
    """Length of the longest common subsequence of the dotted parts of two names."""
    x, y = (name.split(".")[-MOST_PARTS:] for name in (a, b))
    row = [0] * (len(y) + 1)
    for part in x:
        before = 0
        for k, other in enumerate(y):
            here = row[k + 1]
            row[k + 1] = before + 1 if part == other else max(here, row[k])
            before = here
    return row[-1]


def is_within(a: str, b: str) -> bool:
    """Whether the dotted parts of one of two names are all in the other one, in order."""
    return common_parts(a, b) == min(a.count("."), b.count("."), MOST_PARTS - 1) + 1


def closeness(a: str, b: str) -> tuple[int, int]:
    """How alike two names are: the parts they have in common, then how few they do not."""
    common = common_parts(a, b)
    return common, 2 * common - a.count(".") - b.count(".") - 2


def near_names(name: str, known: Iterable[str]) -> str:
    """For messages: those of some names that are most like a name, which is none of them; empty if there are none.

    Of the names that have most parts in common with it those with most letters in common are taken, as letters take long to compare.
    """
    alike = heapq.nlargest(64, known, key=lambda other: closeness(name, other))
    return ", ".join(map(cut, difflib.get_close_matches(name, alike, MOST_NEAR, cutoff=0)))


def numbers(name: str) -> tuple[int, ...]:
    """The numbers in a name: its layer, its expert."""
    return tuple(map(int, NUMBERS.findall(name)))


def numbered_prefixes(name: str) -> Iterator[str]:
    """What a name begins with, up to each of its parts that ends in a number; the longest first."""
    parts = name.split(".")
    for k in range(len(parts) - 1, 0, -1):
        if parts[k - 1][-1:].isdecimal():
            yield ".".join(parts[:k])


class LayerMap:
    """Which layers of a base the layers of a target come from, as the tensors that were paired show."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        """``pairs``: names of target and base tensors."""
        self._votes: dict[str, Counter[str]] = {}
        for target, base in pairs:
            old, new = list(numbered_prefixes(base)), list(numbered_prefixes(target))
            if len(old) <= len(new):  # else the base has a number that says which part of the target it is
                for prefix, other in zip(new, old, strict=False):
                    self._votes.setdefault(prefix, Counter())[other] += 1

    def prefix(self, name: str) -> str | None:
        """What the base's name for a tensor of the target begins with, as most of its siblings have it; None if they say nothing."""
        for prefix in numbered_prefixes(name):
            if prefix in self._votes:
                return self._votes[prefix].most_common(1)[0][0]
        return None

    def __bool__(self) -> bool:
        return bool(self._votes)

"""Names of tensors as dotted parts: how much of two they have in common, and which layer of a base a layer of a target comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence


def common_parts(a: str, b: str) -> int:
    """Length of the longest common subsequence of the dotted parts of two names."""
    x, y = a.split("."), b.split(".")
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
    return common_parts(a, b) == min(a.count("."), b.count(".")) + 1


def closeness(a: str, b: str) -> tuple[int, int]:
    """How alike two names are: the parts they have in common, then how few they do not."""
    common = common_parts(a, b)
    return common, 2 * common - a.count(".") - b.count(".") - 2


def numbers(name: str) -> tuple[int, ...]:
    """The parts of a name that are numbers: its layer, its expert."""
    return tuple(int(part) for part in name.split(".") if part.isdecimal() and part.isascii())


def numbered_prefixes(name: str) -> Iterator[str]:
    """What a name begins with, up to each of its parts that is a number; the longest first."""
    parts = name.split(".")
    for k in range(len(parts) - 1, 0, -1):
        if parts[k - 1].isdecimal():
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

"""Figures of several runs with their intervals, and tables of them, whose rows have numbers that a sentence can name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptdiff.analysis.intervals import student_quantile

Key = tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """What repeated runs gave: one value a seed, as shares, or in the unit of ``scale`` 1."""

    values: tuple[float, ...]
    scale: float = 100.0
    digits: int = 2

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def half(self) -> float:
        """Half of the 95 % confidence interval of the mean over seeds: t s / sqrt(n), Student's t with n - 1 degrees of freedom."""
        n = len(self.values)
        if n < 2:
            return math.nan
        deviation = math.sqrt(math.fsum((x - self.mean) ** 2 for x in self.values) / (n - 1))
        return student_quantile(n - 1) * deviation / math.sqrt(n)

    @property
    def side(self) -> int:
        """1 if the whole interval is above 0, -1 if it is below, else 0; also 0 for one run, which has no interval."""
        return (self.mean - self.half > 0) - (self.mean + self.half < 0)

    def above(self, threshold: float) -> bool | None:
        """Whether the whole interval is at or above a threshold; None if it holds the threshold. Of one run the value decides."""
        half = 0.0 if math.isnan(self.half) else self.half
        return True if self.mean - half >= threshold else False if self.mean + half < threshold else None

    def below(self, threshold: float) -> bool | None:
        """As :meth:`above`: whether the whole interval is at or below a threshold."""
        return Figure(tuple(-value for value in self.values)).above(-threshold)

    def __str__(self) -> str:
        return self.short + self._interval

    @property
    def short(self) -> str:
        """The mean alone."""
        return f"{self.scale * self.mean:.{self.digits}f}"

    @property
    def signed(self) -> str:
        """With its sign: a difference."""
        return f"{self.scale * self.mean:+.{self.digits}f}" + self._interval

    @property
    def _interval(self) -> str:
        return "" if math.isnan(self.half) else f" ± {self.scale * self.half:.{self.digits}f}"


def difference(a: Figure, b: Figure) -> Figure:
    """Of two figures of the same seeds, seed by seed; of the first seeds, where one has more."""
    return Figure(tuple(x - y for x, y in zip(a.values, b.values, strict=False)), a.scale, a.digits)


def complement(one: Figure) -> Figure:
    """What is left of the whole."""
    return Figure(tuple(1 - value for value in one.values), one.scale, one.digits)


@dataclass(frozen=True)
class Row:
    """A numbered row."""

    number: str
    key: Key
    words: tuple[str, ...]
    figures: dict[str, Figure]

    def __getitem__(self, column: str) -> Figure:
        return self.figures[column]

    def has(self, column: str) -> bool:
        return column in self.figures


class Table:
    """Rows by key; each has words, and figures by column."""

    def __init__(self, number: int, title: str, heads: Sequence[str], columns: Sequence[str], note: str = "") -> None:
        self.number, self.title, self.heads, self.columns, self.note = number, title, list(heads), list(columns), note
        self.rows: dict[Key, Row] = {}

    def add(self, key: Key, words: Iterable[str], figures: dict[str, Figure]) -> None:
        self.rows[key] = Row(f"{self.number}.{len(self.rows) + 1}", key, tuple(words), figures)

    def __getitem__(self, key: Key) -> Row:
        return self.rows[key]

    def markdown(self) -> str:
        heads = ["row", *self.heads, *self.columns]
        lines = [heads, ["---"] * len(heads)]
        for row in self.rows.values():
            lines.append([row.number, *row.words, *(str(row[name]) if row.has(name) else "" for name in self.columns)])
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.number}. {self.title}\n\n" + (f"{self.note}\n\n" if self.note else "") + body


def rows_named(*rows: Row) -> str:
    """``(row 4.1)``, ``(rows 4.1, 4.2)``."""
    numbers = ", ".join(dict.fromkeys(row.number for row in rows))
    return f"({'row' if len(rows) == 1 else 'rows'} {numbers})"

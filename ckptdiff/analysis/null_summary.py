"""Figures over all matrices with nulls, each beside what it would be without the effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckptdiff.analysis.intervals import Interval, prediction_interval
from ckptdiff.analysis.matrix_rank import MatrixNulls, MatrixRank
from ckptdiff.analysis.nulls import Draws, top_energy
from ckptdiff.analysis.principal import Principal, Turned

Figures = Sequence[float]


@dataclass(frozen=True, slots=True)
class NullRow:
    """A figure, the unweighted mean over the matrices that changed and whose nulls were drawn, and the same of each null."""

    figure: str
    """Name of the figure."""
    matrices: int
    """Matrices that it is the mean of."""
    value: float
    flipped: Interval | None
    """With flipped signs; None where the figure does not know signs, or was not drawn."""
    shuffled: Interval
    """With positions shuffled among weights of the same size; the interval of a further draw, of all matrices anew."""
    z: float | None = None
    """Deviations of the null's exact distribution by which the value exceeds its mean; None where the null is drawn, or knows no other
    value."""

    @property
    def side(self) -> int:
        """1 if the value is larger than size explains, -1 if it is smaller, 0 if it is among the shuffled ones."""
        return self.shuffled.side(self.value)


RANKS: dict[str, tuple[Callable[[MatrixRank], float], Callable[[Draws, int], Figures]]] = {
    "stable_rank": (lambda rank: rank.spectrum.stable_rank, lambda draws, _: draws.stable_rank),
    "effective_share": (
        lambda rank: rank.spectrum.effective_rank / rank.spectrum.largest,
        lambda draws, largest: [n / largest for n in draws.effective_rank],
    ),
    "rank_share": (lambda rank: rank.spectrum.rank_share, lambda draws, largest: [n / largest for n in draws.rank]),
    "top_energy": (lambda rank: top_energy(rank.spectrum), lambda draws, _: draws.top_energy),
}
"""Figures of the update alone: its own, and those of draws, given the largest possible rank."""
TURNS: dict[str, Callable[[Turned], float]] = {
    "largest_angle": lambda turned: turned.largest_angle,
    "mean_angle": lambda turned: turned.mean_angle,
    "spectral_shift": lambda turned: turned.drift,
}
"""Figures of base and target."""
PRINCIPAL_OVERLAP = "principal_overlap"
"""Share of the changed elements that lie in the principal mask, over all matrices together."""


def null_rows(ranks: Sequence[MatrixRank]) -> tuple[NullRow, ...]:
    """A row for each figure, of the matrices that have nulls; none without such matrices."""
    drawn = [(rank, rank.nulls) for rank in ranks if rank.nulls is not None]
    if not drawn:
        return ()
    rows = [_rank_row(figure, drawn) for figure in RANKS]
    found = [nulls.principal for _, nulls in drawn if nulls.principal is not None]
    if found:
        rows.append(_overlap_row(found))
        rows += [_turn_row(figure, found) for figure in TURNS]
    return tuple(rows)


def _rank_row(figure: str, drawn: Sequence[tuple[MatrixRank, MatrixNulls]]) -> NullRow:
    own, of_draws = RANKS[figure]
    flipped, shuffled = (
        [of_draws(getattr(nulls, which), rank.spectrum.largest) for rank, nulls in drawn] for which in ("flipped", "shuffled")
    )
    return NullRow(figure, len(drawn), _mean([own(rank) for rank, _ in drawn]), _interval_of_means(flipped), _interval_of_means(shuffled))


def _turn_row(figure: str, found: Sequence[Principal]) -> NullRow:
    of = TURNS[figure]
    draws = [[of(turned) for turned in one.shuffled] for one in found]
    return NullRow(figure, len(found), _mean([of(one.turned) for one in found]), None, _interval_of_means(draws))


def _overlap_row(found: Sequence[Principal]) -> NullRow:
    """The overlap with the principal mask, whose null is known exactly: nothing is drawn."""
    changed, inside = sum(one.changed for one in found), sum(one.inside for one in found)
    expected, deviation = math.fsum(one.inside_by_size for one in found), math.sqrt(math.fsum(one.variance_by_size for one in found))
    half = 1.959964 * deviation
    interval = Interval(expected / changed, (expected - half) / changed, (expected + half) / changed)
    return NullRow(PRINCIPAL_OVERLAP, len(found), inside / changed, None, interval, (inside - expected) / deviation if deviation else None)


def _mean(values: Figures) -> float:
    return math.fsum(values) / len(values)


def _interval_of_means(draws: Sequence[Figures]) -> Interval:
    """The interval of the mean over matrices, given the draws of each: draw n of the mean is that of the matrices' draws n."""
    return prediction_interval([_mean(values) for values in zip(*draws, strict=True)])

"""The rank of one matrix's update beside its nulls, as a record, as JSON, and rounded as reports are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ckptdiff.analysis.nulls import Draws
from ckptdiff.analysis.principal import Principal, Turned
from ckptdiff.analysis.rank import Spectrum

STORED_DIGITS = 4
"""Significant digits of quantiles and singular values, and decimals of ranks, that are stored: more would double the bytes, and no chart
shows more."""


@dataclass(frozen=True, slots=True)
class MatrixNulls:
    """What figures of a matrix's update would be without the effect; see :mod:`ckptdiff.analysis.nulls`."""

    flipped: Draws
    """With flipped signs."""
    shuffled: Draws
    """With positions shuffled among weights of the same size."""
    principal: Principal | None
    """The update beside the principal part of its base; None where that is not known."""


@dataclass(frozen=True, slots=True)
class MatrixRank:
    """The rank of one matrix's update.

    The update is target minus base in the tensor's dtype, as torch computes it: the difference of two bf16 tensors is rounded to bf16
    again, which moves singular values by up to some parts in a thousand. The paper's ranks are those of this update.
    """

    index: int
    """Index of the matrix in its tensor, where that is a stack of matrices."""
    spectrum: Spectrum
    random_rank: float
    """Expected rank of a random update with as many elements that are not zero."""
    nulls: MatrixNulls | None = None
    """None where none were drawn, or the update is 0."""

    @property
    def shares(self) -> tuple[float, float]:
        """Effective rank, and the rank of a random update, over the largest possible rank."""
        return self.spectrum.effective_rank / self.spectrum.largest, self.random_rank / self.spectrum.largest

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        nulls = None if self.nulls is None else _lists(asdict(self.nulls))
        return {"index": self.index, **_lists(asdict(self.spectrum)), "random_rank": self.random_rank, "nulls": nulls}

    def rounded(self) -> MatrixRank:
        """The same in so few digits as are stored."""
        spectrum = _each(self.spectrum, significant, "top_energy", "singular_values")
        spectrum = replace(spectrum, stable_rank=_decimals(spectrum.stable_rank))
        nulls = self.nulls
        if nulls is not None:
            nulls = MatrixNulls(
                _rounded_draws(nulls.flipped), _rounded_draws(nulls.shuffled), nulls.principal and _rounded_principal(nulls.principal)
            )
        return replace(self, spectrum=spectrum, random_rank=_decimals(self.random_rank), nulls=nulls)


def significant(value: float) -> float:
    """A number in :data:`STORED_DIGITS` significant digits."""
    return float(f"{value:.{STORED_DIGITS}g}")


def _decimals(value: float) -> float:
    return round(value, STORED_DIGITS)


def _lists(value: Any) -> Any:
    """The value with lists in the place of tuples."""
    if isinstance(value, dict):
        return {key: _lists(member) for key, member in value.items()}
    return list(map(_lists, value)) if isinstance(value, (list, tuple)) else value


def _each(record: Any, rounding: Callable[[float], float], *names: str) -> Any:
    """The record with the numbers of some of its members rounded."""
    return replace(record, **{name: tuple(map(rounding, getattr(record, name))) for name in names})


def _rounded_draws(draws: Draws) -> Draws:
    rounded: Draws = _each(_each(draws, _decimals, "stable_rank"), significant, "top_energy")
    return rounded


def _rounded_principal(found: Principal) -> Principal:
    def turned(of: Turned) -> Turned:
        return Turned(*map(significant, (of.largest_angle, of.mean_angle, of.drift)))

    return replace(
        found,
        inside_by_size=_decimals(found.inside_by_size),  # z is a small difference of large counts
        variance_by_size=significant(found.variance_by_size),
        turned=turned(found.turned),
        shuffled=tuple(map(turned, found.shuffled)),
    )

"""The nulls of one matrix: draws with flipped signs and with shuffled positions, each as the matrix itself is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.intervals import NullSettings
from ckptdiff.analysis.matrix_rank import MatrixNulls
from ckptdiff.analysis.nulls import Draws, SizeBins, generator, with_flipped_signs
from ckptdiff.analysis.principal import principal
from ckptdiff.analysis.rank import spectrum
from ckptdiff.analysis.sparsity import subtract

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MatrixSides:
    """A matrix in base and target."""

    base: Array
    """[rows, columns] values: float32, or float64 of F64."""
    target: Array
    exponents: Array
    """Exponent field of each element of the base, flat; empty where no nulls are drawn."""
    dtype: str

    @cached_property
    def change(self) -> Array:
        """target - base, not rounded to the dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.target - self.base

    def rounded(self, change: Array) -> Array:
        """A change as torch computes it: rounded to the dtype."""
        return subtract(change.reshape(-1), np.zeros(1, change.dtype), self.dtype).reshape(change.shape)


def matrix_nulls(sides: MatrixSides, settings: NullSettings, names: tuple[object, ...], device: str | None, threads: int) -> MatrixNulls:
    """Draw the nulls of a matrix.

    The draw number n of a null is the same whatever the number of draws.

    Args:
        sides: the matrix; its base and target are finite.
        settings: how many draws, and the seed.
        names: what the matrix is called; other names give other draws.
        device: a torch device; None for NumPy.
        threads: number of threads for products of sparse matrices.
    """
    bins = SizeBins(sides.exponents)
    numbers = range(settings.draws)

    def shuffled() -> Iterator[Array]:  # drawn twice, as keeping all draws would take as many matrices
        return (bins.shuffled(sides.change, generator(settings.seed, *names, "shuffled", n)) for n in numbers)

    update = sides.rounded(sides.change)
    flips = (with_flipped_signs(update, generator(settings.seed, *names, "flipped", n)) for n in numbers)
    flipped = [spectrum(draw, device, threads) for draw in flips]
    moved = [spectrum(sides.rounded(draw), device, threads) for draw in shuffled()]
    turned = principal(sides.base, sides.target, bins, (sides.base + draw for draw in shuffled()), device, threads)
    return MatrixNulls(Draws.of(flipped), Draws.of(moved), turned)

"""Kernels: sums of ulp distances, modulo the number of units that there are (spec sections 7.2 and 10.1)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.format.dtypes import Changes, Dtype, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.arrays import check_positions
from ckptdiff.kernels.changes import fill_differing
from ckptdiff.kernels.jit import ONE, ZERO, jit

Array = npt.NDArray[Any]


@jit
def add_zigzags(sums, positions, zigzags):
    """Add the ulp distances that have these zigzags to the sums of the units at these positions; sums wrap round."""
    for x in range(len(positions)):
        zigzag, at = np.uint64(zigzags[x]), positions[x]
        sums[at] = np.uint64(sums[at]) + ((zigzag >> ONE) ^ (ZERO - (zigzag & ONE)))


@jit
def take_zigzags(sums, positions, top, zigzags):
    """Fill the zigzags of the sums at these positions; ``top``: number of a unit's highest bit (uint64)."""
    for x in range(len(positions)):
        up = np.uint64(sums[positions[x]])
        zigzags[x] = (up << ONE) ^ (ZERO - (up >> top))


def add_changes(sums: Units, changes: Changes) -> None:
    """Add the changes of a block to the sums of its units.

    Raises:
        ValueError: positions are not those of units, or not as many as zigzags.
    """
    positions, zigzags = changes
    check_positions(sums, positions, zigzags)
    add_zigzags(sums, positions, zigzags)


def changes_of_sums(sums: Units, dtype: Dtype) -> Changes:
    """The changes of a block whose units move by these sums. Scratch."""
    positions = scratch("positions", len(sums) + 1, np.int32)
    positions = positions[: fill_differing(sums, np.zeros(64, sums.dtype), positions)]
    zigzags = scratch("zigzags", len(positions), dtype.unit)
    take_zigzags(sums, positions, np.uint64(8 * dtype.carrier - 1), zigzags)
    return positions, zigzags

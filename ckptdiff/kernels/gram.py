"""Kernels: the Gram matrix D D^T of an update D most of whose elements are zero.

It takes one product for each pair of changes in a column, where a dense product takes one for each pair of elements.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.io.parallel import run_ordered
from ckptdiff.kernels.jit import ONE, jit

Array = npt.NDArray[Any]

JOBS = 16
"""Into how many jobs the rows are divided, which threads take in turn."""


@jit
def add_rows(first, last, starts, ends, rows, values, gram):
    """Fill rows of the Gram matrix, from the diagonal on.

    Args:
        first, last: which rows: up to ``last`` - 1.
        starts, ends: where in ``rows`` and ``values`` each column begins and ends: uint64. Starts are moved along; each job has its own.
        rows, values: row and value of each element that is not zero, column by column: uint16 or uint32, and floats.
        gram: zeros, float64[rows, rows].
    """
    for j in range(len(starts)):
        while starts[j] < ends[j] and rows[starts[j]] < np.uint32(first):
            starts[j] += ONE
    for i in range(first, last):
        out = gram[i]
        for j in range(len(starts)):
            x, end = starts[j], ends[j]
            if x < end and rows[x] == np.uint32(i):
                value = np.float64(values[x])
                starts[j] = x + ONE
                while x < end:
                    out[rows[x]] += value * np.float64(values[x])
                    x += ONE


def sparse_gram(matrix: Array, counts: Array, scale: float, threads: int) -> Array:
    """The lower triangle of D D^T in float64, where D is the matrix divided by the scale.

    Args:
        matrix: the update, of any shape.
        counts: how many elements of each column are not zero.
        scale: what the matrix is divided by, against overflow.
        threads: how many work on it.

    Raises:
        ValueError: the counts are not those of the matrix.
    """
    columns = matrix.T.ravel()
    changed = np.flatnonzero(columns)
    rows, values = (
        (changed % len(matrix)).astype(np.uint16 if len(matrix) <= 1 << 16 else np.uint32),
        columns[changed] / matrix.dtype.type(scale),
    )
    if len(counts) != matrix.shape[1] or int(counts.sum()) != len(changed):  # the kernel would read as many as they say
        raise ValueError(f"{len(changed)} elements of {matrix.shape[1]} columns are not zero, but the counts say {int(counts.sum())}")
    ends = np.cumsum(counts).astype(np.uint64)  # unsigned: Numba checks the sign of other indices
    starts = ends - counts.astype(np.uint64)
    gram = np.zeros((len(matrix), len(matrix)))
    cuts = [round(len(matrix) * (1 - (1 - k / JOBS) ** 0.5)) for k in range(JOBS + 1)]  # the same share of the triangle in each
    jobs: list[Callable[[], None]] = [
        partial(add_rows, first, last, starts.copy(), ends, rows, values, gram) for first, last in pairwise(cuts)
    ]
    for _ in run_ordered(jobs, threads):
        pass
    return gram.T

"""Kernels: D D^T of an update D most of whose elements are zero, which takes as many products as pairs of changes share a column."""

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

PARTS = 16
"""Runs of rows that threads take in turn."""


@jit
def add_rows(first, last, starts, ends, rows, values, gram):
    """Rows ``first`` to ``last`` of the Gram matrix, from the diagonal on. ``starts``, of a thread's own, moves along each column."""
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
    """The lower triangle of D D^T in float64, of the matrix divided by the scale; ``counts``: how much of each column is not zero."""
    columns = matrix.T.ravel()
    changed = np.flatnonzero(columns)
    rows, values = (
        (changed % len(matrix)).astype(np.uint16 if len(matrix) <= 1 << 16 else np.uint32),
        columns[changed] / matrix.dtype.type(scale),
    )
    if len(counts) != matrix.shape[1] or int(counts.sum()) != len(changed):  # the kernel reads as many as these say
        raise ValueError(f"{len(changed)} elements of {matrix.shape[1]} columns are not zero, but the counts say {int(counts.sum())}")
    ends = np.cumsum(counts).astype(np.uint64)  # unsigned: Numba looks at the sign of other indices
    starts = ends - counts.astype(np.uint64)
    gram = np.zeros((len(matrix), len(matrix)))
    cuts = [round(len(matrix) * (1 - (1 - k / PARTS) ** 0.5)) for k in range(PARTS + 1)]  # as much of the triangle in each
    jobs: list[Callable[[], None]] = [
        partial(add_rows, first, last, starts.copy(), ends, rows, values, gram) for first, last in pairwise(cuts)
    ]
    for _ in run_ordered(jobs, threads):
        pass
    return gram.T

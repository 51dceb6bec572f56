"""Which matrices a tensor is made of, and of which of them a report takes the rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckptdiff.analysis.modules import KINDS
from ckptdiff.analysis.sparsity import EXPONENT
from ckptdiff.format.dtypes import DTYPES

SAMPLE = 32
"""Matrices whose rank is taken with ``rank="sample"``, at most."""
LINES = 1 << 22
"""Rows, or columns, of a tensor up to which changes are counted by row and by column: 32 MB of counts."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Matrices of a tensor, and their rows and columns: a stack of experts is one a matrix; zeros if it has less than two dimensions."""
    if len(shape) < 2 or 0 in shape:
        return 0, 0, 0
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def counted_lines(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns by which a tensor's changes are counted, those of a stack's matrices below each other; zeros if they are not."""
    matrices, height, width = matrix_shape(shape)
    return (matrices * height, width) if max(matrices * height, width) <= LINES else (0, 0)


def ranked(module: str, dtype: str, shape: Sequence[int]) -> int:
    """How many matrices of a tensor have a rank: those of floats of a byte or more, real, and of no norm."""
    if module == "norm" or dtype not in EXPONENT or dtype == "C64" or DTYPES[dtype].bits < 8:
        return 0
    return matrix_shape(shape)[0]


def spread(places: Sequence[tuple[str, int | None]], count: int = SAMPLE) -> list[int]:
    """Numbers of ``count`` matrices, given the module and layer of each, or of all if there are no more.

    As many of each kind of module, or all of those that have fewer; of a kind at even steps through the layers, and beginning at another
    layer than the kind before, so that all kinds together reach as many layers as they can. The same whatever the tensors' order.
    """
    kinds: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for k in sorted(range(len(places)), key=lambda k: (-1 if places[k][1] is None else places[k][1], k)):
        kinds[places[k][0]].append(k)
    quotas, left = dict.fromkeys(kinds, 0), min(count, len(places))
    while left:
        for kind in [kind for kind in kinds if quotas[kind] < len(kinds[kind])][:left]:
            quotas[kind] += 1
            left -= 1
    partly = [kind for kind in kinds if 0 < quotas[kind] < len(kinds[kind])]
    found = [k for kind in kinds if kind not in partly and quotas[kind] for k in kinds[kind]]
    for turn, kind in enumerate(partly):
        rows, parts = kinds[kind], len(partly) * quotas[kind]
        found += [rows[(2 * (j * len(partly) + turn) + 1) * len(rows) // (2 * parts)] for j in range(quotas[kind])]
    return sorted(found)

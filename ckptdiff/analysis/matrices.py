"""The matrices that a tensor consists of, and those whose rank a report takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckptdiff.analysis.modules import KINDS
from ckptdiff.analysis.sparsity import EXPONENT_FIELDS
from ckptdiff.format.dtypes import DTYPES

SAMPLE_SIZE = 32
"""Matrices whose rank is taken at most with ``rank="sample"``."""
MAX_COUNTED_LINES = 1 << 22
"""Rows, or columns, of a tensor up to which changes are counted by row and by column: the counts take 32 MB."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """How many matrices a tensor consists of, and their rows and columns; zeros if it has less than two dimensions.

    A stack of experts has one matrix for each expert.
    """
    if len(shape) < 2 or 0 in shape:
        return 0, 0, 0
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def counted_lines(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns by which a tensor's changes are counted; zeros if they are not counted by row and column.

    The matrices of a stack lie below each other.
    """
    matrices, height, width = matrix_shape(shape)
    return (matrices * height, width) if max(matrices * height, width) <= MAX_COUNTED_LINES else (0, 0)


def count_ranked(module: str, dtype: str, shape: Sequence[int]) -> int:
    """How many matrices of a tensor have a rank: those of real floats of at least one byte that belong to no norm."""
    if module == "norm" or dtype not in EXPONENT_FIELDS or dtype == "C64" or DTYPES[dtype].bits < 8:
        return 0
    return matrix_shape(shape)[0]


def choose_sample(matrices: Sequence[tuple[str, int | None]], count: int = SAMPLE_SIZE) -> list[int]:
    """Choose matrices that are spread over kinds of modules and over layers, whatever the order of the tensors.

    As many are taken of each kind of module, or all of a kind that has fewer. Those of a kind are taken at even steps through the layers,
    beginning at another layer than the kind before, so that all kinds together reach as many layers as they can.

    Args:
        matrices: kind of module and layer of each matrix.
        count: how many to choose at most.

    Returns:
        Indices into ``matrices``, in rising order.
    """
    kinds: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for k in sorted(range(len(matrices)), key=lambda k: (-1 if matrices[k][1] is None else matrices[k][1], k)):
        kinds[matrices[k][0]].append(k)
    quotas, left = dict.fromkeys(kinds, 0), min(count, len(matrices))
    while left:
        for kind in [kind for kind in kinds if quotas[kind] < len(kinds[kind])][:left]:
            quotas[kind] += 1
            left -= 1
    partly = [kind for kind in kinds if 0 < quotas[kind] < len(kinds[kind])]
    chosen = [k for kind in kinds if kind not in partly and quotas[kind] for k in kinds[kind]]
    for turn, kind in enumerate(partly):
        rows, parts = kinds[kind], len(partly) * quotas[kind]
        chosen += [rows[(2 * (j * len(partly) + turn) + 1) * len(rows) // (2 * parts)] for j in range(quotas[kind])]
    return sorted(chosen)

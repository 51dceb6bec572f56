"""The ulp distance of spec section 7.2, word for word, and as the kernels compute it."""

from __future__ import annotations

import numpy as np

from ckptdiff.format.dtypes import DTYPES
from ckptdiff.kernels import changes


def order(x: int, bits: int, is_float: bool) -> int:
    """order() of spec section 7.2, word for word."""
    if not is_float:
        return x
    return x + (1 << (bits - 1)) if x < 1 << (bits - 1) else (1 << bits) - 1 - x


def zigzag(base: int, target: int, bits: int, is_float: bool) -> int:
    """The zigzag of the ulp distance, word for word."""
    d = (order(target, bits, is_float) - order(base, bits, is_float)) % (1 << bits)
    if d >= 1 << (bits - 1):
        d -= 1 << bits
    return 2 * d if d >= 0 else -2 * d - 1


def zigzags(name: str, base: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of all units."""
    found, every = changes.changes_of(base.view(np.uint8), target.view(np.uint8), DTYPES[name]), np.zeros_like(base)
    every[found[0]] = found[1]
    return every

"""Bins that kernels count in, without Numba: for those who make and read them."""

from __future__ import annotations

ULP_OCTAVES = 64
LOWEST, HIGHEST = -150, 130
"""Range of the binary exponents of |d|; what lies outside counts in the outermost bins."""

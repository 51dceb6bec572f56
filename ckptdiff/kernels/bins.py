"""The bins that kernels count in; apart from the kernels, so that those who only read the bins need not import Numba."""

from __future__ import annotations

ULP_OCTAVES = 64
"""Bins of ulp distances: bin k counts those from 2^k to 2^(k+1) - 1."""
LOWEST, HIGHEST = -150, 130
"""The least and the greatest binary exponent of |target - base| with a bin of its own; what lies outside counts in the outermost bins."""

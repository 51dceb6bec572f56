"""Compiled loops over arrays: the only modules that import Numba."""

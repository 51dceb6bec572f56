"""Kernels as plain Python, for coverage and for a debugger: :func:`install` before any module of kernels is imported.

``jit`` leaves functions as they are, and the few intrinsics, which are LLVM, become Python. NumPy's scalars do what Numba's do: unsigned
integers wrap around (their warnings are off), and so do the casts of kernels. A read beyond an array raises IndexError here; only a
negative index would pass, and no kernel forms one.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import types
from typing import Any

import numpy as np

MAX_UINT64 = (1 << 64) - 1


class _ThreadState(threading.local):
    """Whether this thread is in a kernel: 1, or 0."""

    depth = 0


_state = _ThreadState()


def jit(function: Any) -> Any:
    """A kernel as it is. The outermost of nested calls returns Python's numbers, as a compiled kernel does."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if _state.depth:
            return function(*args)
        _state.depth = 1
        try:
            with np.errstate(over="ignore"):
                return _as_python(function(*args))
        finally:
            _state.depth = 0

    return run


def _as_python(value: Any) -> Any:
    """What a kernel returns, with Python's numbers in place of NumPy's."""
    if isinstance(value, tuple):
        members = map(_as_python, value)
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    return value.item() if isinstance(value, np.generic) else value


def zeros_below(word: Any) -> Any:
    value = int(word)
    return np.uint64((value & -value).bit_length() - 1 if value else 64)


def zeros_above(word: Any) -> Any:
    return np.uint64(64 - int(word).bit_length())


def _bits(flags: Any) -> Any:
    return np.packbits(flags, bitorder="little").view("<u8")[0]


def _part(array: Any, at: Any) -> Any:
    part = array[int(at) : int(at) + 64]
    if len(part) != 64:
        raise IndexError(f"64 items from {at} on, of {len(array)}")
    return part


def unequal(a: Any, i: Any, b: Any, j: Any) -> Any:
    return _bits(_part(a, i) != _part(b, j))


def below(a: Any, i: Any, b: Any, j: Any) -> Any:
    return _bits(_part(a, i) < _part(b, j))


def prefetch(array: Any, at: Any) -> None:
    """Nothing: a hint to the processor, which may be beyond the array."""


def array_at(address: Any, count: Any, like: Any) -> Any:
    """As ``jit.array_at``; reads beyond it raise IndexError, as beyond any array."""
    size = int(count) * like.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), like.dtype) if size else np.empty(0, like.dtype)


def fold(a: Any, b: Any) -> Any:
    product = int(a) * int(b)
    return np.uint64(product >> 64 ^ product & MAX_UINT64)


def _words(data: Any, at: int) -> list[int]:
    if isinstance(data, (int, np.integer)):  # an address
        return np.frombuffer(ctypes.string_at(int(data) + at, 64), "<u8").tolist()
    part = data[at : at + 64]
    if len(part) != 64:
        raise IndexError(f"a stripe from {at} on, of {len(data)}")
    return [int(word) for word in np.ascontiguousarray(part).view("<u8")]


def adder(stripes: int) -> Any:
    """As ``leaves._adder``: stripes of XXH3 into the accumulators; 16 are a step, after which they are scrambled."""
    from ckptdiff.format import xxh3

    def add(acc: Any, data: Any, at: Any, secret: Any, key: Any) -> None:
        sums = [int(value) for value in acc]
        for stripe in range(stripes):
            lanes, keys = _words(data, int(at) + 64 * stripe), _words(secret, int(key) + xxh3.STRIPE_OFFSET * stripe)
            for k in range(8):
                mixed = lanes[k] ^ keys[k]
                sums[k] = sums[k] + lanes[k ^ 1] + (mixed & 0xFFFFFFFF) * (mixed >> 32) & MAX_UINT64
        if stripes == 16:
            keys = _words(secret, int(key) + xxh3.SCRAMBLE_OFFSET)
            sums = [(value ^ value >> 47 ^ word) * xxh3.PRIMES_32[0] & MAX_UINT64 for value, word in zip(sums, keys, strict=True)]
        acc[:] = np.array(sums, np.uint64)

    return add


def install() -> None:
    """Put a module of plain functions where the kernels import theirs from."""
    if any(name in sys.modules for name in ("ckptdiff.kernels.jit", "ckptdiff.kernels.leaves")):
        raise RuntimeError("kernels are imported already")
    plain: Any = types.ModuleType("ckptdiff.kernels.jit")
    plain.ZERO, plain.ONE = np.uint64(0), np.uint64(1)
    plain.jit, plain.prefetch_address = jit, None
    for function in (zeros_below, zeros_above, unequal, below, prefetch, array_at):
        setattr(plain, function.__name__, function)
    sys.modules["ckptdiff.kernels.jit"] = plain
    import ckptdiff.kernels.leaves as leaves

    module: Any = leaves
    module.fold, module.add_step, module.add_stripe = fold, adder(16), adder(1)
    import ckptdiff.kernels.file_reads as file_reads

    library, reads = ctypes.CDLL(None), [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
    for name in ("pread", "pwrite"):
        function = getattr(library, name)
        function.argtypes, function.restype = reads, ctypes.c_ssize_t
        setattr(file_reads, name, lambda *args, function=function: function(*map(int, args)))

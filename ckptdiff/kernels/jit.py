"""Numba, as the kernels of ``context`` use it. Imported where a kernel is first needed: it takes most of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ckptdiff.kernels.cache import KernelCache

F = TypeVar("F", bound=Callable[..., Any])

ZERO, ONE = np.uint64(0), np.uint64(1)
"""Numba turns a mix of signed and unsigned 64-bit integers into floats, so kernels write unsigned constants like this."""


def jit(function: F) -> F:
    """Compile a kernel when it is first called: without the GIL, and kept on the disk (:mod:`ckptdiff.kernels.cache`).

    Kernels allocate nothing (``_nrt``): else Numba counts references to every array in the innermost loops, which takes
    half of their time.
    """
    options: dict[str, Any] = {"nogil": True, "_nrt": False}
    kernel = numba.njit(**options)(function)
    kernel._cache = KernelCache(function)  # as Numba's ``enable_caching`` sets its own
    return kernel


@intrinsic
def zeros_below(context: Any, word: Any) -> Any:
    """In a kernel: how many zeros stand below the lowest one of a uint64; 64 if there is none."""
    return numba.uint64(numba.uint64), lambda _, builder, __, values: builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))


@intrinsic
def zeros_above(context: Any, word: Any) -> Any:
    """In a kernel: how many zeros stand above the highest one of a uint64; 64 if there is none."""
    return numba.uint64(numba.uint64), lambda _, builder, __, values: builder.ctlz(values[0], ir.Constant(ir.IntType(1), 0))


def _compare(sign: str) -> Any:
    """How 64 items of two arrays, from ``at`` and ``there`` on, compare: bit k for the k-th.

    One compare of vectors, as wide as the processor has them; what LLVM makes of a loop ends in bytes, not bits.
    """

    def load(target: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
        first = builder.gep(target.make_array(kind)(target, builder, array).data, [index])
        vector = builder.load(builder.bitcast(first, ir.VectorType(ir.IntType(kind.dtype.bitwidth), 64).as_pointer()))
        vector.align = 1
        return vector

    def compare(context: Any, some: Any, at: Any, others: Any, there: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, b = (load(target, builder, kind, *args[k : k + 2]) for k, kind in ((0, some), (2, others)))
            return builder.bitcast(builder.icmp_unsigned(sign, a, b), ir.IntType(64))

        return numba.uint64(some, numba.intp, others, numba.intp), build

    return intrinsic(compare)


unequal, below = _compare("!="), _compare("<")
"""In a kernel: which of 64 items differ, or are below the others (of unsigned integers)."""


def ask_for(builder: Any, address: Any) -> None:
    """Have a line of memory brought into the cache; it need not be there."""
    text, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = builder.module.declare_intrinsic("llvm.prefetch", [text], ir.FunctionType(ir.VoidType(), [text, number, number, number]))
    builder.call(function, [builder.bitcast(address, text), *(ir.Constant(number, k) for k in (0, 2, 1))])


@intrinsic
def prefetch(context: Any, array: Any, at: Any) -> Any:
    """In a kernel: ask for the memory of an item, of an array or behind it."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        ask_for(builder, builder.gep(target.make_array(array)(target, builder, args[0]).data, [args[1]]))
        return target.get_dummy_value()

    return numba.void(array, numba.intp), build

"""Numba, as all kernels use it: how they are compiled, and the processor's instructions that Numba has no name for.

Importing Numba takes most of a second, so modules of kernels are imported when a kernel is first needed (:mod:`ckptdiff.lazy`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from ckptdiff.kernels.cache import KernelCache
from ckptdiff.kernels.compiler import Kernel

F = TypeVar("F", bound=Callable[..., Any])

ZERO, ONE = np.uint64(0), np.uint64(1)
"""Numba turns a mix of signed and unsigned 64-bit integers into floats, so kernels take unsigned constants from here."""


def jit(function: F) -> F:
    """Compile a kernel when it is first called: without the GIL, and kept on the disk (:mod:`ckptdiff.kernels.cache`).

    Kernels allocate nothing (``_nrt``). If they could, Numba would count references to every array in the innermost loops, which
    would take half of their time.
    """
    kernel: Any = Kernel(function)
    kernel._cache = KernelCache(function)  # where Numba's ``enable_caching`` puts its own cache
    return kernel


@intrinsic
def zeros_below(context: Any, word: Any) -> Any:
    """In a kernel: how many bits of a uint64 below its lowest set bit are clear; 64 if none is set."""
    return numba.uint64(numba.uint64), lambda _, builder, __, values: builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))


@intrinsic
def zeros_above(context: Any, word: Any) -> Any:
    """In a kernel: how many bits of a uint64 above its highest set bit are clear; 64 if none is set."""
    return numba.uint64(numba.uint64), lambda _, builder, __, values: builder.ctlz(values[0], ir.Constant(ir.IntType(1), 0))


def _compare(sign: str) -> Any:
    """An intrinsic for kernels, ``compare(a, i, b, j)``: how 64 items from ``a[i]`` on compare with those from ``b[j]`` on.

    Bit k of the result is for the k-th item. One compare of vectors, as wide as the processor has them; what LLVM makes of a loop ends in
    bytes, not bits.
    """

    def load(target: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
        first = builder.gep(target.make_array(kind)(target, builder, array).data, [index])
        vector = builder.load(builder.bitcast(first, ir.VectorType(ir.IntType(kind.dtype.bitwidth), 64).as_pointer()))
        vector.align = 1
        return vector

    def compare(context: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            left, right = (load(target, builder, kind, *args[k : k + 2]) for k, kind in ((0, a), (2, b)))
            return builder.bitcast(builder.icmp_unsigned(sign, left, right), ir.IntType(64))

        return numba.uint64(a, numba.intp, b, numba.intp), build

    return intrinsic(compare)


unequal, below = _compare("!="), _compare("<")
"""In a kernel: which of 64 items differ from the others, and which (of unsigned integers) are below them."""


def prefetch_address(builder: Any, address: Any) -> None:
    """Have the processor bring a line of memory into its cache; nothing happens where there is no memory."""
    text, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = builder.module.declare_intrinsic("llvm.prefetch", [text], ir.FunctionType(ir.VoidType(), [text, number, number, number]))
    builder.call(function, [builder.bitcast(address, text), *(ir.Constant(number, k) for k in (0, 2, 1))])


@intrinsic
def prefetch(context: Any, array: Any, at: Any) -> Any:
    """In a kernel: have the memory of ``array[at]`` brought into the cache; ``at`` may be beyond the end."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch_address(builder, builder.gep(target.make_array(array)(target, builder, args[0]).data, [args[1]]))
        return target.get_dummy_value()

    return numba.void(array, numba.intp), build


@intrinsic
def array_at(context: Any, address: Any, count: Any, like: Any) -> Any:
    """In a kernel: the ``count`` items at an address (uint64), as an array of the type of ``like``. So one call does several arrays."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.return_type
        array, size = target.make_array(kind)(target, builder), target.get_constant(types.intp, kind.dtype.bitwidth // 8)
        data = builder.inttoptr(args[0], array.data.type)
        populate: Any = populate_array
        populate(array, data=data, shape=[args[1]], strides=[size], itemsize=size, meminfo=None)
        return array._getvalue()

    return like(address, numba.intp, like), build

"""Kernels: leaves (spec section 3.2), XXH3-128 beside other work in one kernel.

The library's calls are as fast, but each hands Python's lock over, and a thread that waits for it waits for a core as well.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.extending import intrinsic

from ckptdiff.format import xxh3
from ckptdiff.format.digests import BLOCK, block_count, xxh128
from ckptdiff.format.dtypes import Bytes
from ckptdiff.kernels.jit import ask_for, jit

Array = npt.NDArray[Any]

SECRET = np.frombuffer(xxh3.SECRET, np.uint8)
START = np.array(xxh3.START, np.uint64)
WORDS = np.array([*xxh3.words(xxh3.KEY_LOW), *xxh3.words(xxh3.KEY_HIGH)], np.uint64)
STEP, KEY_STRIPE, KEY_LAST, SHORT = xxh3.STEP, xxh3.KEY_STRIPE, xxh3.KEY_LAST, xxh3.SHORT
P64_0, P64_1, AVALANCHE = np.uint64(xxh3.P64[0]), np.uint64(xxh3.P64[1]), np.uint64(xxh3.AVALANCHE)
PIECE = 1 << 15
"""Bytes that are compared or moved, and then hashed, while they are in a core's cache."""
LANES = ir.VectorType(ir.IntType(64), 8)
PAIRS = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])


def _splat(value: int) -> ir.Constant:
    return ir.Constant(LANES, [value] * 8)


def _load(builder: Any, data: Any, offset: int) -> Any:
    first = builder.gep(data, [ir.Constant(ir.IntType(64), offset)])
    lanes = builder.load(builder.bitcast(first, LANES.as_pointer()))
    lanes.align = 1
    return lanes


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Where bytes begin: an array, or the address of some."""
    if isinstance(kind, numba.types.Integer):
        return builder.inttoptr(array, ir.IntType(8).as_pointer())
    return context.make_array(kind)(context, builder, array).data


def _add(builder: Any, acc: Any, data: Any, secret: Any, at: int, key: int) -> Any:
    """One stripe of 64 bytes into the accumulators."""
    lanes = _load(builder, data, at)
    mixed = builder.xor(lanes, _load(builder, secret, key))
    product = builder.mul(builder.and_(mixed, _splat(0xFFFFFFFF)), builder.lshr(mixed, _splat(32)))
    swapped = builder.shuffle_vector(lanes, ir.Constant(LANES, ir.Undefined), PAIRS)
    return builder.add(builder.add(acc, swapped), product)


def _adder(stripes: int) -> Any:
    """In a kernel: so many stripes of ``data``, from ``at`` on, into the accumulators, by the secret from ``key`` on; 16 are a step."""

    @intrinsic
    def add(context: Any, acc: Any, data: Any, at: Any, secret: Any, key: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums = builder.bitcast(_data(target, builder, acc, args[0]), LANES.as_pointer())
            here, there = (builder.gep(_data(target, builder, kind, args[k]), [args[k + 1]]) for k, kind in ((1, data), (3, secret)))
            lanes = builder.load(sums)
            lanes.align = 8
            for stripe in range(stripes):
                lanes = _add(builder, lanes, here, there, 64 * stripe, xxh3.KEY_STRIPE * stripe)
                ask_for(builder, builder.gep(here, [ir.Constant(ir.IntType(64), PIECE + 64 * stripe)]))
            if stripes == 16:
                lanes = builder.xor(builder.xor(lanes, builder.lshr(lanes, _splat(47))), _load(builder, there, xxh3.KEY_STEP))
                lanes = builder.mul(lanes, _splat(xxh3.P32[0]))
            builder.store(lanes, sums).align = 8
            return target.get_dummy_value()

        return numba.void(acc, data, numba.intp, secret, numba.intp), build

    return add


add_step, add_stripe = _adder(16), _adder(1)


@intrinsic
def fold(context: Any, a: Any, b: Any) -> Any:
    """In a kernel: the two halves of the product of two uint64, combined by xor."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        high = builder.lshr(product, ir.Constant(wide, 64))
        return builder.trunc(builder.xor(product, high), ir.IntType(64))

    return numba.uint64(numba.uint64, numba.uint64), build


@jit
def begin(sums):
    for k in range(8):
        sums[k] = START[k]


@jit
def add_steps(sums, data, block, size, start, stop):
    """Bytes ``start`` to ``stop``, whole steps or up to the end, of the block of ``size`` bytes at ``block``."""
    for at in range(start, min(stop, (size - 1) // STEP * STEP), STEP):
        add_step(sums, data, block + at, SECRET, 0)


@jit
def merge(sums, first, half):
    for k in range(0, 8, 2):
        half += fold(sums[k] ^ WORDS[first + k], sums[k + 1] ^ WORDS[first + k + 1])
    half = (half ^ (half >> np.uint64(37))) * AVALANCHE
    return half ^ (half >> np.uint64(32))


@jit
def close(sums, size, leaf):
    """The leaf of a block, its high half first, from its accumulators."""
    leaf[0] = merge(sums, 8, ~(np.uint64(size) * P64_1))
    leaf[1] = merge(sums, 0, np.uint64(size) * P64_0)


@jit
def close_all(sums, leaves):
    for k in range(len(sums)):
        close(sums[k], BLOCK, leaves[k])


@jit
def finish(sums, data, block, size, leaf):
    """What is not whole steps; then the leaf. Not of :data:`SHORT` blocks."""
    if size <= SHORT:
        return
    done = (size - 1) // STEP * STEP
    for k in range((size - 1 - done) // 64):
        add_stripe(sums, data, block + done + 64 * k, SECRET, KEY_STRIPE * k)
    add_stripe(sums, data, block + size - 64, SECRET, KEY_LAST)
    close(sums, size, leaf)


@jit
def fill_leaves(addresses, sizes, sums, leaves):
    n = 0
    for k in range(len(addresses)):
        for block in range(0, sizes[k], BLOCK):
            size = min(BLOCK, sizes[k] - block)
            begin(sums)
            add_steps(sums, addresses[k], block, size, 0, size)
            finish(sums, addresses[k], block, size, leaves[n])
            n += 1


def leaves_of_sums(sums: Array) -> list[bytes]:
    """Leaves of whole blocks whose accumulators a device found: 8 integers each."""
    leaves = np.empty((len(sums), 2), np.uint64)
    close_all(sums.view(np.uint64), leaves)
    return as_leaves(leaves, np.empty(0, np.uint8))


def leaves_of_all(parts: Sequence[Bytes]) -> list[bytes]:
    """Leaves of several tensors, or runs of whole blocks, one after the other, by one call of a kernel, which reads them by address."""
    if any(part.ndim != 1 or part.itemsize != 1 or not part.flags.c_contiguous for part in parts):
        raise ValueError("expected bytes that lie one behind the other")
    counts = [block_count(len(part)) for part in parts]
    leaves = np.empty((sum(counts), 2), np.uint64)
    addresses, sizes = np.array([part.ctypes.data for part in parts], np.uint64), np.array([len(part) for part in parts], np.int64)
    fill_leaves(addresses, sizes, np.empty(8, np.uint64), leaves)
    rows = zip(parts, np.split(leaves, np.cumsum(counts)[:-1]), strict=True)
    return [leaf for part, row in rows for leaf in as_leaves(row, part)]


def as_leaves(leaves: Array, data: Bytes) -> list[bytes]:
    """The leaves of a run of blocks as bytes; the library's for a last short one."""
    raw, short = leaves.astype(">u8").tobytes(), len(data) % BLOCK
    found = [raw[k : k + 16] for k in range(0, len(raw), 16)]
    if 0 < short <= SHORT:
        found[-1] = xxh128(data[-short:])
    return found

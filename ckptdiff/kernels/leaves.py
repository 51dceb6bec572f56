"""Kernels: leaves (spec section 3.2), which are XXH3-128, hashed within other kernels while the bytes are in the processor's cache.

The library's calls are as fast on their own, but each gives up Python's lock, and a thread that waits for the lock waits for a core as
well. The constants, and the source of the algorithm: :mod:`ckptdiff.format.xxh3`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from ctypes import string_at
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.extending import intrinsic

from ckptdiff.format import xxh3
from ckptdiff.format.digests import BLOCK, xxh128
from ckptdiff.format.dtypes import Bytes
from ckptdiff.format.xxh3 import LAST_STRIPE_OFFSET, MAX_SHORT, STEP_BYTES, STRIPE_OFFSET
from ckptdiff.kernels.arrays import address_of
from ckptdiff.kernels.jit import jit, prefetch_address

Array = npt.NDArray[Any]

# The constants in the types that kernels need: Numba takes arrays, and unsigned integers, only from NumPy.
SECRET_ARRAY = np.frombuffer(xxh3.SECRET, np.uint8)
INITIAL_ARRAY = np.array(xxh3.INITIAL_SUMS, np.uint64)
HALVES_ARRAY = np.array([*xxh3.secret_words(xxh3.LOW_HALF_OFFSET), *xxh3.secret_words(xxh3.HIGH_HALF_OFFSET)], np.uint64)
PRIME64_1, PRIME64_2, MULTIPLIER = np.uint64(xxh3.PRIMES_64[0]), np.uint64(xxh3.PRIMES_64[1]), np.uint64(xxh3.AVALANCHE_MULTIPLIER)

PIECE = 1 << 15
"""Bytes that are compared or moved, and then hashed, while they are in a core's cache."""
LANES = ir.VectorType(ir.IntType(64), 8)
"""The accumulators, or a stripe, as one vector of LLVM."""
SWAPPED_PAIRS = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])


def _splat(value: int) -> ir.Constant:
    """A vector with the same value in each lane."""
    return ir.Constant(LANES, [value] * 8)


def _load(builder: Any, data: Any, offset: int) -> Any:
    """The 64 bytes at an offset from an address."""
    first = builder.gep(data, [ir.Constant(ir.IntType(64), offset)])
    lanes = builder.load(builder.bitcast(first, LANES.as_pointer()))
    lanes.align = 1
    return lanes


def _address(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Where bytes begin, given an array of them or their address as an integer."""
    if isinstance(kind, numba.types.Integer):
        return builder.inttoptr(value, ir.IntType(8).as_pointer())
    return context.make_array(kind)(context, builder, value).data


def _add_stripe(builder: Any, sums: Any, data: Any, secret: Any, offset: int, secret_offset: int) -> Any:
    """The accumulators with one stripe of 64 bytes more."""
    lanes = _load(builder, data, offset)
    mixed = builder.xor(lanes, _load(builder, secret, secret_offset))
    product = builder.mul(builder.and_(mixed, _splat(0xFFFFFFFF)), builder.lshr(mixed, _splat(32)))
    swapped = builder.shuffle_vector(lanes, ir.Constant(LANES, ir.Undefined), SWAPPED_PAIRS)
    return builder.add(builder.add(sums, swapped), product)


def _scramble(builder: Any, sums: Any, secret: Any) -> Any:
    """The accumulators after the end of a step."""
    mixed = builder.xor(builder.xor(sums, builder.lshr(sums, _splat(47))), _load(builder, secret, xxh3.SCRAMBLE_OFFSET))
    return builder.mul(mixed, _splat(xxh3.PRIMES_32[0]))


def _adder(stripes: int) -> Any:
    """An intrinsic for kernels, ``add(sums, data, at, secret, key)``: adds so many stripes to the accumulators; 16 are a step.

    Its arguments: the accumulators, uint64[8]; bytes, and where in them the stripes begin; the secret, and where its words begin.
    """

    @intrinsic
    def add(context: Any, sums: Any, data: Any, at: Any, secret: Any, key: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = builder.bitcast(_address(target, builder, sums, args[0]), LANES.as_pointer())
            stripe_data = builder.gep(_address(target, builder, data, args[1]), [args[2]])
            stripe_secret = builder.gep(_address(target, builder, secret, args[3]), [args[4]])
            lanes = builder.load(address)
            lanes.align = 8
            for stripe in range(stripes):
                lanes = _add_stripe(builder, lanes, stripe_data, stripe_secret, 64 * stripe, STRIPE_OFFSET * stripe)
                prefetch_address(builder, builder.gep(stripe_data, [ir.Constant(ir.IntType(64), PIECE + 64 * stripe)]))
            if stripes == 16:
                lanes = _scramble(builder, lanes, stripe_secret)
            builder.store(lanes, address).align = 8
            return target.get_dummy_value()

        return numba.void(sums, data, numba.intp, secret, numba.intp), build

    return add


add_step, add_stripe = _adder(16), _adder(1)


@intrinsic
def fold(context: Any, a: Any, b: Any) -> Any:
    """In a kernel: the two halves of the 128-bit product of two uint64, combined by xor."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        high = builder.lshr(product, ir.Constant(wide, 64))
        return builder.trunc(builder.xor(product, high), ir.IntType(64))

    return numba.uint64(numba.uint64, numba.uint64), build


@jit
def start_leaf(sums):
    """Set the accumulators (uint64[8]) to those of no input."""
    for k in range(8):
        sums[k] = INITIAL_ARRAY[k]


@jit
def hash_steps(sums, data, block, size, start, stop):
    """Hash a piece of a block, but for a last step that may not be whole.

    Args:
        sums: the accumulators, uint64[8].
        data: bytes, or their address.
        block: where in them the block begins.
        size: bytes of the block.
        start, stop: where in the block the piece begins and ends: at whole steps, or at the block's end.
    """
    for at in range(start, min(stop, (size - 1) // STEP_BYTES * STEP_BYTES), STEP_BYTES):
        add_step(sums, data, block + at, SECRET_ARRAY, 0)


@jit
def merge_sums(sums, first, half):
    """Half of a digest, from the accumulators, the words of ``HALVES_ARRAY`` from ``first`` on, and the number that it starts from."""
    for k in range(0, 8, 2):
        half += fold(sums[k] ^ HALVES_ARRAY[first + k], sums[k + 1] ^ HALVES_ARRAY[first + k + 1])
    half = (half ^ (half >> np.uint64(37))) * MULTIPLIER
    return half ^ (half >> np.uint64(32))


@jit
def fill_leaf(sums, size, leaf):
    """Fill the leaf (uint64[2], its high half first) of a block of so many bytes from its accumulators."""
    leaf[0] = merge_sums(sums, 8, ~(np.uint64(size) * PRIME64_2))
    leaf[1] = merge_sums(sums, 0, np.uint64(size) * PRIME64_1)


@jit
def fill_whole_leaves(sums, leaves):
    """Fill the leaves of whole blocks, one for each row of accumulators."""
    for k in range(len(sums)):
        fill_leaf(sums[k], BLOCK, leaves[k])


@jit
def finish_leaf(sums, data, block, size, leaf):
    """Hash what :func:`hash_steps` left of a block, and fill its leaf. Does nothing for a block of at most :data:`MAX_SHORT` bytes."""
    if size <= MAX_SHORT:
        return
    done = (size - 1) // STEP_BYTES * STEP_BYTES
    for k in range((size - 1 - done) // 64):
        add_stripe(sums, data, block + done + 64 * k, SECRET_ARRAY, STRIPE_OFFSET * k)
    add_stripe(sums, data, block + size - 64, SECRET_ARRAY, LAST_STRIPE_OFFSET)
    fill_leaf(sums, size, leaf)


@jit
def fill_leaves(addresses, sizes, sums, leaves):
    """Fill the leaves of several blocks.

    Args:
        addresses, sizes: where each lies in memory, and its bytes: uint64 and int64.
        sums: memory to work in, uint64[8].
        leaves: uint64[blocks, 2], to fill.
    """
    for k in range(len(addresses)):
        start_leaf(sums)
        hash_steps(sums, addresses[k], 0, sizes[k], 0, sizes[k])
        finish_leaf(sums, addresses[k], 0, sizes[k], leaves[k])


def leaves_of_sums(sums: Array) -> list[bytes]:
    """Leaves of whole blocks whose accumulators a device has computed: int64[blocks, 8]."""
    leaves = np.empty((len(sums), 2), np.uint64)
    fill_whole_leaves(sums.view(np.uint64), leaves)
    return cut_leaves(leaves.astype(">u8").tobytes())


def blocks_at(addresses: Sequence[int] | Array, sizes: Sequence[int] | Array) -> tuple[Array, Array]:
    """Where the blocks of several tensors lie in memory, and their bytes (uint64 and int64), given the same of the tensors."""
    starts, nbytes = np.asarray(addresses, np.uint64), np.asarray(sizes, np.int64)
    if not len(nbytes) or nbytes.max() <= BLOCK:
        filled = nbytes > 0
        return starts[filled], nbytes[filled]
    owners, places = places_of_blocks(nbytes)
    return starts[owners] + places.astype(np.uint64), np.minimum(nbytes[owners] - places, BLOCK)


def places_of_blocks(sizes: Array) -> tuple[Array, Array]:
    """The tensor that each block of several belongs to, by its number, and where it begins in that: int64, given their bytes."""
    counts = -(-sizes // BLOCK)
    owners = np.repeat(np.arange(len(sizes)), counts)
    return owners, (np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]) * BLOCK


def blocks_of(runs: Sequence[Bytes]) -> tuple[Array, Array]:
    """As :func:`blocks_at`, of tensors, or runs of whole blocks, that are given as arrays.

    Raises:
        ValueError: the bytes of one do not lie one behind the other.
    """
    for run in runs:
        if run.ndim != 1 or run.itemsize != 1 or not run.flags.c_contiguous:
            raise ValueError("expected bytes that lie one behind the other")
    return blocks_at([address_of(run) for run in runs], [len(run) for run in runs])


def leaves_at(addresses: Array, sizes: Array) -> bytes:
    """Leaves of blocks, one behind the other, by one call of a kernel, which reads them by address: uint64 and int64."""
    leaves = np.empty((len(sizes), 2), np.uint64)
    fill_leaves(addresses, sizes, np.empty(8, np.uint64), leaves)
    return stored_leaves(leaves, addresses, sizes)


def stored_leaves(leaves: Array, addresses: Array, sizes: Array) -> bytes:
    """Leaves that kernels have filled (uint64[blocks, 2]) as bytes, one behind the other; those of blocks that are too short for
    :func:`finish_leaf` come from the library.

    ``addresses``, ``sizes``: of the blocks, which lie there still.
    """
    raw, short = leaves.astype(">u8").tobytes(), np.flatnonzero(sizes <= MAX_SHORT)
    if not len(short):
        return raw
    digests = bytearray(raw)
    for k, address, size in zip(short.tolist(), addresses[short].tolist(), sizes[short].tolist(), strict=True):
        digests[16 * k : 16 * k + 16] = xxh128(string_at(address, size))
    return bytes(digests)


def leaves_of_blocks(data: Bytes, bounds: Sequence[int]) -> list[bytes]:
    """Leaves of blocks that lie one behind the other in ``data``; ``bounds``: one more than blocks, where each ends from the second on."""
    where = np.array(bounds, np.int64)
    return cut_leaves(leaves_at((where[:-1] + data.ctypes.data).astype(np.uint64), np.diff(where)))


def cut_leaves(raw: bytes) -> list[bytes]:
    """Each of the leaves that lie one behind the other."""
    return [raw[k : k + 16] for k in range(0, len(raw), 16)]

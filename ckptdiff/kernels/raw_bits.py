"""Kernels: the raw bits of a ``context`` block, and small numbers coded in them (spec sections 7.5.1 and 7.5.3).

Raw bits fill 32-bit words from the lowest bit to the highest. A :class:`BitWriter` travels by value through every call that writes, so
that LLVM keeps its members in registers; the position of the next bit travels through those that read. Reads past the end give zeros,
and callers check the position at the end.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ckptdiff.kernels.jit import ONE, ZERO, jit

S32 = np.uint64(32)
LOW_32 = np.uint64(0xFFFFFFFF)
MAX_NUMBER_BITS = 16
"""Ones after which :func:`take_number` stops; the spec allows 15, and what a longer number makes is refused by its range."""


class BitWriter(NamedTuple):
    """How far the raw bits of a block are written."""

    waiting: np.uint64
    """Bits that do not fill a word yet, the first of them lowest."""
    size: int
    """How many bits are waiting: 0 to 31."""
    filled: int
    """How many words are complete."""


def new_writer() -> BitWriter:
    """The writer of a block that has no raw bits yet."""
    return BitWriter(ZERO, 0, 0)


def for_kernels(writer: BitWriter) -> BitWriter:
    """A writer that a kernel has returned, fit for the next one: Numba returns Python's integers, which it takes for signed."""
    return writer._replace(waiting=np.uint64(writer.waiting))


@jit
def put_raw(value, size, raw, writer):
    """Append the low bits of a value that has no others; returns the writer behind them.

    Args:
        value: uint64 below 2^size.
        size: how many bits, 0 to 32.
        raw: uint32 words, with room for the bits.
        writer: where the bits go.
    """
    waiting, count, filled = writer
    waiting |= value << np.uint64(count)
    count += size
    if count >= 32:
        raw[filled] = np.uint32(waiting & LOW_32)
        filled += 1
        waiting = waiting >> S32
        count -= 32
    return BitWriter(waiting, count, filled)


@jit
def close_raw(raw, writer):
    """Write the last word, which may not be full; returns how many bits there are in all."""
    raw[writer.filled] = np.uint32(writer.waiting)
    return 32 * writer.filled + writer.size


@jit
def take_raw(size, raw, position):
    """Read bits.

    Args:
        size: how many: 0 to 32.
        raw: uint32 words, the last two of which are zeros.
        position: number of the next bit.

    Returns:
        The bits as uint64, and the position behind them.
    """
    i = min(position >> 5, len(raw) - 2)
    value = (np.uint64(raw[i]) | (np.uint64(raw[i + 1]) << S32)) >> np.uint64(position & 31)
    return value & ((ONE << np.uint64(size)) - ONE), position + size


@jit
def bit_length(value):
    """How many bits a number of at least 0 has, without leading zeros."""
    size = 0
    while value >> size > 0:
        size += 1
    return size


@jit
def number_of_step(step):
    """The number from 0 on that stands for a step up or down (spec 7.5.3)."""
    return 2 * step if step >= 0 else -2 * step - 1


@jit
def put_step(step, raw, writer):
    """Append a step, as the Elias gamma code of its number."""
    number = number_of_step(step) + 1
    octave = bit_length(number) - 1
    writer = put_raw((ONE << np.uint64(octave)) - ONE, octave + 1, raw, writer)
    return put_raw(np.uint64(number - (1 << octave)), octave, raw, writer)


@jit
def step_bits(step):
    """How many bits :func:`put_step` takes."""
    return 2 * bit_length(number_of_step(step) + 1) - 1


@jit
def take_number(raw, position):
    """Read a number from 0 on; returns it, and the position behind it."""
    octave = 0
    while octave < MAX_NUMBER_BITS:
        bit, position = take_raw(1, raw, position)
        if bit == ZERO:
            break
        octave += 1
    rest, position = take_raw(octave, raw, position)
    return np.int64(rest) + (1 << octave) - 1, position


@jit
def take_step(raw, position):
    """Inverse of :func:`put_step`; returns the step, and the position behind it."""
    number, position = take_number(raw, position)
    return -((number + 1) >> 1) if number & 1 else number >> 1, position

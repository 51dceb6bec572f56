"""Kernels: how likely units change, for the adaptive form of ``context`` (spec section 7.5.2).

The head of a block gives each class a *rate*, which stands for a *weight*: a unit stays as it is with a probability of
2^-(weight / 2^24). As the block goes on, the *pace* scales all weights by how many changes there were of late, and how many the rates had
expected.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np

from ckptdiff.kernels.jit import ONE, ZERO, jit
from ckptdiff.kernels.range_coder import S16
from ckptdiff.kernels.raw_bits import S32, put_raw, put_step, step_bits, take_raw, take_step

RATES = 51
"""How many rates there are; rate 0 is of a class that never changes."""
WEIGHTS = np.array([0] + [(2 + (r - 1) % 2) << (2 + ((r - 1) >> 1)) for r in range(1, RATES)], np.uint32)
"""By rate: by how many 2^-24 octaves a unit lowers the probability that no unit of a run changes."""
STAY_COST = (WEIGHTS >> np.uint32(8)).astype(np.int64)
CHANGE_COST = np.array([1 << 40] + [round(-math.log2(-math.expm1(-math.log(2) * int(w) / 2**24)) * 65536) for w in WEIGHTS[1:]], np.int64)
"""By rate, in 1/65536 bits: what a unit costs that stays as it is, and one that changes."""

MAX_RUN = np.uint64(1 << 26)
"""A run of units ends where their weights, at its pace, sum up to this: 4 octaves."""
SHARES = np.array([math.floor(2.0 ** (32 - k / 256)) for k in range(257)], np.uint64)
"""2^-(k / 256) in 1/2^32: T(k) of the spec."""
WHOLE_SHARE = np.uint64(1 << 32)
PRIOR = np.uint64(24 << 16)
"""Octaves, in 2^-16, that the pace has seen as expected before the block began, so that it does not follow the first changes at once."""
MAX_EXPECTED = np.uint64(1 << 19)
"""What one run adds to the expected octaves, at most."""
MIN_PACE = 1 << 13
"""No pace is below this, in 1/65536: at a lower one a change could be left no room at all; see :func:`next_pace`."""
S4, S8, S24 = np.uint64(4), np.uint64(8), np.uint64(24)
LOW_24, LOW_16 = np.uint64((1 << 24) - 1), np.uint64((1 << 16) - 1)


@jit
def share(total):
    """How much of the range is left where no unit of a run changed: 2^-(total / 2^24), in 1/2^32, by the integers of the spec."""
    part = total & LOW_24
    k = part >> S16
    high = SHARES[k]
    return (high - (((high - SHARES[k + ONE]) * (part & LOW_16)) >> S16)) >> (total >> S24)


@jit
def next_pace(observed, expected, weight, stayed):
    """The pace after a change.

    ``expected`` stays below 16 MAX_EXPECTED + 16, so the pace is at least MIN_PACE: the least weight there is, 8, still is one in shares.

    Args:
        observed, expected: octaves that changes so far stood for, and that the runs between them were expected to hold, in 2^-16; older
            ones count less.
        weight: of the unit that changed, in 2^-24 octaves.
        stayed: sum of the weights of the units since the change before, in 2^-24 octaves.

    Returns:
        Both, and the pace in 1/65536: all uint64.
    """
    left = share(weight)
    observed = observed - (observed >> S4) + ((weight * left // (WHOLE_SHARE - left)) >> S8)
    expected = expected - (expected >> S4) + min(stayed >> S8, MAX_EXPECTED)
    return observed, expected, ((observed + PRIOR) << S16) // (expected + PRIOR)


@jit
def run_limit(pace):
    """The sum of weights at which a run ends at this pace."""
    return ((MAX_RUN << S16) + pace - ONE) // pace


@jit
def next_stop(coder, pace):
    """How far a run surely goes on without a change.

    Returns:
        The sum of weights up to which no unit can have changed, and the share at which one has, or 2^32 if the code is out of the range.
    """
    most = coder.code // (coder.span >> S32)
    if most >= WHOLE_SHARE:
        return ZERO, WHOLE_SHARE
    octaves = 32.0 - math.log2(np.float64(most) + 2.0)  # a lower bound, which only saves work: the decoder then compares shares exactly
    return min((np.uint64(max(octaves * 16777216.0 - 64.0, 0.0)) << S16) // pace, run_limit(pace)), most


@jit
def choose_rates(units, changed, lo, hi, rates):
    """Fill the rates of classes ``lo`` to ``hi`` that cost least, with how they are stored.

    Args:
        units, changed: how many units of each class there are, and how many of them changed: int64[256].
        lo, hi: the lowest and the highest class that changed.
        rates: uint8[256], to fill.
    """
    before = 0
    for c in range(lo, hi + 1):
        best = np.int64(1) << 62
        stay = np.int64(units[c]) - np.int64(changed[c])
        for r in range(RATES):
            cost = np.int64(changed[c]) * CHANGE_COST[r] + stay * STAY_COST[r]
            if c > lo:
                cost += np.int64(step_bits(_step(before, r))) << 16
            if cost < best:
                best, rates[c] = cost, np.uint8(r)
        before = np.int64(rates[c])


@jit
def _step(before, rate):
    """The step that is stored for a rate, given that of the class before: a rate is expected to be one lower than that."""
    return rate - max(before - 1, 0)


@jit
def put_rates(rates, lo, hi, raw, writer):
    """Append the head of a block: its range of classes, and their rates."""
    for value, size in ((lo, 8), (hi, 8), (np.int64(rates[lo]), 6)):
        writer = put_raw(np.uint64(value), size, raw, writer)
    for c in range(lo + 1, hi + 1):
        writer = put_step(_step(np.int64(rates[c - 1]), np.int64(rates[c])), raw, writer)
    return writer


@jit
def take_rates(raw, weights):
    """Read the head of a block, and fill the weights of classes (uint32[256]).

    Returns:
        The lowest class, or -1 where a rate is not one; the highest; and the position behind the head.
    """
    first, position = take_raw(8, raw, 0)
    last, position = take_raw(8, raw, position)
    lo, hi, before = np.int64(first), np.int64(last), np.int64(0)
    for c in range(lo, hi + 1):
        if c == lo:
            part, position = take_raw(6, raw, position)
            rate = np.int64(part)
        else:
            step, position = take_step(raw, position)
            rate = max(before - 1, 0) + step
        if rate < 0 or rate >= RATES:
            return -1, hi, position
        weights[c], before = WEIGHTS[rate], rate
    return lo, hi, position

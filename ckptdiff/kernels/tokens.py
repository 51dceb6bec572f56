"""Kernels: the tokens of units, for the static form of ``context`` (spec section 7.5.3).

A token says whether a unit changed, and if so by about how much and to which side; raw bits say the rest.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import numpy as np

from ckptdiff.kernels.classes import SAMPLED_FROM, count_sample, estimated
from ckptdiff.kernels.jit import ONE, jit
from ckptdiff.kernels.rans import MAX_TOKENS
from ckptdiff.kernels.raw_bits import put_raw, take_raw

SMALL_TOKENS = 8
"""Tokens below this are distances, whose side is a raw bit; the others hold octave, side and two bits of a distance."""
_token = np.arange(MAX_TOKENS)
_octave = np.where(_token < SMALL_TOKENS, np.maximum(np.frexp(np.maximum(_token, 1))[1] - 1, 0), 3 + (_token - SMALL_TOKENS) // 8)
ACTIVITY = np.where(_token > 0, _octave + 1, 0).astype(np.int64)
"""By token: how active a unit is: 0 if it stays as it is, else the octave of its distance and 1."""
TOKEN_RAW_BITS = np.where(_token < SMALL_TOKENS, np.minimum(_token, 1), _octave - 2).astype(np.int64)
"""By token: how many raw bits follow."""
TOKEN_DISTANCE = np.where(_token < SMALL_TOKENS, _token, (4 + _token % 4) << np.maximum(_octave - 2, 0)).astype(np.uint64)
"""By token: the distance, with zeros in place of the raw bits."""

TABLED_DISTANCES = np.uint64(1 << 16)
_distance = np.arange(1 << 16)
_octave = np.maximum(np.frexp(np.maximum(_distance, 1))[1] - 1, 2)
_large = 8 + (_octave - 3) * 8 + ((_distance >> (_octave - 2)) & 3)
TOKEN_OF_DISTANCE = np.where(_distance < SMALL_TOKENS, _distance, _large).astype(np.uint8)
"""By distance below :data:`TABLED_DISTANCES`: its token, for side 0."""


def token_count(m: int) -> int:
    """How many tokens units of ``m`` bits can have: T of the spec."""
    return 8 * (m - 2)


@jit
def put_tokens(changes, tokens, raw, writer):
    """Fill the tokens (uint8) of the units that changed, and append the raw bits that follow them; returns the writer."""
    positions, distances, sides = changes
    for x in range(len(positions)):
        distance, side = distances[x], np.int64(sides[x])
        if distance < TABLED_DISTANCES:
            token = np.int64(TOKEN_OF_DISTANCE[distance])
        else:
            octave = 16
            while (distance >> np.uint64(octave)) > ONE:
                octave += 1
            token = 8 + (octave - 3) * 8 + np.int64((distance >> np.uint64(octave - 2)) & np.uint64(3))
        if token < SMALL_TOKENS:
            writer = put_raw(np.uint64(side), 1, raw, writer)
        else:
            token += 4 * side
            size = TOKEN_RAW_BITS[token]
            writer = put_raw(distance & ((ONE << np.uint64(size)) - ONE), size, raw, writer)
        tokens[np.uint32(positions[x])] = np.uint8(token)
    return writer


@jit
def take_changes(tokens, raw, position, changes):
    """Fill the distances and sides of changes from the tokens of all units and the raw bits; returns the position behind these."""
    positions, distances, sides = changes
    for x in range(len(positions)):
        token = np.int64(tokens[positions[x]])
        part, position = take_raw(TOKEN_RAW_BITS[token], raw, position)
        if token < SMALL_TOKENS:
            distances[x], sides[x] = np.uint64(token), np.uint8(part)
        else:
            distances[x], sides[x] = TOKEN_DISTANCE[token] | part, np.uint8((token >> 2) & 1)
    return position


@jit
def count_tokens(contexts, positions, tokens, sums, counts):
    """Count the tokens of each context: those of changes one by one, the zeros by what is left of its units.

    Of a large block every other unit is counted. A context that occurs then has a zero at least, as there may be one.

    Args:
        contexts, tokens: of each unit: uint16 and uint8.
        positions: of the units that changed: int32.
        sums, counts: zeros, int32[3, contexts] and uint32[contexts, tokens], to fill.
    """
    each = 2 if len(contexts) >= SAMPLED_FROM else 1
    count_sample(contexts, each, sums)
    for x in range(len(positions)):
        p = np.uint32(positions[x])
        counts[contexts[p], tokens[p]] += np.uint32(1)
        sums[2, contexts[p]] += np.int32(1)
    for c in range(len(counts)):
        units = estimated(sums, c, each)
        changed = np.int64(sums[2, c])
        counts[c, 0] = np.uint32(max(units - changed, 1 if each > 1 and units + changed > 0 else 0))

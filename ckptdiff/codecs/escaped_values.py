"""Escaped values (spec section 7.1), and gaps between positions (7.4), as planes."""

# mypy: allow-untyped-calls

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.planes import BlockError, PlaneCounts, write_plane
from ckptdiff.format.dtypes import Changes, ManyChanges
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels import escapes

Array = npt.NDArray[Any]


def write_changes(changes: ManyChanges, gap_width: int, width: int) -> list[tuple[int, int, bytes]]:
    """The gaps before positions, and the zigzags less one, as escaped values.

    Args:
        changes: of some blocks.
        gap_width, width: bytes of a gap, and of a zigzag.

    Returns:
        Of each block how many low planes gaps have, how many values have, and the planes of both.
    """
    n, blocks = len(changes.positions), list(itertools.pairwise(changes.ends))
    most = max((j - i for i, j in blocks), default=0)
    gaps, values = scratch("gaps", most, np.uint32), scratch("values", most, changes.zigzags.dtype)
    planes = scratch("low", gap_width * n, np.uint8), scratch("high", width * n, np.uint8)
    widths, ends = np.empty((len(blocks), 4), np.int64), np.array(changes.ends, np.int64)
    escapes.split_blocks(changes.positions, changes.zigzags, ends, gap_width, width, gaps, values, *planes, widths)
    low, high, coded = planes[0].data, planes[1].data, list[tuple[int, int, bytes]]()
    for (i, j), (low_gaps, gap_escapes, low_values, value_escapes) in zip(blocks, widths.tolist(), strict=True):
        parts = list[bytes]()
        write_planes(low, gap_width * i, j - i, gap_width, low_gaps, gap_escapes, parts)
        write_planes(high, width * i, j - i, width, low_values, value_escapes, parts)
        coded.append((low_gaps, low_values, b"".join(parts)))
    return coded


def write_planes(planes: memoryview, at: int, count: int, width: int, low: int, escaped: int, parts: list[bytes]) -> None:
    """Append the planes of ``count`` values that a kernel has split, which begin at ``at``; ``escaped`` of the values have high planes."""
    for _ in range(low if count else 0):
        parts.append(write_plane(planes[at : at + count]))
        at += count
    for _ in range(width if escaped else 0):
        parts.append(write_plane(planes[at : at + escaped]))
        at += escaped


def join_changes(
    planes: Sequence[bytes],
    rows: Sequence[PlaneCounts],
    units: Sequence[int],
    offsets: Sequence[int],
    gap_width: int,
    unit: np.dtype[Any],
) -> tuple[Changes, list[int]]:
    """The changes of several blocks, one behind the other; and how many each has.

    Args:
        planes: those of the blocks, one behind the other.
        rows: how many each block has.
        units: how many units each block has.
        offsets: what is added to the positions of each block.
        gap_width: bytes of a gap.
        unit: the type of a zigzag.

    Raises:
        BlockError: a block's planes break a rule of the spec.
    """
    data, numbers = np.frombuffer(bytearray().join(planes), np.uint8), np.empty((len(rows), 7), np.int64)
    numbers[:, :5], numbers[:, 5], numbers[:, 6] = np.array(rows, np.int64).reshape(-1, 5), units, offsets
    counts = [row[0] for row in rows]
    positions, zigzags = np.empty(sum(counts), np.int32), np.empty(sum(counts), unit)
    gaps = scratch("gaps", max(counts, default=0), np.uint32)
    block, wrong, last = escapes.join_changes(data, numbers, gap_width, unit.itemsize, gaps, positions, zigzags)
    if wrong == escapes.BEYOND_BLOCK:
        raise BlockError(block, f"it changes unit {last} of {units[block]}")
    if wrong:
        raise BlockError(block, "an ulp distance is too large" if wrong == escapes.DISTANCE_TOO_LARGE else "an escaped value is too large")
    return (positions, zigzags), counts

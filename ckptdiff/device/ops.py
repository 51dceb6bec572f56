"""Changes found and applied on torch devices, by torch's vector operations.

One implementation serves CPU, CUDA, ROCm and MPS, and gives bit for bit what the host's kernels give. Units are viewed as signed integers
of their width, whose arithmetic wraps: torch has few operations for unsigned ones.
"""

from __future__ import annotations

import torch

from ckptdiff.format.dtypes import Dtype

SIGNED_DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Torch's signed integers by their width in bytes."""
CHANGES_PER_STEP = 1 << 22
"""Changes that are applied at once, which bounds the memory of temporaries."""


def units_of(flat: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """Bytes viewed as signed integers of a unit's width."""
    return flat.view(SIGNED_DTYPES[dtype.carrier])


def _order(units: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """Map units to signed integers in the order of their values (spec 7.2), 2^(m-1) below the spec's. It is its own inverse."""
    if not dtype.is_float:
        return units
    top = 8 * dtype.carrier - 1
    return units ^ ((units >> top) & ((1 << top) - 1))


def find_changes(old: torch.Tensor, new: torch.Tensor, dtype: Dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare units.

    Returns:
        Positions of the units that differ (int64, rising), and their ulp distances modulo 2^m as signed integers of a unit's width.
    """
    positions = torch.nonzero(old != new).view(-1)
    return positions, _order(new[positions], dtype) - _order(old[positions], dtype)


def zigzag(distances: torch.Tensor) -> torch.Tensor:
    """Map 0, -1, 1, -2 and so on to 0, 1, 2, 3, as the bits of unsigned integers (spec 7.2)."""
    return (distances << 1) ^ (distances >> (8 * distances.element_size() - 1))


def from_zigzag(values: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`zigzag`."""
    top = 8 * values.element_size() - 1
    return ((values >> 1) & ((1 << top) - 1)) ^ -(values & 1)


def apply_changes(units: torch.Tensor, positions: torch.Tensor | None, zigzags: torch.Tensor, dtype: Dtype, back: bool) -> None:
    """Apply changes to units in place.

    Args:
        units: signed integers of a unit's width.
        positions: which units change; None: all of them.
        zigzags: zigzag of each change's ulp distance, as signed integers of a unit's width.
        dtype: the units' dtype.
        back: take the changes back instead.
    """
    for start in range(0, len(zigzags), CHANGES_PER_STEP):
        step = from_zigzag(zigzags[start : start + CHANGES_PER_STEP])
        where = positions[start : start + CHANGES_PER_STEP] if positions is not None else slice(start, start + CHANGES_PER_STEP)
        ordered = _order(units[where], dtype)
        units[where] = _order(ordered - step if back else ordered + step, dtype)

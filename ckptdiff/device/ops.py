"""Diff and apply on torch devices: find changes, compact them and move units, as vector operations of torch.

One implementation for CPU, CUDA, ROCm and MPS; what it gives is bit for bit what the host's code gives. Units are viewed as
signed integers of their width, whose arithmetic wraps: torch has few operations for unsigned ones.
"""

from __future__ import annotations

import torch

from ckptdiff.format.dtypes import Bytes, Dtype, Units

SIGNED_DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHANGES_PER_STEP = 1 << 22
"""Changes that are moved at once: what bounds the memory of temporaries."""


def units_of(flat: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """Bytes as the signed integers of a unit's width."""
    return flat.view(SIGNED_DTYPES[dtype.carrier])


def _order(units: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """Signed integers in the order of the units' values (spec 7.2), less 2^(m-1); it is its own inverse."""
    if not dtype.is_float:
        return units
    top = 8 * dtype.carrier - 1
    return units ^ ((units >> top) & ((1 << top) - 1))


def find_changes(old: torch.Tensor, new: torch.Tensor, dtype: Dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the units that differ (int64, rising), and their ulp distances modulo 2^m as signed integers."""
    positions = torch.nonzero(old != new).view(-1)
    return positions, _order(new[positions], dtype) - _order(old[positions], dtype)


def zigzag(distances: torch.Tensor) -> torch.Tensor:
    """0, -1, 1, -2 as 0, 1, 2, 3, the bits of unsigned integers."""
    return (distances << 1) ^ (distances >> (8 * distances.element_size() - 1))


def from_zigzag(values: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`zigzag`."""
    top = 8 * values.element_size() - 1
    return ((values >> 1) & ((1 << top) - 1)) ^ -(values & 1)


def apply_changes(units: torch.Tensor, positions: torch.Tensor | None, zigzags: torch.Tensor, dtype: Dtype, back: bool) -> None:
    """Move units in place by the zigzag of ulp distances, or back: those at ``positions``, or all."""
    for start in range(0, len(zigzags), CHANGES_PER_STEP):
        step = from_zigzag(zigzags[start : start + CHANGES_PER_STEP])
        where = positions[start : start + CHANGES_PER_STEP] if positions is not None else slice(start, start + CHANGES_PER_STEP)
        found = _order(units[where], dtype)
        units[where] = _order(found - step if back else found + step, dtype)


def apply_changes_to_block(block: Bytes, positions: Units, zigzags: Units, dtype: Dtype, device: torch.device) -> Bytes:
    """A block of the host with units moved on a device; ``block`` itself on the CPU."""
    flat = torch.from_numpy(block).to(device)
    signed = torch.from_numpy(zigzags.view(f"i{dtype.carrier}")).to(device)
    apply_changes(units_of(flat, dtype), torch.from_numpy(positions).to(device), signed, dtype, False)
    return flat.cpu().numpy()

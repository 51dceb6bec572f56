"""Diff and apply on torch devices: find changes, compact them, move units, and XXH3-128, as vector operations of torch.

One implementation for CPU, CUDA, ROCm and MPS; what it gives is bit for bit what the host's code gives. Units are viewed as
signed integers of their width, whose arithmetic wraps: torch has few operations for unsigned ones.

XXH3: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Within 1,024 bytes its accumulators only add, so that these
sums are taken for all of a tensor at once; the 2,047 steps from one sum to the next run over all leaves side by side.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import torch

from ckptdiff.digests import BLOCK, xxh128
from ckptdiff.dtypes import Bytes, Dtype, Units
from ckptdiff.xxh3 import AVALANCHE, KEY_HIGH, KEY_LAST, KEY_LOW, KEY_STEP, KEY_STRIPE, MASK, P32, P64, START, words

SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SLICE = 1 << 22
"""Changes that are moved at once: what bounds the memory of temporaries."""


def units_of(flat: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """Bytes as the signed integers of a unit's width."""
    return flat.view(SIGNED[dtype.carrier])


def _order(units: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """Signed integers in the order of the units' values (spec 7.2), less 2^(m-1); it is its own inverse."""
    if not dtype.is_float:
        return units
    top = 8 * dtype.carrier - 1
    return units ^ ((units >> top) & ((1 << top) - 1))


def changes(old: torch.Tensor, new: torch.Tensor, dtype: Dtype) -> tuple[torch.Tensor, torch.Tensor]:
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


def move(units: torch.Tensor, positions: torch.Tensor | None, zigzags: torch.Tensor, dtype: Dtype, back: bool) -> None:
    """Move units in place by the zigzag of ulp distances, or back: those at ``positions``, or all."""
    for start in range(0, len(zigzags), SLICE):
        step = from_zigzag(zigzags[start : start + SLICE])
        where = positions[start : start + SLICE] if positions is not None else slice(start, start + SLICE)
        found = _order(units[where], dtype)
        units[where] = _order(found - step if back else found + step, dtype)


def moved(block: Bytes, positions: Units, zigzags: Units, dtype: Dtype, device: torch.device) -> Bytes:
    """A block of the host with units moved on a device; ``block`` itself on the CPU."""
    flat = torch.from_numpy(block).to(device)
    signed = torch.from_numpy(zigzags.view(f"i{dtype.carrier}")).to(device)
    move(units_of(flat, dtype), torch.from_numpy(positions).to(device), signed, dtype, False)
    return flat.cpu().numpy()


# --- XXH3-128 ---

STRIPES, LANES = 16, 8
CHUNK = 32
"""Leaves whose sums are taken at once: 64 MiB of data, and about five times as much for temporaries."""
BATCH = 2048
"""Leaves that go through the steps side by side: 4 GiB of data, whose sums take 256 MiB."""


def _signed(value: int) -> int:
    return (value & MASK) - (1 << 64 if value >> 63 & 1 else 0)


def _words(offset: int) -> list[int]:
    return [_signed(word) for word in words(offset)]


def leaf_digests(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves (spec 3.2) of tensors given as bytes on one device: whole blocks there, the last short ones on the host."""
    whole = [part[k : k + BLOCK] for part in parts for k in range(0, len(part) // BLOCK * BLOCK, BLOCK)]
    found = (leaf for k in range(0, len(whole), BATCH) for leaf in _xxh3(whole[k : k + BATCH]))
    leaves = []
    for part in parts:
        row = [next(found) for _ in range(len(part) // BLOCK)]
        if len(part) % BLOCK:
            row.append(xxh128(part[len(part) // BLOCK * BLOCK :].cpu().numpy()))
        leaves.append(row)
    return leaves


def _xxh3(blocks: Sequence[torch.Tensor]) -> Iterable[bytes]:
    """XXH3-128 of blocks of :data:`~ckptdiff.digests.BLOCK` bytes."""
    sums = torch.cat([_sums(blocks[k : k + CHUNK]) for k in range(0, len(blocks), CHUNK)], dim=1)
    key = torch.tensor(_words(KEY_STEP), device=sums.device)
    acc = torch.tensor([_signed(word) for word in START], device=sums.device).expand(len(blocks), LANES).clone()
    for step in sums[:-1]:
        acc += step
        acc ^= (acc >> 47) & ((1 << 17) - 1)
        acc ^= key
        acc *= P32[0]
    acc += sums[-1]
    return [_finish([word & MASK for word in row]) for row in acc.tolist()]


def _sums(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """What each 1,024 bytes add to the accumulators: [steps, blocks, lanes]."""
    data = torch.stack(list(blocks)).view(torch.int64).view(len(blocks), -1, STRIPES, LANES)
    keys = torch.tensor([_words(KEY_STRIPE * stripe) for stripe in range(STRIPES)], device=data.device)
    sums = _products(data, keys).sum(2)
    last = data[:, -1, -1]  # the very last stripe takes another part of the secret
    sums[:, -1] += _products(last, torch.tensor(_words(KEY_LAST), device=data.device)) - _products(last, keys[-1])
    swapped = data.sum(2).view(len(blocks), -1, LANES // 2, 2).flip(3).view(len(blocks), -1, LANES)
    return (sums + swapped).transpose(0, 1).contiguous()


def _products(data: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    mixed = data ^ keys
    return (mixed & 0xFFFFFFFF) * ((mixed >> 32) & 0xFFFFFFFF)


def _finish(acc: list[int]) -> bytes:
    low = _merge(acc, words(KEY_LOW), BLOCK * P64[0])
    high = _merge(acc, words(KEY_HIGH), ~(BLOCK * P64[1]))
    return struct.pack(">QQ", high, low)


def _merge(acc: list[int], key: Sequence[int], result: int) -> int:
    for k in range(0, LANES, 2):
        product = (acc[k] ^ key[k]) * (acc[k + 1] ^ key[k + 1])
        result += (product & MASK) ^ (product >> 64)
    result &= MASK
    result ^= result >> 37
    result = result * AVALANCHE & MASK
    return result ^ (result >> 32)

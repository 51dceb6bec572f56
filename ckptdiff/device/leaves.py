"""Leaves (spec 3.2) of tensors on a torch device: XXH3-128 by Triton's kernels where they run, else by torch's operations.

XXH3: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Within 1,024 bytes its accumulators only add, so that these
sums are taken for many leaves at once; the 2,047 steps from one sum to the next run over all leaves side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from ckptdiff import device
from ckptdiff.format import xxh3
from ckptdiff.format.digests import BLOCK, xxh128
from ckptdiff.kernels.leaves import leaves_of_sums

Accumulate = Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
STRIPES, LANES = 16, 8
CHUNK = 32
"""Leaves whose sums torch takes at once: 64 MiB of data, and about five times as much for temporaries."""
BATCH = 2048
"""Leaves that go through the steps side by side: 4 GiB of data, whose sums take 256 MiB."""


def leaf_digests(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves of tensors given as bytes on one device: of whole blocks there, of the last short ones on the host."""
    whole = [part[k : k + BLOCK] for part in parts for k in range(0, len(part) // BLOCK * BLOCK, BLOCK)]
    found = (leaf for k in range(0, len(whole), BATCH) for leaf in leaves_of_sums(_accumulate(whole[k : k + BATCH]).cpu().numpy()))
    leaves = []
    for part in parts:
        row = [next(found) for _ in range(len(part) // BLOCK)]
        if len(part) % BLOCK:
            row.append(xxh128(part[len(part) // BLOCK * BLOCK :].cpu().numpy()))
        leaves.append(row)
    return leaves


def _accumulate(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The accumulators after blocks of :data:`~ckptdiff.format.digests.BLOCK` bytes, as signed integers: [blocks, lanes]."""
    device = blocks[0].device
    start, step, keys = _words(device)
    kernels = _kernels(device) if device.type == "cuda" else None
    if kernels is not None:
        few = CHUNK if any(block.data_ptr() % 8 for block in blocks) else len(blocks)  # those of odd addresses are copied
        return torch.cat([kernels(blocks[k : k + few], start, step, keys) for k in range(0, len(blocks), few)])
    sums = torch.cat([_sums(blocks[k : k + CHUNK], keys) for k in range(0, len(blocks), CHUNK)], dim=1)
    acc = start.expand(len(blocks), LANES).clone()
    for row in sums[:-1]:
        acc += row
        acc ^= (acc >> 47) & ((1 << 17) - 1)
        acc ^= step
        acc *= xxh3.PRIMES_32[0]
    acc += sums[-1]
    return acc


def _words(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where accumulators begin, what a step ends with, and what its 16 stripes and the very last one take: torch's signed integers."""
    offsets = [xxh3.SCRAMBLE_OFFSET, *(xxh3.STRIPE_OFFSET * stripe for stripe in range(STRIPES)), xxh3.LAST_STRIPE_OFFSET]
    rows = [xxh3.INITIAL_SUMS, *map(xxh3.secret_words, offsets)]
    found = torch.tensor([[word - (word >> 63 << 64) for word in row] for row in rows], device=device)
    return found[0], found[1], found[2:]


@lru_cache
def _kernels(where: torch.device) -> Accumulate | None:
    """Triton's kernels, if they run there and give the library's digest of a block; Triton comes with torch for CUDA and ROCm on Linux."""
    try:
        accumulate, count = device.xxh3_triton.accumulate, device.xxh3_triton.LEAVES + 1
        data = torch.arange(count * BLOCK // 8, device=where).mul_(xxh3.PRIMES_32[0]).view(torch.uint8)
        blocks = [data[k * BLOCK + k % 2 :][:BLOCK] for k in range(count)]  # for two programs, every other at an odd address
        found = leaves_of_sums(accumulate(blocks, *_words(where)).cpu().numpy())
        if found == [xxh128(block.cpu().numpy()) for block in blocks]:
            return accumulate
        reason = "they give another digest than the library"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # it compiles: a compiler may be missing, or a driver that it knows
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    warnings.warn(f"Triton's kernels do not run on {where} ({reason}): torch's operations hash there instead, slower", stacklevel=2)
    return None


def _sums(blocks: Sequence[torch.Tensor], keys: torch.Tensor) -> torch.Tensor:
    """What each 1,024 bytes add to the accumulators: [steps, blocks, lanes]."""
    data = torch.stack(list(blocks)).view(torch.int64).view(len(blocks), -1, STRIPES, LANES)
    sums = _products(data, keys[:STRIPES]).sum(2)
    last = data[:, -1, -1]  # the very last stripe takes another part of the secret
    sums[:, -1] += _products(last, keys[STRIPES]) - _products(last, keys[STRIPES - 1])
    swapped = data.sum(2).view(len(blocks), -1, LANES // 2, 2).flip(3).view(len(blocks), -1, LANES)
    return (sums + swapped).transpose(0, 1).contiguous()


def _products(data: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    mixed = data ^ keys
    return (mixed & 0xFFFFFFFF) * ((mixed >> 32) & 0xFFFFFFFF)

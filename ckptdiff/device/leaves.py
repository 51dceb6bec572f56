"""Leaves (spec 3.2) of tensors on a torch device: XXH3-128 by Triton's kernels where they run, else by torch's operations.

XXH3 is specified in https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Within a step of 1,024 bytes its accumulators only
add, so that the sums of all steps are computed at once. The 2,047 steps that scramble the accumulators between these sums depend on each
other, and run over many leaves side by side.
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
"""Stripes of a step, and 64-bit lanes of a stripe, as XXH3 defines them."""
LEAVES_PER_SUM = 32
"""Leaves whose sums torch computes at once: 64 MiB of data, and about five times as much for temporaries."""
LEAVES_PER_BATCH = 2048
"""Leaves that are scrambled side by side: 4 GiB of data, whose sums take 256 MiB."""


def leaf_digests(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves of tensors on one device, each given as its bytes. Whole blocks are hashed there, the short last ones on the host."""
    whole = [part[k : k + BLOCK] for part in parts for k in range(0, len(part) // BLOCK * BLOCK, BLOCK)]
    hashed = (
        leaf
        for k in range(0, len(whole), LEAVES_PER_BATCH)
        for leaf in leaves_of_sums(_accumulate(whole[k : k + LEAVES_PER_BATCH]).cpu().numpy())
    )
    leaves = []
    for part in parts:
        row = [next(hashed) for _ in range(len(part) // BLOCK)]
        if len(part) % BLOCK:
            row.append(xxh128(part[len(part) // BLOCK * BLOCK :].cpu().numpy()))
        leaves.append(row)
    return leaves


def _accumulate(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The accumulators after blocks of :data:`~ckptdiff.format.digests.BLOCK` bytes, as int64 of [blocks, lanes]."""
    device = blocks[0].device
    start, step, keys = _words(device)
    kernels = _kernels(device) if device.type == "cuda" else None
    if kernels is not None:
        size = LEAVES_PER_SUM if any(block.data_ptr() % 8 for block in blocks) else len(blocks)  # the kernels copy unaligned blocks
        return torch.cat([kernels(blocks[k : k + size], start, step, keys) for k in range(0, len(blocks), size)])
    sums = torch.cat([_sums(blocks[k : k + LEAVES_PER_SUM], keys) for k in range(0, len(blocks), LEAVES_PER_SUM)], dim=1)
    acc = start.expand(len(blocks), LANES).clone()
    for row in sums[:-1]:
        acc += row
        acc ^= (acc >> 47) & ((1 << 17) - 1)
        acc ^= step
        acc *= xxh3.PRIMES_32[0]
    acc += sums[-1]
    return acc


def _words(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Constants of XXH3: the first accumulators [8], the key that ends a step [8], the keys of the 16 stripes and of the last one [17, 8].

    They are unsigned 64-bit words, given as the signed integers of the same bits.
    """
    offsets = [xxh3.SCRAMBLE_OFFSET, *(xxh3.STRIPE_OFFSET * stripe for stripe in range(STRIPES)), xxh3.LAST_STRIPE_OFFSET]
    rows = [xxh3.INITIAL_SUMS, *map(xxh3.secret_words, offsets)]
    signed = torch.tensor([[word - (word >> 63 << 64) for word in row] for row in rows], device=device)
    return signed[0], signed[1], signed[2:]


@lru_cache
def _kernels(where: torch.device) -> Accumulate | None:
    """Triton's kernels, if they run on a device and give the same digests as the xxhash library there; None, with a warning, if not.

    Triton comes with torch for CUDA and ROCm on Linux.
    """
    try:
        accumulate, count = device.xxh3_triton.accumulate, device.xxh3_triton.LEAVES_PER_PROGRAM + 1
        data = torch.arange(count * BLOCK // 8, device=where).mul_(xxh3.PRIMES_32[0]).view(torch.uint8)
        blocks = [data[k * BLOCK + k % 2 :][:BLOCK] for k in range(count)]  # for two programs, every second block at an odd address
        digests = leaves_of_sums(accumulate(blocks, *_words(where)).cpu().numpy())
        if digests == [xxh128(block.cpu().numpy()) for block in blocks]:
            return accumulate
        reason = "they give another digest than the library"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Triton compiles: a compiler may be missing, or a driver that it supports
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    warnings.warn(f"Triton's kernels do not run on {where} ({reason}): torch's operations hash there instead, slower", stacklevel=2)
    return None


def _sums(blocks: Sequence[torch.Tensor], keys: torch.Tensor) -> torch.Tensor:
    """The sums that the steps of blocks add to the accumulators: [steps, blocks, lanes]."""
    data = torch.stack(list(blocks)).view(torch.int64).view(len(blocks), -1, STRIPES, LANES)
    sums = _products(data, keys[:STRIPES]).sum(2)
    last = data[:, -1, -1]  # the last stripe of a block takes another part of the secret
    sums[:, -1] += _products(last, keys[STRIPES]) - _products(last, keys[STRIPES - 1])
    swapped = data.sum(2).view(len(blocks), -1, LANES // 2, 2).flip(3).view(len(blocks), -1, LANES)
    return (sums + swapped).transpose(0, 1).contiguous()


def _products(data: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The product of the low and the high 32 bits of each lane of data, mixed with the keys."""
    mixed = data ^ keys
    return (mixed & 0xFFFFFFFF) * ((mixed >> 32) & 0xFFFFFFFF)

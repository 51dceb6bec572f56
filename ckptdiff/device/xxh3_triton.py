"""XXH3-128 as Triton kernels for CUDA and ROCm, as fast as a GPU reads.

Torch's operations would start five kernels for each of the 2,047 steps of a leaf, one after the other. Here one kernel computes the sums
of all steps at once, and another goes through the steps of all leaves side by side. The constants are in :mod:`ckptdiff.format.xxh3`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, no-check-untyped-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from ckptdiff.format import xxh3
from ckptdiff.format.digests import BLOCK

STEPS_PER_LEAF = BLOCK // xxh3.STEP_BYTES
"""Steps of 1,024 bytes in a leaf."""
STEPS_PER_PROGRAM = 8
"""Steps whose sums one program of :func:`add_stripes` computes."""
LEAVES_PER_PROGRAM = 4
"""Leaves of one program of :func:`scramble`: their accumulators are the 32 threads of a warp."""
PRIME: tl.constexpr = tl.constexpr(xxh3.PRIMES_32[0])


@triton.jit
def add_stripes(addresses, keys, sums, steps: tl.constexpr, together: tl.constexpr):
    """Compute what each step adds to the eight accumulators, as ``sums`` of [leaf, step, lane]."""
    leaf = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1) * together + tl.arange(0, together)[:, None, None]
    stripe, lane = tl.arange(0, 16)[None, :, None], tl.arange(0, 8)[None, None, :]
    data = tl.load(addresses + leaf).to(tl.pointer_type(tl.int64))
    place = step * 128 + stripe * 8 + lane
    words, swapped = tl.load(data + place), tl.load(data + (place ^ 1))
    row = tl.where((step == steps - 1) & (stripe == 15), 16, stripe)  # the last stripe of a leaf takes another part of the secret
    mixed = words ^ tl.load(keys + row * 8 + lane)
    total = tl.sum((mixed & 0xFFFFFFFF) * ((mixed >> 32) & 0xFFFFFFFF) + swapped, axis=1)
    where = tl.program_id(1) * together + tl.arange(0, together)[:, None]
    tl.store(sums + (leaf * steps + where) * 8 + tl.arange(0, 8)[None, :], total)


@triton.jit(do_not_specialize=["count"])
def scramble(sums, start, secret, accumulators, count, steps: tl.constexpr, leaves: tl.constexpr):
    """Compute the accumulators after all steps, as ``accumulators`` of [leaf, lane]."""
    leaf = tl.program_id(0).to(tl.int64) * leaves + tl.arange(0, leaves)[:, None]
    lane = tl.arange(0, 8)[None, :]
    valid = (leaf < count) & (lane >= 0)
    at = sums + leaf * (steps * 8) + lane
    key = tl.load(secret + lane)
    acc = tl.load(start + lane + leaf * 0)
    for step in range(steps - 1):
        acc += tl.load(at + step * 8, mask=valid, other=0)
        acc ^= (acc >> 47) & 0x1FFFF
        acc ^= key
        acc *= PRIME
    acc += tl.load(at + (steps - 1) * 8, mask=valid, other=0)
    tl.store(accumulators + leaf * 8 + lane, acc, mask=valid)


def accumulate(blocks: Sequence[torch.Tensor], start: torch.Tensor, step: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The accumulators after blocks of :data:`~ckptdiff.format.digests.BLOCK` bytes on one device.

    Args:
        blocks: the blocks, as uint8.
        start, step: the first accumulators, and the key that ends a step: int64 of [8].
        keys: the keys of the 16 stripes of a step, and of the last stripe of a block: int64 of [17, 8].

    Returns:
        int64 of [blocks, 8].
    """
    device, count = blocks[0].device, len(blocks)
    aligned = [block if block.data_ptr() % 8 == 0 else block.clone() for block in blocks]
    addresses = torch.tensor([block.data_ptr() for block in aligned], device=device)
    sums = torch.empty(count, STEPS_PER_LEAF, 8, dtype=torch.int64, device=device)
    totals = torch.empty(count, 8, dtype=torch.int64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # Triton's interpreter works on host memory
        add_stripes[(count, STEPS_PER_LEAF // STEPS_PER_PROGRAM)](addresses, keys, sums, STEPS_PER_LEAF, STEPS_PER_PROGRAM)
        scramble[(-(-count // LEAVES_PER_PROGRAM),)](sums, start, step, totals, count, STEPS_PER_LEAF, LEAVES_PER_PROGRAM, num_warps=1)
    return totals

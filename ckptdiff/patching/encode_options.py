"""How a pair is encoded: by which codec, what compares blocks, and what runs the jobs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptdiff import patching
from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.device.resolve import resolve_device
from ckptdiff.format.digests import BLOCK
from ckptdiff.io.parallel import JOB_BYTES, Executor, ThreadWorkers, Workers
from ckptdiff.io.store_path import StorePath
from ckptdiff.patching.compare_on_host import Comparer, compare_on_host
from ckptdiff.patching.encode_group import Noted

BLOCKS_IN_MEMORY = 8
"""Blocks that the host encodes at once by ``sparse`` of tensors in memory. With fewer, threads hand Python's lock over more often."""

STORE_BYTES = 1 << 24
"""Bytes of target tensors that are planned together where they come from a store: the blocks of them that are tried, before all others,
stay in memory until their turn."""
ALL_BYTES = 1 << 62
"""More than any target has."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How to encode a pair. The result depends on the codec only."""

    codec: str | None
    """The codec of all tensors that have a base; None: the smallest, tensor by tensor."""
    compare: Comparer
    """Compares blocks."""
    blocks: int
    """How many blocks a job has at most."""
    execute: Executor
    """Runs the jobs."""
    trust_hub_cache: bool = False
    """Whether the names of files in the Hub's cache are taken for their SHA-256."""
    bytes_at_once: int = ALL_BYTES
    """Bytes of target tensors, or more, that are planned together."""
    noted: Noted | None = None
    """Told what changes, on the thread that compares."""


def on_threads(
    base: Checkpoint, target: Checkpoint, codec: str | None, threads: int, device: str | None, trust_hub_cache: bool = False
) -> EncodeOptions:
    """Options to run the jobs on so many threads; the arguments are those of :func:`options_for`."""
    return options_for(base, target, codec, ThreadWorkers(threads), device, trust_hub_cache)


def options_for(
    base: Checkpoint, target: Checkpoint, codec: str | None, workers: Workers, device: str | None, trust_hub_cache: bool = False
) -> EncodeOptions:
    """Options to have some workers do the jobs.

    Args:
        base, target, codec, trust_hub_cache: as of :func:`ckptdiff.make`.
        workers: who does the jobs; with a device only threads can.
        device: name of the torch device to compare on; None: the device that all tensors are on, or the host.

    Raises:
        UnsupportedError: torch is missing, or has no such device.
    """
    compare, blocks = _comparer(base, target, codec, device)
    nbytes = sum(file.header.data_size for file in target.weights)
    execute = workers.executor(nbytes, max(JOB_BYTES, (blocks - 1) * BLOCK))
    in_store = any(isinstance(file.file.path, StorePath) for side in (base, target) for file in side.weights)
    return EncodeOptions(codec, compare, blocks, execute, trust_hub_cache, STORE_BYTES if in_store else ALL_BYTES)


def _comparer(base: Checkpoint, target: Checkpoint, codec: str | None, device: str | None) -> tuple[Comparer, int]:
    """What compares blocks, and how many it should be given at once."""
    tensors = [tensor for side in (base, target) if side.in_memory for file in side.weights for tensor in file.tensors]
    devices = {str(memory.device) for t in tensors if not isinstance(memory := t.memory, np.ndarray) and memory is not None}
    if device is None and len(devices) != 1:
        return compare_on_host, BLOCKS_IN_MEMORY if tensors and codec == "sparse" else 1
    resolved = resolve_device(device or devices.pop())  # before the comparer's module, which needs torch
    comparer = patching.compare_on_device.DeviceComparer(resolved, tensors)
    return comparer, comparer.blocks

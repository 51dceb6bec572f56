"""The choice of what compares blocks: the host, or a torch device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptdiff import patching
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.device.resolve import resolve_device
from ckptdiff.patching.encode import TensorEncoder, encode_blocks
from ckptdiff.patching.memory import MemoryFile

GROUPS_IN_MEMORY = 8
"""Groups that the host encodes at once by ``sparse`` of tensors in memory. With fewer, threads hand Python's lock over more often."""


def choose_encoder(device: str | None, tensors: Sequence[Tensor] = (), codec: str | None = None) -> tuple[TensorEncoder, int]:
    """Choose an encoder, and how many groups it should be given at once.

    Args:
        device: name of the torch device to compare on; None: the device that all ``tensors`` are on, or the host.
        tensors: all tensors of base and target if they are in memory.
        codec: as of :func:`ckptdiff.make`.

    Raises:
        UnsupportedError: torch is missing, or has no such device.
    """
    parts = (tensor.source.view(tensor.offset, tensor.nbytes) for tensor in tensors if isinstance(tensor.source, MemoryFile))
    devices = {str(part.device) for part in parts if not isinstance(part, np.ndarray)}
    if device is None and len(devices) != 1:
        return encode_blocks, GROUPS_IN_MEMORY if tensors and codec == "sparse" else 1
    resolved = resolve_device(device or devices.pop())  # before the encoder's module, which needs torch
    encoder = patching.encode_on_device.DeviceEncoder(resolved, tensors)
    return encoder, encoder.groups

"""What compares blocks: the host, or a torch device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptdiff import patching
from ckptdiff.checkpoint.reader import Tensor
from ckptdiff.device.resolve import resolve_device
from ckptdiff.patching.encode import TensorEncoder, encode_blocks
from ckptdiff.patching.memory import MemoryFile

GROUPS_IN_MEMORY = 8
"""Groups that the host takes at once of tensors in memory for ``sparse``: fewer hand Python's lock over more often."""


def choose_encoder(device: str | None, tensors: Sequence[Tensor] = (), codec: str | None = None) -> tuple[TensorEncoder, int]:
    """The coder of a device, by default of the one that tensors in memory are on; and how many groups it takes at once.

    Raises:
        UnsupportedError: torch is missing, or has no such device.
    """
    parts = (tensor.source.view(tensor.offset, tensor.nbytes) for tensor in tensors if isinstance(tensor.source, MemoryFile))
    there = {str(part.device) for part in parts if not isinstance(part, np.ndarray)}
    if device is None and len(there) != 1:
        return encode_blocks, GROUPS_IN_MEMORY if tensors and codec == "sparse" else 1
    found = resolve_device(device or there.pop())

    coder = patching.encode_on_device.DeviceEncoder(found, tensors)
    return coder, coder.groups

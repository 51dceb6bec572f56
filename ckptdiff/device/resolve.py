"""A torch device by its name. Torch is imported when one is asked for: that takes seconds, and it may be missing."""

from __future__ import annotations

from ckptdiff.errors import UnsupportedError
from ckptdiff.lazy import require, torch
from ckptdiff.obtaining import how_to_get


def resolve_device(name: str) -> torch.device:
    """The torch device of a name such as ``cuda:1``; ``auto`` is the first accelerator, or the CPU if there is none.

    Raises:
        UnsupportedError: torch is missing, or cannot use such a device on this machine.
    """
    try:
        require("torch")
    except ModuleNotFoundError:
        raise UnsupportedError(f"the device {name} needs torch; {how_to_get('torch')}") from None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(1, device=name).device  # with its index: tensors on ``cuda`` are on ``cuda:0``
        if device.type == "meta":
            raise RuntimeError("meta tensors have no content")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(f"torch cannot use the device {name} here: {reason}; leave --device out for the host") from None
    return device

"""One parameter of a model, or this rank's part of it, with the mask within which it trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch

from ckptdiff import kernels
from ckptdiff.device.ops import SIGNED_DTYPES
from ckptdiff.errors import CheckpointError, UnsupportedError
from ckptdiff.io.parallel import run_ordered
from ckptdiff.lazy import require
from ckptdiff.patching.torch_dtypes import flat_bytes
from ckptdiff.subnetwork.mask import Mask

Job: TypeAlias = partial[None]
"""A kernel and its arguments, the first of which is the array that it writes to."""
MIN_THREADED_ELEMENTS = 1 << 20
"""Elements from which starting a pool of threads pays."""


@lru_cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """For each value of a byte a row of eight integers whose bits are all ones where the byte's bit is 1. Selecting rows of it is fast."""
    rows = [[-(byte >> place & 1) for place in range(8)] for byte in range(256)]
    return torch.tensor(rows, dtype=dtype, device=device)


@dataclass(slots=True)
class MaskedParameter:
    """One parameter, or with FSDP2 this rank's part of it."""

    name: str
    parameter: torch.Tensor
    shape: torch.Size
    """Shape of this rank's part."""
    bits: torch.Tensor
    """This rank's part of the mask, packed, on the parameter's device."""
    saved: torch.Tensor | None = None
    """This rank's weights, where frozen ones are put back after a step."""
    steps_to_lift: int = 0
    """Number of steps until state outside the mask must be lifted again; 0: it is not lifted."""

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of the parameter, or of its gradient or state.

        Raises:
            CheckpointError: its shape has changed since freeze_outside was called, so that the mask does not fit it any more.
        """
        local = local_part(tensor)
        if local.shape != self.shape:
            raise CheckpointError(
                f"parameter {self.name}: has the shape {list(local.shape)}, but had {list(self.shape)} when freeze_outside was called: "
                "call remove(), and freeze_outside again with a mask of the new shape; this step was not taken"
            )
        return local

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """For each element of this rank's part what its bit selects from :func:`_table`, in the shape of the part.

        Args:
            rows: the table, or a table of other values in its place.
        """
        return rows.index_select(0, self.bits.int()).view(-1)[: self.shape.numel()].view(self.shape)

    def flags(self) -> torch.Tensor:
        """Which elements of this rank's part are in the mask."""
        return self.spread(_table(torch.int8, self.bits.device)).bool()

    def mask(self, tensor: torch.Tensor) -> list[Job]:
        """Zero the elements outside the mask. Returns the jobs that remain.

        That is done by bits, as a product would turn a GradScaler's infinities into NaNs.
        """
        here = self.local(tensor)
        units = here.view(SIGNED_DTYPES[here.element_size()])
        if _on_host(units):
            return [
                partial(kernels.mask_ops.zero_unmasked, *row) for row in kernels.mask_ops.split_jobs(_numbers(units), _numbers(self.bits))
            ]
        units &= self.spread(_table(units.dtype, units.device))
        return []

    def lift(self, tensor: torch.Tensor) -> list[Job]:
        """Set the elements outside the mask to one. Returns the jobs that remain."""
        numbers = _numbers(self.local(tensor))
        units = numbers.view(f"i{numbers.itemsize}")
        return [
            partial(kernels.mask_ops.fill_unmasked, *row, np.ones(1, numbers.dtype).view(units.dtype)[0])
            for row in kernels.mask_ops.split_jobs(units, _numbers(self.bits))
        ]

    def can_lift(self, tensor: torch.Tensor) -> bool:
        """Whether a state of the optimizer has the parameter's shape and is one that kernels can write to."""
        local = local_part(tensor)
        return local.shape == self.shape and local.dtype in (torch.float32, torch.float64) and _on_host(local)

    def decay(self, factor: Any) -> list[Job]:
        """Multiply the weights in the mask by a factor. Returns the jobs that remain."""
        weights = self.local(self.parameter)
        kind = torch.float64 if weights.dtype == torch.float64 else torch.float32  # torch computes a product with a number in these
        number = torch.as_tensor(factor, dtype=kind, device=weights.device)
        if _on_host(weights) and weights.dtype == kind:
            return [
                partial(kernels.mask_ops.scale_masked, *row, number.numpy()[()])
                for row in kernels.mask_ops.split_jobs(_numbers(weights), _numbers(self.bits))
            ]
        inside = _table(torch.int8, weights.device).bool()
        weights.mul_(self.spread(torch.where(inside, number, torch.ones_like(number))))
        return []


def _numbers(tensor: torch.Tensor) -> Any:
    """A tensor on the host as a flat NumPy array over its memory, which torch may still resize."""
    return np.asarray(flat_bytes(tensor, "a parameter, gradient or optimizer state")).view(str(tensor.dtype).removeprefix("torch."))


def _on_host(tensor: torch.Tensor) -> bool:
    """Whether kernels can write to a tensor."""
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def run_jobs(jobs: list[Job]) -> None:
    """Run kernels, which release Python's lock, on as many threads as torch uses."""
    threads = torch.get_num_threads() if sum(len(job.args[0]) for job in jobs) > MIN_THREADED_ELEMENTS else 1
    for _ in run_ordered(jobs, threads):
        pass


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_bits(mask: Mask, key: str, parameter: torch.Tensor, name: str) -> torch.Tensor:
    """The mask of this rank's part of a parameter, packed, on the parameter's device."""
    if tuple(parameter.shape) != mask.shapes[key]:
        raise CheckpointError(f"parameter {name}: has the shape {list(parameter.shape)}, in the mask it is {list(mask.shapes[key])}")
    local = local_part(parameter)
    if local is parameter:
        return torch.from_numpy(mask.bits[key].copy()).to(parameter.device)
    layout = require("torch.distributed.tensor._utils")  # this function has no public name
    shape, offset = layout.compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    if tuple(shape) != tuple(local.shape):
        raise UnsupportedError(
            f"parameter {name}: its part on this rank is {list(local.shape)}, expected {list(shape)}: not an even sharding"
        )
    flags = torch.from_numpy(mask.flags(key).copy())[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))].reshape(-1)
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -len(flags) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8).to(local.device)

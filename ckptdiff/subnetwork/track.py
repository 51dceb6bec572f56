"""Records how training changes the weights while it runs, as in Mukherjee et al. (arXiv 2505.11711), figures 1, 2, 5 and 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.optim

from ckptdiff.device.ops import SIGNED_DTYPES
from ckptdiff.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """Shares of all elements that are watched."""

    step: int
    """Number of optimizer steps that were taken."""
    sparsity: float
    """Elements that are as they were at the start, bit for bit (section 2; figures 1 and 5)."""
    since_last: float
    """Elements that changed since the last record (figure 7b)."""
    ever: float
    """Elements that were changed at this record or an earlier one."""
    cancelled: float
    """Elements that were changed at an earlier record, and are now as at the start (figure 2: "updated but cancelling")."""
    gradient_density: float
    """Elements whose gradient in this step is not zero."""


@dataclass(slots=True)
class _Watched:
    """A parameter that is watched, and what its watched elements held, as bits."""

    name: str
    parameter: torch.Tensor
    start: torch.Tensor
    """Bits at the start."""
    last: torch.Tensor
    """Bits at the last record."""
    ever: torch.Tensor
    """Whether they were changed at any record."""


class UpdateTracker:
    """Records at every n-th optimizer step how the weights have moved, bit for bit.

    It holds the watched weights twice, and one more byte for each. ``sample=16`` watches each 16th row of a matrix (and all of a vector),
    which is enough for shares, and takes a 16th of the memory and time. With FSDP2 the shares are those of all ranks together.

    Args:
        model: the module whose parameters are watched.
        optimizer: the optimizer whose steps are counted; the tracker hooks itself to it.
        every: number of steps between records.
        sample: watch one row of a matrix in so many.
        dtype: watch the weights as a checkpoint of this type would hold them. For fp32 masters, whose bit patterns all change at once,
            ``torch.bfloat16`` gives the paper's curves. None: watch the weights as they are.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        sample: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        if every < 1 or sample < 1:
            raise CheckpointError(f"every and sample must be at least 1, found {every} and {sample}")
        self.every, self.sample, self.dtype, self.steps = every, sample, dtype, 0
        self.records: list[UpdateRecord] = []
        self._rows = [self._watch(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._sharded = any(hasattr(row.parameter, "to_local") for row in self._rows)
        self._with_gradient = 0.0
        self._handles = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, parameter: torch.Tensor) -> _Watched:
        bits = self._bits(parameter).clone()
        return _Watched(name, parameter, bits, bits.clone(), torch.zeros_like(bits, dtype=torch.bool))

    def _part(self, tensor: torch.Tensor) -> torch.Tensor:
        """The watched elements of this rank's part of a parameter or gradient."""
        local = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        return local[:: self.sample] if local.ndim > 1 else local

    def _bits(self, parameter: torch.Tensor) -> torch.Tensor:
        """The bits of a parameter's watched elements, in the type that is watched."""
        part = self._part(parameter)
        part = part if self.dtype is None else part.to(self.dtype)
        return part.view(SIGNED_DTYPES[part.element_size()])

    @property
    def _due(self) -> bool:
        return (self.steps + 1) % self.every == 0

    def _before(self, *_: Any) -> None:
        if self._due:
            grads = [self._part(row.parameter.grad) for row in self._rows if row.parameter.grad is not None]
            self._with_gradient = sum(float(torch.count_nonzero(grad)) for grad in grads)

    def _after(self, *_: Any) -> None:
        if self._due:
            self.records.append(self._record())
        self.steps += 1

    def _record(self) -> UpdateRecord:
        sums = [0.0, 0.0, 0.0, 0.0, 0.0, self._with_gradient]
        for row in self._rows:
            bits = self._bits(row.parameter)
            if bits.shape != row.start.shape:  # torch would broadcast one to the other where it can
                raise CheckpointError(
                    f"parameter {row.name}: {list(bits.shape)} of its elements are watched, at the start {list(row.start.shape)}: "
                    "call remove(), and make a new tracker"
                )
            changed = bits != row.start
            row.ever |= changed
            flags = (changed, bits != row.last, row.ever, row.ever & ~changed)
            for k, count in enumerate([float(bits.numel()), *(float(flag.sum()) for flag in flags)]):
                sums[k] += count
            row.last.copy_(bits)
        if self._sharded:
            reduced = torch.tensor(sums, dtype=torch.float64, device=self._rows[0].start.device)
            torch.distributed.all_reduce(reduced)
            sums = reduced.tolist()
        total, changed_, since, ever, cancelled, gradients = sums
        n = total or 1.0
        return UpdateRecord(self.steps + 1, 1 - changed_ / n, since / n, ever / n, cancelled / n, gradients / n)

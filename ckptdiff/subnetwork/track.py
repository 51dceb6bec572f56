"""What training does to the weights while it runs: the curves of Mukherjee et al. (arXiv 2505.11711), figures 1, 2, 5 and 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.optim

from ckptdiff.device.ops import SIGNED_DTYPES
from ckptdiff.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """Shares of all elements after ``step`` optimizer steps.

    Attributes:
        sparsity: as they were at the start, bit for bit (section 2; figures 1 and 5).
        since_last: changed since the last record (figure 7b).
        ever: changed at any record so far.
        cancelled: changed at a record before, and now as at the start (figure 2: "updated but cancelling").
        gradient_density: with a gradient that is not zero in this step.
    """

    step: int
    sparsity: float
    since_last: float
    ever: float
    cancelled: float
    gradient_density: float


@dataclass(slots=True)
class _Watched:
    name: str
    parameter: torch.Tensor
    start: torch.Tensor
    last: torch.Tensor
    ever: torch.Tensor


class UpdateTracker:
    """Records at every n-th optimizer step how the weights have moved, bit for bit.

    Holds the watched weights twice, and a byte each. ``sample=16`` watches each 16th row of a matrix (and vectors wholly), which is enough
    for shares, and takes a 16th of memory and time. With FSDP2 the shares are those of all ranks together.

    Args:
        model: whose parameters to watch.
        optimizer: which steps; the tracker hooks itself to it.
        every: steps between records.
        sample: watch every so many rows.
        dtype: watch the weights as a checkpoint of this type would have them: of fp32 masters, of which every bit pattern changes at
            once, ``torch.bfloat16`` gives the paper's curves. None: as they are.
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
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, parameter: torch.Tensor) -> _Watched:
        bits = self._bits(parameter).clone()
        return _Watched(name, parameter, bits, bits.clone(), torch.zeros_like(bits, dtype=torch.bool))

    def _part(self, tensor: torch.Tensor) -> torch.Tensor:
        local = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        return local[:: self.sample] if local.ndim > 1 else local

    def _bits(self, parameter: torch.Tensor) -> torch.Tensor:
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
            if bits.shape != row.start.shape:  # torch would stretch one to the other where it can
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
            both = torch.tensor(sums, dtype=torch.float64, device=self._rows[0].start.device)
            torch.distributed.all_reduce(both)
            sums = both.tolist()
        total, changed_, since, ever, cancelled, gradients = sums
        n = total or 1.0
        return UpdateRecord(self.steps + 1, 1 - changed_ / n, since / n, ever / n, cancelled / n, gradients / n)

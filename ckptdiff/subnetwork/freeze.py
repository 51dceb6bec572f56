"""Training within a mask: every element outside it keeps its bits, whatever the optimizer does.

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 4: gradients are masked, m * grad L(theta), right before each
parameter update. That alone does not freeze anything under AdamW: weight decay and old momentum move weights of gradient zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
import torch.optim

from ckptdiff import kernels
from ckptdiff.checkpoint.pairing import strip_prefixes
from ckptdiff.device.ops import SIGNED
from ckptdiff.errors import CheckpointError, UnsupportedError
from ckptdiff.io.parallel import run_ordered
from ckptdiff.lazy import require
from ckptdiff.patching.torch_dtypes import flat_bytes
from ckptdiff.subnetwork.mask import Mask

Job = partial[None]
Decay = Literal["decoupled", "gradient"]
LIFTED = 64
"""Steps in which ones, multiplied by a decay of a half or more, do not become subnormal."""
WORTH = 1 << 20
"""From so many elements on a pool of threads is worth its start."""
KNOWN: dict[type[torch.optim.Optimizer], Decay] = {
    torch.optim.AdamW: "decoupled",
    torch.optim.Adam: "gradient",
    torch.optim.NAdam: "gradient",
    torch.optim.RAdam: "gradient",
    torch.optim.Adagrad: "gradient",
    torch.optim.RMSprop: "gradient",
    torch.optim.SGD: "gradient",
}
"""Optimizers that leave a weight alone whose gradient and state are zero, but for weight decay: how they do that. Others are put back."""
ROOTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""State of these whose square root is what a step divides by."""


@lru_cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """For each byte of packed bits eight integers, all ones where the bit is: to select rows of, which is fast."""
    rows = [[-(byte >> place & 1) for place in range(8)] for byte in range(256)]
    return torch.tensor(rows, dtype=dtype, device=device)


@dataclass(slots=True)
class _Part:
    """One parameter: this rank's part of its mask, packed on its device, and its frozen content where that is put back after a step.

    ``shape``: of this rank's part, in elements; ``lifted``: for how many steps more :meth:`lift` lasts.
    """

    name: str
    parameter: torch.Tensor
    shape: torch.Size
    bits: torch.Tensor
    saved: torch.Tensor | None = None
    lifted: int = 0

    def here(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of the parameter, or of its gradient or state, which the mask fits.

        Raises:
            CheckpointError: it has another shape than when the mask was laid on it, so that the bits are those of other elements.
        """
        local = _local(tensor)
        if local.shape != self.shape:
            raise CheckpointError(
                f"parameter {self.name}: has the shape {list(local.shape)}, but had {list(self.shape)} when freeze_outside was called: "
                "call remove(), and freeze_outside again with a mask of the new shape; this step was not taken"
            )
        return local

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """What a table has for each of this rank's elements, in their shape."""
        return rows.index_select(0, self.bits.int()).view(-1)[: self.shape.numel()].view(self.shape)

    def flags(self) -> torch.Tensor:
        """This rank's elements in the mask."""
        return self.spread(_table(torch.int8, self.bits.device)).bool()

    def mask(self, tensor: torch.Tensor) -> list[Job]:
        """Zero what is outside, by bits: a product would make NaN of a GradScaler's infinities. Gives what is left to do."""
        here = self.here(tensor)
        units = here.view(SIGNED[here.element_size()])
        if _on_host(units):
            jobs = kernels.mask_ops.split_jobs(_numbers(units), _numbers(self.bits))
            return [partial(kernels.mask_ops.zero_unmasked, *job) for job in jobs]
        units &= self.spread(_table(units.dtype, units.device))
        return []

    def lift(self, tensor: torch.Tensor) -> list[Job]:
        """Put ones outside. Gives what is left to do."""

        numbers = _numbers(self.here(tensor))
        units = numbers.view(f"i{numbers.itemsize}")
        return [
            partial(kernels.mask_ops.fill_unmasked, *row, np.ones(1, numbers.dtype).view(units.dtype)[0])
            for row in kernels.mask_ops.split_jobs(units, _numbers(self.bits))
        ]

    def decay(self, factor: Any) -> list[Job]:
        """Multiply what is inside. Gives what is left to do."""
        weights = self.here(self.parameter)
        kind = torch.float64 if weights.dtype == torch.float64 else torch.float32  # a product with a number is taken in these
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
    """A tensor on the host as a flat numpy array over its memory, which stays torch's to resize."""
    return np.asarray(flat_bytes(tensor, "a parameter, gradient or optimizer state")).view(str(tensor.dtype).removeprefix("torch."))


def _on_host(tensor: torch.Tensor) -> bool:
    """Whether kernels can write to it."""
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def _run(jobs: list[Job]) -> None:
    """Run kernels, which release Python's lock, on torch's number of threads."""
    threads = torch.get_num_threads() if sum(len(job.args[0]) for job in jobs) > WORTH else 1
    for _ in run_ordered(jobs, threads):
        pass


class Frozen:
    """What :func:`freeze_outside` installed. ``trainable`` and ``total`` are numbers of elements of all parameters (of this rank)."""

    def __init__(self, optimizer: torch.optim.Optimizer, parts: list[_Part], decay: Decay | None, before_clipping: bool) -> None:
        self._optimizer, self._parts, self._decay, self._clean = optimizer, parts, decay, False
        self._decays: list[tuple[dict[str, Any], Any]] = []
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_load_state_dict_post_hook(self._loaded),
            optimizer.register_state_dict_pre_hook(self._lower),
        ]
        if before_clipping:
            self._handles += [part.parameter.register_post_accumulate_grad_hook(self._hook(part)) for part in parts]  # type: ignore[no-untyped-call]

    @property
    def trainable(self) -> int:
        """Elements in the mask."""
        return sum(int(part.flags().sum()) for part in self._parts)

    @property
    def total(self) -> int:
        """Elements of all parameters."""
        return sum(part.shape.numel() for part in self._parts)

    def remove(self) -> None:
        """Take the hooks off: from then on everything trains again."""
        self._lower()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, part: _Part) -> Any:
        def mask(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                with torch.no_grad():
                    _run(part.mask(parameter.grad))

        return mask

    def _before(self, *_: Any) -> None:
        for row in self._parts:  # all of them before anything is written
            row.here(row.parameter)
            if row.parameter.grad is not None:
                row.here(row.parameter.grad)
        if not self._clean:
            self._mask_state()
            self._clean = True
        jobs: list[Job] = []
        by_parameter = {id(part.parameter): part for part in self._parts}
        decays: list[tuple[dict[str, Any], Any]] = []
        for group in self._optimizer.param_groups:
            decay, rate = group.get("weight_decay", 0), group.get("lr", 0)
            for parameter in group["params"]:
                part = by_parameter.get(id(parameter))
                if part is None or parameter.grad is None:
                    continue
                with torch.no_grad():
                    if self._decay is not None and decay:
                        jobs += self._decay_inside(part, decay, rate, group)
                    jobs += part.mask(parameter.grad)
                    if self._decay is not None and not group.get("fused"):
                        jobs += self._lift(part)
            if self._decay is not None and decay:
                decays.append((group, decay))
        self._decays = decays
        for group, _ in decays:
            group["weight_decay"] = 0.0
        _run(jobs)

    def _lift(self, part: _Part) -> list[Job]:
        """Now and then ones for the zeros whose root each step takes: MKL takes ten times as long for zeros, and 0 / 1 is 0 too."""
        if part.lifted:
            part.lifted -= 1
            return []
        values = self._roots(part)
        part.lifted = LIFTED if values else 0
        return [job for value in values for job in part.lift(value)]

    def _lower(self, *_: Any) -> None:
        """Zeros again, as whoever saves or uses the state expects."""
        with torch.no_grad():
            for part in self._parts:
                if part.lifted:
                    _run([job for value in self._roots(part) for job in part.mask(value)])
                    part.lifted = 0

    def _roots(self, part: _Part) -> list[torch.Tensor]:
        found = [self._optimizer.state.get(part.parameter, {}).get(key) for key in ROOTS]
        fits = [value for value in found if value is not None and _local(value).shape == part.shape]
        return [value for value in fits if value.dtype in (torch.float32, torch.float64) and _on_host(_local(value))]

    def _decay_inside(self, part: _Part, decay: Any, rate: Any, group: dict[str, Any]) -> list[Job]:
        """The optimizer's weight decay, in the mask alone; its own is off during the step. Gives what is left to do."""
        if self._decay == "decoupled" or group.get("decoupled_weight_decay"):
            return part.decay(1 - rate * decay)
        assert part.parameter.grad is not None
        _local(part.parameter.grad).add_(_local(part.parameter), alpha=-decay if group.get("maximize") else decay)
        return []

    def _after(self, *_: Any) -> None:
        for group, decay in self._decays:
            group["weight_decay"] = decay
        self._decays = []
        with torch.no_grad():
            for part in self._parts:
                if part.saved is not None:
                    weights = part.here(part.parameter)
                    weights.copy_(torch.where(part.flags(), weights, part.saved))

    def _loaded(self, *_: Any) -> None:
        self._clean = False
        for part in self._parts:
            part.lifted = 0

    def _mask_state(self) -> None:
        """Momentum from before the mask would move frozen weights."""
        with torch.no_grad():
            for part in self._parts:
                for value in self._optimizer.state.get(part.parameter, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == part.parameter.shape:
                        _run(part.mask(value))


def freeze_outside(
    model: torch.nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    mask: Mask,
    optimizer: torch.optim.Optimizer,
    *,
    before_clipping: bool = False,
) -> Frozen:
    """Train only the elements in a mask: all others keep their bits.

    Right before each step gradients outside the mask become zero (section 4 of the paper), weight decay is done in the mask alone, and
    momentum from before is cleared outside it. Fused, foreach and accumulated steps, ``GradScaler`` and autocast go on as they are; FSDP2's
    parameters are masked shard by shard. An optimizer that is not known to leave a weight alone whose gradient is zero is let do its step,
    and the frozen weights are put back, at the cost of a copy of the parameters.

    Args:
        model: a module, or the parameters that the optimizer steps by their names in the mask (such as fp32 masters).
        mask: tensors that it does not name are frozen wholly. Names may differ by the prefixes that wrappers add.
        optimizer: the one that steps, made of these parameters. What is no parameter, as a batch norm's running mean, is not frozen.
        before_clipping: mask gradients as they are accumulated, so that ``clip_grad_norm_`` sees the norm of what is in the mask. By
            default it sees the norm of the whole gradient, as in a full fine-tune, and masks come after.

    Raises:
        CheckpointError: a shape differs from the mask's, or nothing of the mask is among the parameters.
        UnsupportedError: a parameter is sharded in a way that has no contiguous part.
    """
    named = dict(model.named_parameters() if isinstance(model, torch.nn.Module) else model.items() if isinstance(model, Mapping) else model)
    stems = {strip_prefixes(name): name for name in mask.bits}
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    kind = next((decay for known, decay in KNOWN.items() if type(optimizer) is known), None)
    parts, found = [], 0
    for name, parameter in named.items():
        if id(parameter) not in stepped:
            continue
        key = name if name in mask.bits else stems.get(strip_prefixes(name))
        here = _local(parameter)
        nothing = torch.zeros(-(-here.numel() // 8), dtype=torch.uint8, device=here.device)
        part = _Part(name, parameter, here.shape, nothing if key is None else _bits(mask, key, parameter, name))
        found += key is not None
        if kind is None:
            part.saved = _local(parameter).detach().clone()
        parts.append(part)
    if not found:
        raise CheckpointError(
            f"none of the mask's {len(mask.bits)} tensors is among the optimizer's {len(stepped)} parameters: "
            f"the mask has {next(iter(mask.bits), 'none')}, the model {next(iter(named), 'none')}"
        )
    return Frozen(optimizer, parts, kind, before_clipping)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _bits(mask: Mask, key: str, parameter: torch.Tensor, name: str) -> torch.Tensor:
    """The mask of this rank's part of a parameter, packed, on its device."""
    if tuple(parameter.shape) != mask.shapes[key]:
        raise CheckpointError(f"parameter {name}: has the shape {list(parameter.shape)}, in the mask it is {list(mask.shapes[key])}")
    here = _local(parameter)
    if here is parameter:
        return torch.from_numpy(mask.bits[key].copy()).to(parameter.device)
    layout = require("torch.distributed.tensor._utils")  # what has no public name
    shape, offset = layout.compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    if tuple(shape) != tuple(here.shape):
        raise UnsupportedError(
            f"parameter {name}: its part on this rank is {list(here.shape)}, expected {list(shape)}: not an even sharding"
        )
    flags = torch.from_numpy(mask.flags(key).copy())[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))].reshape(-1)
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -len(flags) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8).to(here.device)

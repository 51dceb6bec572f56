"""Training within a mask: every element outside it keeps its bits, whatever the optimizer does.

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 4: gradients are masked, m * grad L(theta), right before each
parameter update. That alone does not freeze anything under AdamW: weight decay and old momentum move weights of gradient zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.optim

from ckptdiff.errors import CheckpointError
from ckptdiff.live.names import names_by_parts
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.subnetwork.masked_parameter import Job, MaskedParameter, local_bits, local_part, run_jobs

Decay = Literal["decoupled", "gradient"]
STEPS_BETWEEN_LIFTS = 64
"""Steps in which ones that each step multiplies by at least a half do not become subnormal."""
DECAYS: dict[type[torch.optim.Optimizer], Decay] = {
    torch.optim.AdamW: "decoupled",
    torch.optim.Adam: "gradient",
    torch.optim.NAdam: "gradient",
    torch.optim.RAdam: "gradient",
    torch.optim.Adagrad: "gradient",
    torch.optim.RMSprop: "gradient",
    torch.optim.SGD: "gradient",
}
"""Optimizers that, except for weight decay, leave a weight alone whose gradient and state are zero, and how they do weight decay. After a
step of any other optimizer frozen weights are put back."""
ROOT_STATES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""State of these optimizers whose square root a step divides by."""


class Frozen:
    """What :func:`freeze_outside` installed: hooks that keep the weights outside a mask as they are."""

    def __init__(self, optimizer: torch.optim.Optimizer, parts: list[MaskedParameter], decay: Decay | None, before_clipping: bool) -> None:
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
        """Number of elements in the mask, on this rank."""
        return sum(int(part.flags().sum()) for part in self._parts)

    @property
    def total(self) -> int:
        """Number of elements of all parameters, on this rank."""
        return sum(part.shape.numel() for part in self._parts)

    def remove(self) -> None:
        """Remove the hooks, so that everything trains again."""
        self._lower()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, part: MaskedParameter) -> Any:
        def mask(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                with torch.no_grad():
                    run_jobs(part.mask(parameter.grad))

        return mask

    def _before(self, *_: Any) -> None:
        """Before a step: mask gradients, do weight decay in the mask alone, and switch the optimizer's own off."""
        for each in self._parts:  # check the shapes of all before anything is written
            each.local(each.parameter)
            if each.parameter.grad is not None:
                each.local(each.parameter.grad)
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
        run_jobs(jobs)

    def _lift(self, part: MaskedParameter) -> list[Job]:
        """Every few steps set the zeros whose root a step takes to ones: MKL takes ten times as long for roots of zeros, and 0 / 1 is 0
        too."""
        if part.steps_to_lift:
            part.steps_to_lift -= 1
            return []
        values = self._roots(part)
        part.steps_to_lift = STEPS_BETWEEN_LIFTS if values else 0
        return [job for value in values for job in part.lift(value)]

    def _lower(self, *_: Any) -> None:
        """Set lifted state back to zeros, as whoever saves or uses the state expects them."""
        with torch.no_grad():
            for part in self._parts:
                if part.steps_to_lift:
                    run_jobs([job for value in self._roots(part) for job in part.mask(value)])
                    part.steps_to_lift = 0

    def _roots(self, part: MaskedParameter) -> list[torch.Tensor]:
        """The state of a parameter whose root a step takes, as far as kernels can write to it."""
        states = (self._optimizer.state.get(part.parameter, {}).get(key) for key in ROOT_STATES)
        return [state for state in states if state is not None and part.can_lift(state)]

    def _decay_inside(self, part: MaskedParameter, decay: Any, rate: Any, group: dict[str, Any]) -> list[Job]:
        """Do the optimizer's weight decay in the mask alone; its own is off during the step. Returns the jobs that remain."""
        if self._decay == "decoupled" or group.get("decoupled_weight_decay"):
            return part.decay(1 - rate * decay)
        assert part.parameter.grad is not None
        local_part(part.parameter.grad).add_(local_part(part.parameter), alpha=-decay if group.get("maximize") else decay)
        return []

    def _after(self, *_: Any) -> None:
        """After a step: switch the optimizer's weight decay on again, and put frozen weights back."""
        for group, decay in self._decays:
            group["weight_decay"] = decay
        self._decays = []
        with torch.no_grad():
            for part in self._parts:
                if part.saved is not None:
                    weights = part.local(part.parameter)
                    weights.copy_(torch.where(part.flags(), weights, part.saved))

    def _loaded(self, *_: Any) -> None:
        """A state that was loaded must be masked anew."""
        self._clean = False
        for part in self._parts:
            part.steps_to_lift = 0

    def _mask_state(self) -> None:
        """Mask the optimizer's state, as momentum from before would move frozen weights."""
        with torch.no_grad():
            for part in self._parts:
                for value in self._optimizer.state.get(part.parameter, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == part.parameter.shape:
                        run_jobs(part.mask(value))


def freeze_outside(
    model: torch.nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    mask: Mask,
    optimizer: torch.optim.Optimizer,
    *,
    before_clipping: bool = False,
) -> Frozen:
    """Train only the elements in a mask: all others keep their bits.

    Right before each step, gradients outside the mask become zero (section 4 of the paper), weight decay is done in the mask alone, and
    momentum from before is cleared outside it. Fused, foreach and accumulated steps, ``GradScaler`` and autocast work as before; FSDP2's
    parameters are masked shard by shard. An optimizer that is not known to leave a weight alone whose gradient is zero takes its step, and
    then the frozen weights are put back, at the cost of a copy of the parameters.

    Args:
        model: a module, or the parameters that the optimizer updates, by their names in the mask (such as fp32 masters).
        mask: the elements to train. Tensors that it does not name are frozen as a whole. Names may differ by the parts that wrappers
            add.
        optimizer: the optimizer of these parameters. What is not a parameter, such as a batch norm's running mean, is not frozen.
        before_clipping: mask gradients as they are accumulated, so that ``clip_grad_norm_`` sees the norm of what is in the mask. By
            default it sees the norm of the whole gradient, as in a full fine-tune, and gradients are masked after it.

    Raises:
        CheckpointError: a shape differs from the mask's, or none of the mask's tensors is among the parameters.
        UnsupportedError: a parameter is sharded so that this rank's part is not contiguous.
    """
    named = dict(model.named_parameters() if isinstance(model, torch.nn.Module) else model.items() if isinstance(model, Mapping) else model)
    own = names_by_parts((name for name in named if name not in mask.shapes), (name for name in mask.shapes if name not in named))
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    decay = next((decay for known, decay in DECAYS.items() if type(optimizer) is known), None)
    parts, matching = [], 0
    for name, parameter in named.items():
        if id(parameter) not in stepped:
            continue
        key = name if name in mask.shapes else own.get(name)
        local = local_part(parameter)
        nothing = torch.zeros(-(-local.numel() // 8), dtype=torch.uint8, device=local.device)
        part = MaskedParameter(name, parameter, local.shape, nothing if key is None else local_bits(mask, key, parameter, name))
        matching += key in mask.rows
        if decay is None:
            part.saved = local_part(parameter).detach().clone()
        parts.append(part)
    if not matching:
        raise CheckpointError(
            f"none of the mask's {len(mask.rows)} tensors is among the optimizer's {len(stepped)} parameters: "
            f"the mask has {next(iter(mask.rows), 'none')}, the model {next(iter(named), 'none')}"
        )
    return Frozen(optimizer, parts, decay, before_clipping)

"""A small network, optimizers of every kind, a mask, and what moved inside and outside of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ckptdiff.subnetwork import Mask

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "AdamW foreach amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True, amsgrad=True),
    "AdamW maximize": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, weight_decay=0.1),
    "Adamax, put back": lambda p: torch.optim.Adamax(p, lr=1e-2, weight_decay=0.1),
    "Rprop, put back": lambda p: torch.optim.Rprop(p),
}


def network(dtype: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.GELU(), torch.nn.LayerNorm(30), torch.nn.Linear(30, 5)).to(dtype)


def some_mask(model: Any, share: float = 0.2) -> Mask:
    """Of all parameters but one, which is frozen wholly."""
    torch.manual_seed(1)
    flags = {name: (torch.rand(part.shape) < share).numpy() for name, part in model.named_parameters() if name != "0.bias"}
    return Mask.from_arrays(flags)


def backward(model: Any, dtype: Any, goal: float = 1.0) -> None:
    (model(torch.randn(8, 20, dtype=dtype)).float() - goal).square().mean().backward()


def bits_of(state: dict[str, Any]) -> dict[str, Any]:
    return {name: part.detach().clone().view(torch.uint8).view(*part.shape, -1) for name, part in state.items()}


def moved(before: dict[str, Any], after: dict[str, Any], mask: Mask) -> tuple[int, int]:
    """Elements that moved in the mask, and outside."""
    inside = outside = 0
    for name, part in after.items():
        changed = (part != before[name]).any(-1)
        flags = torch.from_numpy(mask.flags(name).copy()) if name in mask.bits else torch.zeros(changed.shape, dtype=torch.bool)
        inside, outside = inside + int((changed & flags).sum()), outside + int((changed & ~flags).sum())
    return inside, outside

"""Kernels compiled, and loaded, before the first update: in an engine's pause that would take seconds."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ckptdiff.engines.served import record
from ckptdiff.engines.through import load_through
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.lazy import torch
from ckptdiff.live.patch import Patch, compose_in_memory, diff
from ckptdiff.patching.torch_dtypes import flat_bytes, new_tensor

SIDE = 64
"""Rows and columns of the tensor that kernels are run on."""


def warm_up(dtypes: Collection[str]) -> None:
    """Run what updates of a model with tensors of these dtypes run, on a small one."""
    old, new = _state(dtypes, False), _state(dtypes, True)
    there, on = (Patch.from_bytes(diff(a, b, codec="sparse", threads=1).to_bytes()) for a, b in ((old, new), (new, old)))
    compose_in_memory([there, on], threads=1, copies=False)
    dense = Patch.from_bytes(diff(old, new, codec="context", threads=1).to_bytes())
    model = {name: tensor.clone() for name, tensor in old.items()}

    def loader(weights: object) -> None:
        for name, tensor in weights:  # type: ignore[attr-defined]
            model[name].copy_(tensor)

    served = record(model, old, loader=loader, threads=1)
    for patch in (there, dense):
        load_through(model, patch, verify=served, base=old, loader=loader, threads=1)
        load_through(model, patch, verify=served, base=old, back=True, loader=loader, threads=1)
    loaded = there.load(model, threads=1)
    loaded.apply_()
    loaded.revert_()


def _state(dtypes: Collection[str], changed: bool) -> dict[str, torch.Tensor]:
    """A tensor of each dtype, some of whose units differ from the other state's."""
    state = dict[str, "torch.Tensor"]()
    for name in sorted(dtypes):
        tensor = new_tensor(name, (SIDE, SIDE), name)
        units = np.asarray(flat_bytes(tensor, name)).view(DTYPES[name].unit)
        units[:] = np.arange(len(units)) % 61
        units[::7] += units.dtype.type(changed)
        units[::97] += units.dtype.type(100 * changed)
        state[name] = tensor
    return state

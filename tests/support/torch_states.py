"""State dicts of torch tensors of every dtype, copied, changed and compared by their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.format.digests import BLOCK  # noqa: E402
from ckptdiff.format.dtypes import DTYPE_NAMES  # noqa: E402

State = dict[str, Any]
CODECS = ["sparse", "context", "raw", None]


def raw(array: Any) -> bytes:
    if isinstance(array, np.ndarray):
        return array.tobytes()
    return array.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(raw(a[name]) == raw(b[name]) and a[name].dtype == b[name].dtype for name in b)


def copy_of(state: State) -> State:
    """A copy whose tied tensors are tied."""
    seen: dict[int, Any] = {}
    return {name: seen.setdefault(id(array), array.clone() if hasattr(array, "clone") else array.copy()) for name, array in state.items()}


def tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Any:
    made = torch.empty(shape, dtype=getattr(torch, DTYPE_NAMES[dtype][0] or ""))
    flat = made.reshape(-1).view(torch.uint8)
    data = rng.integers(0, 2 if dtype == "BOOL" else 256, len(flat), dtype=np.uint8)
    return torch.from_numpy(data).view(made.dtype).reshape(shape) if len(data) else made


def nudge(rng: np.random.Generator, array: Any, share: float) -> Any:
    """A copy some of whose bytes differ in their last bit."""
    new = array.clone()
    flat = new.reshape(-1).view(torch.uint8)
    if len(flat):
        flat ^= torch.from_numpy((rng.random(len(flat)) < share).astype(np.uint8))
    return new


def pair(share: float = 0.05, seed: int = 0, size: int = 40) -> tuple[State, State]:
    """Tensors of every dtype that torch and safetensors have, one of several blocks, a tied one, one without a shape."""
    rng = np.random.default_rng(seed)
    old = {
        name.lower(): tensor(rng, name, (size, 24)) for name, (torch_name, _) in DTYPE_NAMES.items() if hasattr(torch, torch_name or "-")
    }
    old |= {"large": tensor(rng, "BF16", (3, BLOCK // 4 + 7)), "scalar": tensor(rng, "F32", ()), "empty": tensor(rng, "F32", (0, 3))}
    new = {name: nudge(rng, array, share) for name, array in old.items()}
    old["tied"], new["tied"], new["same"] = old["bf16"], new["bf16"], tensor(rng, "F16", (7,))
    old["same"] = new["same"].clone()
    return old, new

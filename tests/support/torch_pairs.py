"""Real pairs that torch casts, and writes in other layouts, with the base's values at the place of each of the target's elements.

Nothing here is the package's: the files are written by the safetensors library, and read by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import SHARED_DATA
from tests.support.layouts_by_pieces import EMBEDDING
from tests.support.real_pairs import BASE, TARGETS

ROWS = 1000
"""Rows of the vocabulary that are kept, so that ranks take little time."""
EXPERTS = 3
State = dict[str, Any]
"""Tensors of torch by name."""
Key = tuple[str, int | None]
"""Name of a tensor, and number of the matrix of one that is stacked from several."""


@dataclass(frozen=True)
class TorchPair:
    """A base, a target, and what of the base belongs at each place of the target."""

    base: State
    target: State
    old: State
    """In the target's shapes and dtypes."""
    known: dict[str, Any] = field(default_factory=dict)
    """Of a tensor that has rows the base has not: which it has."""
    stacked: tuple[str, ...] = ()
    """Tensors whose matrices are stacked from several base tensors."""
    bases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the base tensors of a target's tensor, or of each matrix of a stacked one in turn, where they are not its own name."""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both files."""
        return save(folder / "base.safetensors", self.base), save(folder / "target.safetensors", self.target)

    def common(self) -> dict[Key, tuple[Any, Any]]:
        """What is compared, in base and target: rows that both have, and of stacked tensors each matrix by itself."""
        found: dict[Key, tuple[Any, Any]] = {}
        for name, new in self.target.items():
            old = self.old[name]
            if name in self.stacked:
                found |= {(name, k): pair for k, pair in enumerate(zip(old, new, strict=True))}
            else:
                kept = self.known.get(name, torch.ones(len(new), dtype=torch.bool))
                found[name, None] = old[kept], new[kept]
        return found

    @property
    def added(self) -> int:
        """Elements that the base has not."""
        return sum(int((~known).sum()) * self.target[name][0].numel() for name, known in self.known.items())


def save(path: Path, state: State) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


@cache
def real(name: str) -> State:
    """The first layer of a model, the last norm, and the beginning of the vocabulary."""
    state = load_file(SHARED_DATA / name / "model.safetensors")
    kept = {k: v for k, v in state.items() if "layers" not in k or ".layers.0." in k}
    return kept | {EMBEDDING: state[EMBEDDING][:ROWS]}


def to(state: State, dtype: Any) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def noisy(state: State) -> State:
    """In F32, a tenth of the elements moved by about a thousandth of their size, and some by about the absolute tolerance."""
    rng, result = torch.Generator().manual_seed(1), State()
    for name, tensor in state.items():
        wide, chance = tensor.float(), torch.rand(tensor.shape, generator=rng)
        moves = torch.randn(tensor.shape, generator=rng)
        result[name] = wide + torch.where(chance < 0.1, moves * wide.abs() * 1e-3, torch.where(chance < 0.2, moves * 1e-5, 0.0))
    return result


def cast(dtype: Any, target: str = TARGETS[0]) -> TorchPair:
    """A BF16 base, and its target in another dtype."""
    return TorchPair(real(BASE.name), to(real(target), dtype), to(real(BASE.name), dtype))


def moved(dtype: Any) -> TorchPair:
    """As trained in F32, from a base in BF16."""
    return TorchPair(real(BASE.name), to(noisy(real(TARGETS[0])), dtype), to(real(BASE.name), dtype))


def with_rows(dtype: Any, rows: list[int]) -> TorchPair:
    """Rows of the vocabulary by their numbers in the base; -1 for such as the base has not."""
    pair, picked = cast(dtype, TARGETS[1]), torch.tensor(rows)
    known, width = picked >= 0, pair.base[EMBEDDING].shape[1]
    new, old = pair.target[EMBEDDING][picked.clamp(min=0)], pair.old[EMBEDDING][picked.clamp(min=0)]
    new[~known] = (torch.randn(int((~known).sum()), width, generator=torch.Generator().manual_seed(2)) * 0.02).to(dtype)
    old[~known] = 0
    own = {} if bool(known.all()) else {EMBEDDING: known}
    return TorchPair(pair.base, pair.target | {EMBEDDING: new}, pair.old | {EMBEDDING: old}, own)


def experts(dtype: Any) -> TorchPair:
    """The MLPs of three layers as three experts of one layer: apart in the base, stacked in the target."""
    layer, sides = "model.layers.0.mlp.experts", list[State]()
    for name in (BASE.name, TARGETS[1]):
        state = load_file(SHARED_DATA / name / "model.safetensors")
        sides.append(
            {
                f"{layer}.{k}.{which}_proj.weight": state[f"model.layers.{k}.mlp.{which}_proj.weight"]
                for k in range(EXPERTS)
                for which in ("gate", "up", "down")
            }
        )
    others = ({k: v for k, v in real(name).items() if ".mlp." not in k} for name in (BASE.name, TARGETS[1]))
    base, target = (other | side for other, side in zip(others, sides, strict=True))
    joined = {f"{layer}.gate_up_proj": ("gate", "up"), f"{layer}.down_proj": ("down",)}
    parts = {name: [tuple(f"{layer}.{k}.{w}_proj.weight" for w in of) for k in range(EXPERTS)] for name, of in joined.items()}

    def stacked(state: State) -> State:
        left = {name: tensor for name, tensor in state.items() if ".experts." not in name}
        return left | {name: torch.stack([torch.cat([state[n] for n in names]) for names in of]) for name, of in parts.items()}

    bases = {f"{name}[{k}]": names for name, of in parts.items() for k, names in enumerate(of)}
    return TorchPair(base, to(stacked(target), dtype), to(stacked(base), dtype), {}, tuple(parts), bases)


CUT = [k for k in range(ROWS) if not 600 <= k < 637]
"""Rows without some in the middle."""
PAIRS: dict[str, Callable[[], TorchPair]] = {
    "cast to F32": lambda: cast(torch.float32),
    "cast to F16": lambda: cast(torch.float16),
    "cast to F32, fine-tuned": lambda: cast(torch.float32, TARGETS[2]),
    "moved in F32": lambda: moved(torch.float32),
    "moved in F32, then F16": lambda: moved(torch.float16),
    "a grown vocabulary": lambda: with_rows(torch.bfloat16, [*range(ROWS), *[-1] * 24]),
    "a grown vocabulary, in F32": lambda: with_rows(torch.float32, [*range(ROWS), *[-1] * 24]),
    "rows cut in the middle": lambda: with_rows(torch.bfloat16, CUT),
    "rows cut and put in, in F16": lambda: with_rows(torch.float16, [*CUT[:100], *[-1] * 5, *CUT[100:]]),
    "rows put in before the first": lambda: with_rows(torch.bfloat16, [*[-1] * 3, *range(ROWS)]),
    "rows put in before the first, and cut": lambda: with_rows(torch.bfloat16, [*[-1] * 3, *CUT]),
    "experts": lambda: experts(torch.bfloat16),
    "experts, in F32": lambda: experts(torch.float32),
}

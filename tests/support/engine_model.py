"""A small torch model that is loaded as inference engines load: fused projections, shards of a rank, tied heads, padded vocabularies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

State = dict[str, Any]
HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY, LAYERS, EXPERTS = 32, 4, 2, 8, 48, 90, 2, 2
FUSED = {"q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2), "gate_proj": ("gate_up_proj", 0)}
FUSED |= {"up_proj": ("gate_up_proj", 1)}


def checkpoint(seed: int = 0, dtype: Any = None) -> State:
    """The tensors of a checkpoint of the model."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> Any:
        return (torch.randn(shape, generator=generator) * 0.02).to(dtype or torch.bfloat16)

    state = {"model.embed_tokens.weight": made(VOCABULARY, HIDDEN)}
    for k in range(LAYERS):
        layer = f"model.layers.{k}"
        for name, rows in (("q_proj", HEADS * HEAD), ("k_proj", KV_HEADS * HEAD), ("v_proj", KV_HEADS * HEAD)):
            state[f"{layer}.self_attn.{name}.weight"] = made(rows, HIDDEN)
        state[f"{layer}.self_attn.o_proj.weight"] = made(HIDDEN, HEADS * HEAD)
        state |= {f"{layer}.mlp.{name}.weight": made(INNER, HIDDEN) for name in ("gate_proj", "up_proj")}
        state[f"{layer}.mlp.down_proj.weight"] = made(HIDDEN, INNER)
        state |= {f"{layer}.experts.{e}.w2.weight": made(HIDDEN, INNER) for e in range(EXPERTS)}
        state[f"{layer}.input_layernorm.weight"] = made(HIDDEN)
    return state | {"model.norm.weight": made(HIDDEN)}


def moved(state: State, share: float = 0.1, seed: int = 1) -> State:
    """A later state: some units moved by a few ulps, some to any bits at all, and one tensor not."""
    rng, new = np.random.default_rng(seed), {}
    for name, tensor in state.items():
        units = tensor.clone().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
        flat = units.reshape(-1).numpy()
        if name != "model.norm.weight":
            where = rng.random(len(flat)) < share
            flat[where] += rng.integers(-5, 6, int(where.sum())).astype(flat.dtype)
            flat[rng.integers(0, len(flat), 2)] = rng.integers(-(1 << 15), 1 << 15, 2)
        new[name] = units.view(tensor.dtype)
    return new


class Served(torch.nn.Module):
    """The model as an engine has it: one rank of several, with its own loader.

    Args:
        state: what it is loaded from.
        rank, ranks: which shard of the model it has. Key and value heads are replicated where there are fewer than ranks.
    """

    transposed = True
    """Whether it has the experts transposed, so that their places are not contiguous."""

    def __init__(self, state: State, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.rows = -(-VOCABULARY // ranks)
        dtype = state["model.norm.weight"].dtype
        sizes = {"embed_tokens": (-(-self.rows // 64) * 64, HIDDEN), "norm": (HIDDEN,)}
        for k in range(LAYERS):
            sizes[f"layers_{k}_qkv_proj"] = (sum(self._heads(part)[1] for part in range(3)) * HEAD, HIDDEN)
            sizes[f"layers_{k}_o_proj"] = (HIDDEN, HEADS * HEAD // ranks)
            sizes[f"layers_{k}_gate_up_proj"] = (2 * INNER // ranks, HIDDEN)
            sizes[f"layers_{k}_down_proj"] = (HIDDEN, INNER // ranks)
            expert = INNER // ranks, HIDDEN
            sizes[f"layers_{k}_w2"] = (EXPERTS, *(expert if self.transposed else expert[::-1]))
            sizes[f"layers_{k}_input_layernorm"] = (HIDDEN,)
        for name, size in sizes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False))
        self.lm_head = self.embed_tokens
        self.load_weights(state.items())

    def _heads(self, part: int) -> tuple[int, int]:
        """First head of this rank in the checkpoint, and how many it has: of queries (0), keys or values."""
        count = (HEADS if part == 0 else KV_HEADS) // self.ranks or 1
        return (self.rank * count if part == 0 else self.rank * KV_HEADS // self.ranks), count

    def load_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Load tensors of a checkpoint, as an engine does."""
        for name, tensor in weights:
            self.load(name, tensor)

    def load(self, name: str, tensor: Any) -> None:
        """Load one tensor of a checkpoint."""
        parts = name.removeprefix("model.").removesuffix(".weight").split(".")
        if parts[0] == "lm_head":
            return
        if parts[0] == "embed_tokens":
            mine = tensor[self.rank * self.rows : (self.rank + 1) * self.rows]
            self.embed_tokens[: len(mine)].data.copy_(mine)
            self.embed_tokens[len(mine) :].data.fill_(0)
            return
        owner, part = FUSED.get(parts[-1], (parts[-1], 0))
        parameter = getattr(self, "_".join([*parts[:2], owner]) if parts[0] == "layers" else owner).data
        if owner == "qkv_proj":
            begin = sum(self._heads(before)[1] for before in range(part)) * HEAD
            first, count = self._heads(part)
            parameter.narrow(0, begin, count * HEAD).copy_(tensor.narrow(0, first * HEAD, count * HEAD))
        elif owner == "gate_up_proj":
            size = INNER // self.ranks
            parameter.narrow(0, part * size, size).copy_(tensor.narrow(0, self.rank * size, size))
        elif owner == "w2":
            size = INNER // self.ranks
            expert = parameter[int(parts[3])]
            (expert.t() if self.transposed else expert).copy_(tensor.narrow(1, self.rank * size, size))
        elif owner in ("o_proj", "down_proj"):
            size = parameter.shape[1]
            parameter.copy_(tensor.narrow(1, self.rank * size, size))
        else:
            parameter.copy_(tensor)

    def content(self) -> dict[str, bytes]:
        """The bytes of its memory."""
        return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in self.named_parameters()}


class Plain(Served):
    """The same, with all places contiguous, as most engines have them."""

    transposed = False

"""Two processes that write checkpoints by torch.distributed.checkpoint: a model under FSDP2, its optimizer, and tensors sharded otherwise.

    python -m tests.support.dcp_writer FOLDER [--width 40]

writes, in FOLDER/before and FOLDER/after a step of the optimizer, ``dcp``, and ``gathered.safetensors``: the same tensors of the model,
gathered by torch and written by the safetensors library.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

RANKS = 2


class Block(nn.Module):
    """A layer whose parameters have odd numbers of rows, so that ranks hold unequal parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 3 * width + 1, bias=False), nn.Linear(3 * width + 1, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("steps", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def others(width: int) -> dict[str, torch.Tensor]:
    """Tensors that no parameter of the model is sharded like."""
    mesh = init_device_mesh("cpu", (RANKS,))
    many = torch.arange(6 * 5 * (width + 3), dtype=torch.float32).reshape(6, 5, width + 3)
    return {
        "columns": distribute_tensor(torch.randn(7, width + 1).half(), mesh, [Shard(1)]),
        "middle": distribute_tensor(many, mesh, [Shard(1)]),
        "last": distribute_tensor(many.bfloat16(), mesh, [Shard(2)]),
        "turned": torch.randn(3, width).t(),
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
        "float8": torch.randn(9, 5).to(torch.float8_e4m3fn),
    }


def write(rank: int, folder: Path, width: int) -> None:
    """What one rank does."""
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    model = nn.Sequential(nn.Embedding(4 * width + 3, width), Block(width), Block(width)).bfloat16()
    mesh, more = init_device_mesh("cpu", (RANKS,)), others(width)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    save(folder / "before", model, optimizer, more)
    model(torch.arange(16)).float().pow(2).sum().backward()
    optimizer.step()
    save(folder / "after", model, optimizer, more)
    dist.destroy_process_group()


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, more: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint in both forms."""
    tensors = {**get_model_state_dict(model), **more}
    dcp.save({"model": tensors, "optim": get_optimizer_state_dict(model, optimizer), "step": 7}, checkpoint_id=str(folder / "dcp"))
    gathered = {f"model.{name}": t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    if dist.get_rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in gathered.items()}, folder / "gathered.safetensors", {"format": "pt"})
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=40)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=write, args=(k, arguments.folder, arguments.width)) for k in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    raise SystemExit(max(abs(process.exitcode or 0) for process in ranks))


if __name__ == "__main__":
    main()

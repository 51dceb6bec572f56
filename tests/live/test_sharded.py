"""FSDP2: each rank makes and applies a patch of its own shards; two processes on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("safetensors.torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="FSDP2 needs torch 2.6"
    ),
]

from safetensors.torch import load_file  # noqa: E402

import ckptdiff  # noqa: E402

RANK = """
import copy, os, sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor, Shard
from safetensors.torch import save_file
import ckptdiff

folder = sys.argv[1]
dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(24, 17), torch.nn.Linear(17, 1), torch.nn.LayerNorm(1)).to(torch.bfloat16)
full = {k: v.clone() for k, v in model.state_dict().items()}
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
old = {k: v.clone() for k, v in model.state_dict().items()}
assert all(isinstance(v, DTensor) for v in old.values())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(3):
    torch.manual_seed(step)
    model(torch.randn(4, 24, dtype=torch.bfloat16)).float().square().mean().backward()
    optimizer.step(); optimizer.zero_grad()
new = model.state_dict()
patch = ckptdiff.diff(old, new)
open(f"{folder}/rank{rank}.safetensors", "wb").write(patch.to_bytes())
target = {k: v.full_tensor().clone() for k, v in new.items()}
if rank == 0:
    save_file(full, f"{folder}/base.safetensors"); save_file(target, f"{folder}/target.safetensors")
save_file({k: v.to_local().clone() for k, v in old.items()}, f"{folder}/local{rank}.safetensors")
expected = {k: v.to_local().clone() for k, v in new.items()}
loaded = patch.load(old)          # another model with the base's shards
loaded.apply_()
assert all(torch.equal(old[k].to_local(), expected[k]) for k in expected)
loaded.revert_()
model.load_state_dict(old)
patch.apply_(model)               # the module itself, in place
assert all(torch.equal(v.to_local(), expected[k]) for k, v in model.state_dict().items())
dist.barrier(); dist.destroy_process_group()
# What DTensor and FSDP2 keep holds the process group, so that gloo's threads outlive destroy_process_group; and one of them that needs
# the interpreter while it ends aborts the process: "terminate called without an active exception".
os._exit(0)
"""


def test_ranks_diff_their_shards(tmp_path: Path) -> None:
    """The ranks' patches together hold what the patch of one process holds."""
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "rank.py")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    base, target = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "target.safetensors")
    whole = ckptdiff.diff(base, target)
    changed, parts = 0, []
    for rank in (0, 1):
        shards = load_file(tmp_path / f"local{rank}.safetensors")
        with ckptdiff.Patch.open(tmp_path / f"rank{rank}.safetensors") as patch:
            changed += patch.totals.changed
            patch.apply_(shards)
        parts.append(shards)
    assert changed == whole.totals.changed > 0
    together = {name: torch.cat([part[name] for part in parts]) for name in base}
    assert all(torch.equal(together[name].view(torch.int16), target[name].view(torch.int16)) for name in base)
    assert ckptdiff.diff(base, together).to_bytes() == whole.to_bytes()

"""Outside a mask every bit of a model stays as it is, under every optimizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckptdiff.errors import CheckpointError
from ckptdiff.kernels import mask_ops

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.subnetwork import Mask, UpdateTracker, freeze_outside, masked_parameter  # noqa: E402
from tests.support.networks import OPTIMIZERS, backward, bits_of, moved, network, some_mask  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_outside_moves(name: str, dtype: Any) -> None:
    """100 steps with accumulation, clipping, weight decay, and momentum from before: what leaks does so from the first on."""
    model = network(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        backward(model, dtype)
        optimizer.step()
        optimizer.zero_grad()
    before, mask = bits_of(model.state_dict()), some_mask(model)
    frozen = freeze_outside(model, mask, optimizer)
    decay = optimizer.param_groups[0].get("weight_decay")
    for _ in range(100):
        for _ in range(2):
            backward(model, dtype)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    inside, outside = moved(before, bits_of(model.state_dict()), mask)
    assert outside == 0 and inside > 0.9 * mask.total and optimizer.param_groups[0].get("weight_decay") == decay
    assert frozen.trainable == mask.total and frozen.total == sum(part.numel() for part in model.parameters())
    frozen.remove()
    for _ in range(20):
        backward(model, dtype)
        optimizer.step()
    assert moved(before, bits_of(model.state_dict()), mask)[1] > 0


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_torchs_operations_do_what_the_kernels_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's operations in place of the kernels, which serve the host alone."""
    monkeypatch.setattr(masked_parameter, "_on_host", lambda _: False)
    test_nothing_outside_moves(name, torch.float32)
    test_a_full_mask_changes_nothing(name, torch.float32)


@pytest.mark.parametrize("name", ["AdamW", "AdamW foreach amsgrad", "RMSprop", "Adagrad"])
def test_state_that_is_saved_is_zero_outside(name: str) -> None:
    """While steps are taken there may be ones; who saves the state, or takes the mask off, finds zeros."""
    model = network(torch.float32)
    optimizer, mask = OPTIMIZERS[name](model.parameters()), some_mask(model)
    frozen = freeze_outside(model, mask, optimizer)
    names = [name for name, _ in model.named_parameters()]
    for end in (optimizer.state_dict, frozen.remove):
        for _ in range(3):
            backward(model, torch.float32)
            optimizer.step()
            optimizer.zero_grad()
        end()
        for k, row in optimizer.state_dict()["state"].items():
            for value in row.values():
                if names[k] in mask.bits and isinstance(value, torch.Tensor) and value.ndim:
                    assert not value[~torch.from_numpy(mask.flags(names[k]).copy())].any()


@pytest.mark.parametrize("name", ["AdamW", "Adagrad"])
def test_nothing_outside_moves_on_several_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors are cut to slices, which threads share."""
    monkeypatch.setattr(masked_parameter, "MIN_THREADED_ELEMENTS", 0)
    monkeypatch.setattr(mask_ops, "JOB_ELEMENTS", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    test_nothing_outside_moves(name, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "AdamW foreach amsgrad"])
def test_a_full_mask_changes_nothing(name: str, dtype: Any) -> None:
    """With everything in the mask training is what it was, bit for bit: weight decay too."""
    results = []
    for masked in (False, True):
        model = network(dtype)
        optimizer = OPTIMIZERS[name](model.parameters())
        if masked:
            freeze_outside(model, Mask.from_arrays({k: torch.ones(v.shape).numpy() for k, v in model.named_parameters()}), optimizer)
        torch.manual_seed(5)
        for _ in range(20):
            backward(model, dtype)
            optimizer.step()
            optimizer.zero_grad()
        results.append(bits_of(model.state_dict()))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_without_it_weight_decay_and_momentum_leak() -> None:
    """What masking gradients alone, as the paper describes, does under AdamW."""
    model = network(torch.float32)
    optimizer, mask = OPTIMIZERS["AdamW"](model.parameters()), some_mask(model)
    before = bits_of(model.state_dict())
    backward(model, torch.float32)
    for name, part in model.named_parameters():
        part.grad *= torch.from_numpy(mask.flags(name).copy()) if name in mask.bits else 0
    optimizer.step()
    assert moved(before, bits_of(model.state_dict()), mask)[1] > 0


def test_clipping_before_and_after() -> None:
    norms = []
    for before_clipping in (False, True):
        model = network(torch.float32)
        optimizer, mask = OPTIMIZERS["SGD"](model.parameters()), some_mask(model)
        freeze_outside(model, mask, optimizer, before_clipping=before_clipping)
        torch.manual_seed(2)
        for _ in range(2):
            backward(model, torch.float32)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
    assert 0 < norms[1] < 0.8 * norms[0]


def test_fp32_masters_and_a_scaler() -> None:
    """A bf16 model stepped by fp32 masters; overflowing gradients of a GradScaler, which skips that step."""
    model = network(torch.bfloat16)
    masters = {name: part.detach().float().clone().requires_grad_() for name, part in model.named_parameters()}
    optimizer, mask = OPTIMIZERS["AdamW fused"](list(masters.values())), some_mask(model)
    before, start = bits_of(model.state_dict()), bits_of(masters)
    freeze_outside(masters, mask, optimizer)
    for _ in range(100):
        backward(model, torch.bfloat16)
        for name, part in model.named_parameters():
            masters[name].grad = part.grad.float()
            part.grad = None
        torch.nn.utils.clip_grad_norm_(list(masters.values()), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, part in model.named_parameters():
                part.copy_(masters[name])
    assert moved(before, bits_of(model.state_dict()), mask)[1] == moved(start, bits_of(masters), mask)[1] == 0
    assert moved(start, bits_of(masters), mask)[0] > 0.9 * mask.total
    model = network(torch.float32)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    before, scaler = bits_of(model.state_dict()), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    freeze_outside(model, mask, optimizer)
    for _ in range(300):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(torch.randn(8, 20)).float() - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    inside, outside = moved(before, bits_of(model.state_dict()), mask)
    assert outside == 0 and inside > 0.5 * mask.total and all(part.isfinite().all() for part in model.parameters())


def test_a_resumed_optimizer() -> None:
    """State loaded after the hooks were installed brings old momentum back."""
    model = network(torch.float32)
    optimizer, mask = OPTIMIZERS["AdamW"](model.parameters()), some_mask(model)
    backward(model, torch.float32)
    optimizer.step()
    state = {"state": {k: {n: v.clone() for n, v in row.items()} for k, row in optimizer.state_dict()["state"].items()}}
    state["param_groups"] = optimizer.state_dict()["param_groups"]
    before = bits_of(model.state_dict())
    freeze_outside(model, mask, optimizer)
    for turn in range(2):
        backward(model, torch.float32)
        optimizer.step()
        assert moved(before, bits_of(model.state_dict()), mask)[1] == 0, turn
        optimizer.load_state_dict(state)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    model = network(torch.float32)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    with pytest.raises(CheckpointError, match=r"parameter 0.weight: has the shape \[30, 20\], in the mask it is \[3\]"):
        freeze_outside(model, Mask.from_arrays({"0.weight": [1, 1, 1]}), optimizer)
    with pytest.raises(CheckpointError, match=r"none of the mask's 1 tensors is among the optimizer's 6 parameters: the mask has other"):
        freeze_outside(model, Mask.from_arrays({"other": [1]}), optimizer)
    with pytest.raises(CheckpointError, match="every and sample must be at least 1, found 0 and 1"):
        UpdateTracker(model, optimizer, every=0)


def test_names_with_prefixes_are_found() -> None:
    model = network(torch.float32)
    mask = some_mask(model)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    before = bits_of(model.state_dict())
    freeze_outside({f"module.{name}": part for name, part in model.named_parameters()}, mask, optimizer)
    backward(model, torch.float32)
    optimizer.step()
    assert moved(before, bits_of(model.state_dict()), mask)[1] == 0


RANK = """
import os, sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from ckptdiff.subnetwork import Mask, UpdateTracker, freeze_outside

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for dtype in (torch.bfloat16, torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 31), torch.nn.GELU(), torch.nn.LayerNorm(31), torch.nn.Linear(31, 1)).to(dtype)
    mask = Mask.from_arrays({k: (torch.rand(v.shape) < 0.3).numpy() for k, v in model.named_parameters() if k != "0.bias"})
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = {k: v.full_tensor().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    frozen, tracker = freeze_outside(model, mask, optimizer), UpdateTracker(model, optimizer, every=50)
    for step in range(200):
        for _ in range(2):
            torch.manual_seed(2 * step + dist.get_rank())
            (model(torch.randn(4, 20, dtype=dtype)).float() - 1).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(); optimizer.zero_grad()
    moved, total = 0, 0
    for k, v in model.state_dict().items():
        changed = (v.full_tensor().view(torch.uint8) != before[k].view(torch.uint8)).view(*v.shape, -1).any(-1)
        flags = torch.from_numpy(mask.flags(k).copy()) if k in mask.bits else torch.zeros(v.shape, dtype=torch.bool)
        assert not (changed & ~flags).any(), k
        moved, total = moved + int(changed.sum()), total + changed.numel()
    assert moved > 0.9 * mask.total, (moved, mask.total)
    both = torch.tensor(frozen.trainable); dist.all_reduce(both)
    assert int(both) == mask.total
    assert len(tracker.records) == 4 and abs(tracker.records[-1].sparsity - (1 - moved / total)) < 1e-12, tracker.records
dist.barrier(); dist.destroy_process_group()
# What DTensor and FSDP2 keep holds the process group, so that gloo's threads outlive destroy_process_group; and one of them that needs
# the interpreter while it ends aborts the process: "terminate called without an active exception".
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="FSDP2 needs torch 2.6")
def test_two_ranks(tmp_path: Path) -> None:
    """With FSDP2, on two ranks."""
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "rank.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

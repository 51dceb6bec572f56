"""What a CUDA device computes is, bit for bit, what the host computes; the other tests hold the host to the format.

These tests need a machine with a GPU, which CI does not have: run ``pytest -m gpu tests/device/test_gpu.py`` there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError
from ckptdiff.format.digests import BLOCK, leaves_of
from tests.support.checkpoints import SHARED_DATA

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
safetensors_torch = pytest.importorskip("safetensors.torch")

from ckptdiff.device.leaves import leaf_digests  # noqa: E402
from ckptdiff.subnetwork import UpdateTracker, freeze_outside  # noqa: E402
from tests.support.networks import OPTIMIZERS, bits_of, moved, network, some_mask  # noqa: E402
from tests.support.torch_states import CODECS, State, copy_of, equal, pair  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


def on_gpu(state: State) -> State:
    """Copies on the device; tied tensors stay tied."""
    seen: dict[int, Any] = {}
    return {name: seen.setdefault(id(array), array.cuda()) for name, array in state.items()}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.002, 0.6])
def test_a_model_on_the_device_switches_there_and_back(codec: str | None, share: float) -> None:
    old, new = pair(share)
    expected = ckptdiff.diff(old, new, codec=codec).to_bytes()
    there = [on_gpu(side) for side in (old, new)]
    assert ckptdiff.diff(*there, codec=codec).to_bytes() == expected
    assert ckptdiff.diff(old, new, codec=codec, device="cuda").to_bytes() == expected
    model = there[0]
    loaded = ckptdiff.Patch.from_bytes(expected).load(model)
    for _ in range(3):
        loaded.apply_()
        assert equal(model, new) and model["tied"] is model["bf16"] and model["bf16"].is_cuda
        loaded.revert_()
        assert equal(model, old)
    ckptdiff.Patch.from_bytes(expected).apply_(model)
    assert equal(model, new)


def test_a_changed_weight_is_found() -> None:
    old, new = pair()
    model = on_gpu(old)
    loaded = ckptdiff.diff(old, new).load(model)
    model["large"].view(torch.int16)[1, 7] ^= 1
    with pytest.raises(BaseMismatchError, match=r"tensor large has the digest .* Nothing was written"):
        loaded.apply_()
    model["large"].view(torch.int16)[1, 7] ^= 1
    assert equal(model, old)


@pytest.mark.parametrize("extra", [0, 1, 63, 64, BLOCK - 1])
def test_xxh3_on_the_device_is_xxhash(extra: int) -> None:
    data = torch.from_numpy(np.random.default_rng(extra).integers(0, 256, 70 * BLOCK + extra, dtype=np.uint8))
    ones = torch.full((BLOCK,), 255, dtype=torch.uint8)
    assert leaf_digests([data.cuda(), ones.cuda()]) == [leaves_of(data.numpy()), leaves_of(ones.numpy())]


@pytest.mark.parametrize("codec", [None, "sparse", "context"])
def test_files_by_the_device_are_those_by_the_host(tmp_path: Path, codec: str | None) -> None:
    old, new = ({k: v for k, v in side.items() if k not in ("tied", "f4")} for side in pair(0.01))
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    safetensors_torch.save_file(old, base)
    safetensors_torch.save_file(new, target)
    check_files(tmp_path, base, target, codec)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
@pytest.mark.parametrize("name", ["grpo-lr1e-6", "grpo-fp32master-lr1e-6", "sft-lr1e-5"])
def test_real_pairs_by_the_device_are_those_by_the_host(tmp_path: Path, name: str) -> None:
    base, target = (SHARED_DATA / f"tiny6m-{side}" / "model.safetensors" for side in ("base", name))
    for codec in (None, "sparse"):
        check_files(tmp_path, base, target, codec)
    old, new = safetensors_torch.load_file(base, device="cuda"), safetensors_torch.load_file(target, device="cuda")
    patch = ckptdiff.diff(old, new, codec="context")
    model = copy_of(old)
    patch.apply_(model)
    assert equal(model, new)
    host, there = (ckptdiff.report(base, target, rank="all", device=device).tensors for device in (None, "cuda"))
    ranks = [[[row.spectrum.rank for row in tensor.ranks or ()] for tensor in tensors] for tensors in (host, there)]
    assert ranks[0] == ranks[1] and sum(map(sum, ranks[0])) > 1000


def check_files(folder: Path, base: Path, target: Path, codec: str | None) -> None:
    """``make`` with a device writes the file that it writes without."""
    for device in (None, "cuda"):
        ckptdiff.make(base, target, folder / f"{device}.safetensors", codec=codec, device=device, overwrite=True)
    assert (folder / "cuda.safetensors").read_bytes() == (folder / "None.safetensors").read_bytes()
    ckptdiff.apply(base, folder / "cuda.safetensors", folder / "out.safetensors", overwrite=True)
    assert (folder / "out.safetensors").read_bytes() == target.read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_outside_moves(name: str, dtype: Any) -> None:
    model = network(dtype)
    before, mask = bits_of(model.state_dict()), some_mask(model)
    optimizer = OPTIMIZERS[name](model.cuda().parameters())
    freeze_outside(model, mask, optimizer)
    tracker = UpdateTracker(model, optimizer, every=50)
    for _ in range(50):
        (model(torch.randn(8, 20, dtype=dtype, device="cuda")).float() - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    inside, outside = moved(before, bits_of({name: part.cpu() for name, part in model.state_dict().items()}), mask)
    assert outside == 0 and inside > 0.9 * mask.total
    total = sum(part.numel() for part in model.parameters())
    assert abs(tracker.records[-1].sparsity - (1 - inside / total)) < 1e-12

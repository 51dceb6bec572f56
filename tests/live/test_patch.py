"""``diff`` and ``Patch``: patches of tensors in memory are those of files, and odd tensors are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError
from tests.support.checkpoints import SHARED_DATA

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
safetensors_torch = pytest.importorskip("safetensors.torch")

from ckptdiff.format.dtypes import DTYPE_NAMES  # noqa: E402
from tests.support.strategies import examples_run  # noqa: E402
from tests.support.torch_states import CODECS, copy_of, equal, nudge, pair, tensor  # noqa: E402


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_do_not_depend_on_threads_or_device(codec: str | None) -> None:
    """The host's kernels and torch's operations on its CPU device give the same bytes."""
    old, new = pair(0.01)
    expected = ckptdiff.diff(old, new, codec=codec, threads=1).to_bytes()
    assert ckptdiff.diff(old, new, codec=codec, threads=3).to_bytes() == expected
    assert ckptdiff.diff(old, new, codec=codec, device="cpu").to_bytes() == expected


@pytest.mark.parametrize("codec", ["auto", "sparse", "context"])
def test_files_and_memory_and_devices_agree(tmp_path: Path, codec: str) -> None:
    """A patch of tensors is that of the files that safetensors writes of them, but for the SHA-256 of files."""
    old, new = ({k: v for k, v in side.items() if k not in ("tied", "f4")} for side in pair(0.01))
    for name, side in (("base", old), ("target", new)):
        safetensors_torch.save_file(side, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
    chosen = None if codec == "auto" else codec
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    ckptdiff.make(base, target, tmp_path / "host.safetensors", codec=chosen)
    ckptdiff.make(base, target, tmp_path / "device.safetensors", codec=chosen, device="cpu")
    assert (tmp_path / "device.safetensors").read_bytes() == (tmp_path / "host.safetensors").read_bytes()
    (tmp_path / "memory.safetensors").write_bytes(ckptdiff.diff(old, new, codec=chosen).to_bytes())
    memory, host = (ckptdiff.info(tmp_path / f"{name}.safetensors") for name in ("memory", "host"))
    assert (memory.tensors, memory.base_identity, memory.target_identity) == (
        tuple(row.__class__(**{**{f: getattr(row, f) for f in row.__slots__}, "file": "model.safetensors"}) for row in host.tensors),
        host.base_identity,
        host.target_identity,
    )
    for patch in ("memory", "host"):
        out = tmp_path / f"{patch}-out.safetensors"
        ckptdiff.apply(base, tmp_path / f"{patch}.safetensors", out)
        assert out.read_bytes() == target.read_bytes()
    assert ckptdiff.verify(tmp_path / "memory.safetensors", base=base, target=target).ok
    (problem,) = ckptdiff.verify(tmp_path / "memory.safetensors", target=base).problems
    assert "has the digest" in problem.message
    assert equal(ckptdiff.load_target(base, tmp_path / "memory.safetensors"), new)


@settings(max_examples=examples_run(60), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]), st.sampled_from(CODECS))
def test_any_pair_switches_there_and_back(seed: int, share: float, codec: str | None) -> None:
    rng = np.random.default_rng(seed)
    names = [name for name, (torch_name, _) in DTYPE_NAMES.items() if hasattr(torch, torch_name or "-")]
    old = {
        f"{k}.{name}": tensor(rng, name, tuple(rng.integers(0, 30, rng.integers(0, 4)).tolist()))
        for k, name in enumerate(rng.choice(names, 4))
    }
    new = {name: nudge(rng, array, share) for name, array in old.items()}
    patch = ckptdiff.diff(old, new, codec=codec)
    assert patch.to_bytes() == ckptdiff.diff(old, new, codec=codec, device="cpu", threads=1).to_bytes()
    model = copy_of(old)
    loaded = patch.load(model)
    loaded.apply_()
    assert equal(model, new)
    loaded.revert_()
    assert equal(model, old)


def test_broken_patches_are_refused() -> None:
    old, new = pair()
    data = ckptdiff.diff(old, new).to_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        with pytest.raises((FormatError, CheckpointError)):
            ckptdiff.Patch.from_bytes(data[:cut])
    broken = bytearray(data)
    broken[-5] ^= 1
    with pytest.raises(IntegrityError, match="its payload has the digest"):
        ckptdiff.Patch.from_bytes(bytes(broken))


def test_tensors_that_cannot_be_read_in_place_are_refused() -> None:
    good = {"w": torch.zeros(4, 6)}
    for wrong, text in (
        (torch.zeros(4, 6).T, r"the new tensors: w: is not contiguous \(strides \(1, 6\)\): give its .contiguous\(\) copy"),
        (torch.zeros(4, 6, device="meta"), "the new tensors: w: is a meta tensor, without content: load its weights first"),
        (torch.zeros(4, 6).to_sparse(), "is sparse, quantized or a lazy view"),
        (torch.zeros(4, 6, dtype=torch.complex128), "safetensors has no dtype for complex128"),
        (np.zeros((4, 6), order="F"), "give np.ascontiguousarray of it"),
        (np.zeros((4, 6), ">f4"), "is big-endian"),
    ):
        with pytest.raises(UnsupportedError, match=text):
            ckptdiff.diff(good, {"w": wrong})
    with pytest.raises(CheckpointError, match="the new tensors: w: expected a tensor with content, found int"):
        ckptdiff.diff(good, {"w": 3})
    for name, text in (("__metadata__", "but not __metadata__"), ("a\ud800", "is not Unicode text"), ("", "expected names of 1 to 4096")):
        with pytest.raises(CheckpointError, match=text):
            ckptdiff.diff(good, {name: good["w"]})
    with pytest.raises(CheckpointError, match="expected a tensor with content, found UninitializedParameter"):
        ckptdiff.diff(torch.nn.LazyLinear(3), good)
    with pytest.raises(CheckpointError, match="expected a tensor with content, found float32"):
        ckptdiff.diff(good, {"w": np.float32(3)})
    with pytest.raises(CheckpointError, match="expected a module or a state dict, found list"):
        ckptdiff.diff(good, [1])
    with pytest.raises(CheckpointError, match="unknown codec 'zip'"):
        ckptdiff.diff(good, good, codec="zip")
    with pytest.raises(UnsupportedError, match=r"torch cannot use the device (warp|meta) here: .*; leave --device out"):
        ckptdiff.diff(good, good, device="warp")
    with pytest.raises(UnsupportedError, match="meta tensors have no content"):
        ckptdiff.diff(good, good, device="meta")


def test_modules_and_numpy_arrays_are_patched(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    module = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Linear(5, 8)).to(torch.bfloat16)
    before = copy_of(module.state_dict())
    after = {name: nudge(rng, array, 0.3) for name, array in before.items()}
    patch = ckptdiff.diff(before, after)
    loaded = patch.load(module)
    loaded.apply_()
    assert equal(dict(module.state_dict()), after)
    loaded.revert_()
    patch.apply_(torch.nn.parallel.DataParallel(module))
    assert equal(dict(module.state_dict()), after)
    old = {"w": rng.random((50, 3)).astype(np.float32), "k": rng.integers(0, 9, 5)}
    new = {"w": old["w"].copy(), "k": old["k"] + 1}
    new["w"][7] *= 1.5
    arrays = ckptdiff.diff(old, new)
    arrays.apply_(old)
    assert equal(old, new)
    with ckptdiff.Patch.from_bytes(arrays.to_bytes()) as again:
        assert "2 tensors" in repr(again) and set(again.names) == {"w", "k"} and again.totals.changed == 8
        assert again.nbytes == len(arrays.to_bytes())


def test_numpy_arrays_are_patched_without_torch(tmp_path: Path) -> None:
    code = """
import sys; sys.modules["torch"] = None
import numpy as np, ckptdiff
old, new = {"w": np.arange(9)}, {"w": np.arange(9) * 2}
ckptdiff.diff(old, new).apply_(old)
assert (old["w"] == new["w"]).all()
try: ckptdiff.diff(old, new, device="cuda")
except ckptdiff.UnsupportedError as error: print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "the device cuda needs torch; in a clone of the ckptdiff repository: pip install '.[torch]'\n"


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
@pytest.mark.parametrize("name", ["grpo-lr1e-6", "grpo-fp32master-lr1e-6", "sft-lr1e-5"])
def test_real_pairs(name: str) -> None:
    """Real pairs give the same bytes from files and from memory, and the target's weights in place."""
    base, target = SHARED_DATA / "tiny6m-base" / "model.safetensors", SHARED_DATA / f"tiny6m-{name}" / "model.safetensors"
    old, new = safetensors_torch.load_file(base), safetensors_torch.load_file(target)
    for codec in ("sparse", "context"):
        patch = ckptdiff.diff(old, new, codec=codec)
        assert ckptdiff.diff(old, new, codec=codec, device="cpu").to_bytes() == patch.to_bytes()
        model = copy_of(old)
        patch.apply_(model)
        assert equal(model, new)

"""Tensors in memory: ``diff``, ``Patch``, ``LoadedPatch``, on the host and by way of a torch device."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.errors import BaseMismatchError, CheckpointError, FormatError, IntegrityError, UnsupportedError
from ckptdiff.live import switch as loaded_module
from tests.support.checkpoints import SHARED_DATA

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'ckptdiff[torch]'")
safetensors_torch = pytest.importorskip("safetensors.torch")

from ckptdiff.device.leaves import leaf_digests  # noqa: E402
from ckptdiff.format.digests import BLOCK, leaves_of  # noqa: E402
from ckptdiff.format.dtypes import DTYPES  # noqa: E402
from ckptdiff.patching.encode_on_device import DeviceEncoder  # noqa: E402
from ckptdiff.patching.torch_dtypes import NAMES  # noqa: E402

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
    made = torch.empty(shape, dtype=getattr(torch, NAMES[dtype][0] or ""))
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
    old = {name.lower(): tensor(rng, name, (size, 24)) for name, (torch_name, _) in NAMES.items() if hasattr(torch, torch_name or "-")}
    old |= {"large": tensor(rng, "BF16", (3, BLOCK // 4 + 7)), "scalar": tensor(rng, "F32", ()), "empty": tensor(rng, "F32", (0, 3))}
    new = {name: nudge(rng, array, share) for name, array in old.items()}
    old["tied"], new["tied"], new["same"] = old["bf16"], new["bf16"], tensor(rng, "F16", (7,))
    old["same"] = new["same"].clone()
    return old, new


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.002, 0.6])
def test_there_and_back(codec: str | None, share: float) -> None:
    old, new = pair(share)
    patch = ckptdiff.Patch.from_bytes(ckptdiff.diff(old, new, codec=codec).to_bytes())
    model = copy_of(old)
    loaded = patch.load(model)
    assert equal(model, old) and not loaded.applied
    for _ in range(3):
        loaded.apply_()
        assert equal(model, new) and loaded.applied
        loaded.revert_()
        assert equal(model, old)
    loaded.apply_(check=False)
    assert equal(model, new) and model["tied"] is model["bf16"]
    model = copy_of(old)
    patch.apply_(model)
    assert equal(model, new)


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_do_not_depend_on_threads_or_device(codec: str | None) -> None:
    """E1: the host's kernels, and torch's operations on its CPU device."""
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
        for device in (None, "cpu"):
            out = tmp_path / f"{patch}-{device}.safetensors"
            ckptdiff.apply(base, tmp_path / f"{patch}.safetensors", out, device=device)
            assert out.read_bytes() == target.read_bytes()
    assert ckptdiff.verify(tmp_path / "memory.safetensors", base=base, target=target).ok
    (problem,) = ckptdiff.verify(tmp_path / "memory.safetensors", target=base).problems
    assert "has the digest" in problem.message
    assert equal(ckptdiff.load_target(base, tmp_path / "memory.safetensors"), new)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]), st.sampled_from(CODECS))
def test_any_pair(seed: int, share: float, codec: str | None) -> None:
    rng = np.random.default_rng(seed)
    names = [name for name, (torch_name, _) in NAMES.items() if hasattr(torch, torch_name or "-")]
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


@pytest.mark.parametrize("extra", [0, 1, 63, 64, BLOCK - 1])
def test_xxh3_of_torch_is_xxhash(extra: int) -> None:
    data = torch.from_numpy(np.random.default_rng(extra).integers(0, 256, 2 * BLOCK + extra, dtype=np.uint8))
    empty = torch.empty(0, dtype=torch.uint8)
    assert leaf_digests([data, empty, data[: BLOCK + 1]]) == [leaves_of(data.numpy()), [], leaves_of(data[: BLOCK + 1].numpy())]
    special = torch.full((BLOCK,), 255, dtype=torch.uint8)
    assert leaf_digests([special, torch.zeros_like(special)]) == [leaves_of(special.numpy()), leaves_of(np.zeros(BLOCK, np.uint8))]


def test_moves_on_a_device() -> None:
    """What tensors on an accelerator go through, on torch's CPU device: every dtype, few changes and many, there and back."""
    from ckptdiff.device.ops import changes, move, units_of, zigzag

    rng = np.random.default_rng(5)
    for name, share in ((name, share) for name in DTYPES for share in (0.01, 0.9)):
        dtype = DTYPES[name]
        old = torch.from_numpy(rng.integers(0, 256, 8 * 999, dtype=np.uint8))
        new = torch.where(
            torch.from_numpy(rng.random(len(old)) < share), torch.from_numpy(rng.integers(0, 256, len(old), dtype=np.uint8)), old
        )
        positions, distances = changes(units_of(old, dtype), units_of(new, dtype), dtype)
        state = old.clone()
        for back, expected in ((False, new), (True, old)):
            move(units_of(state, dtype), positions.int(), zigzag(distances), dtype, back)
            assert torch.equal(state, expected), name
        every = torch.zeros_like(units_of(old, dtype))
        every[positions] = zigzag(distances)
        for back, expected in ((False, new), (True, old)):
            move(units_of(state, dtype), None, every, dtype, back)
            assert torch.equal(state, expected), name


def test_tensors_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that the host cannot see, as on an accelerator: torch tensors stand for them that numpy is kept from."""
    import ckptdiff.patching.torch_dtypes as types

    plain = types.flat_bytes
    monkeypatch.setattr("ckptdiff.patching.memory.flat_bytes", lambda array, where: torch.from_numpy(np.asarray(plain(array, where))))
    for share in (0.01, 0.6):
        old, new = pair(share)
        for codec in CODECS:
            data = ckptdiff.diff(old, new, codec=codec).to_bytes()
            with monkeypatch.context() as host:
                host.setattr("ckptdiff.patching.memory.flat_bytes", plain)
                assert ckptdiff.diff(old, new, codec=codec).to_bytes() == data
            model = copy_of(old)
            loaded = ckptdiff.Patch.from_bytes(data).load(model)
            loaded.apply_()
            assert equal(model, new)
            loaded.revert_()
            assert equal(model, old)


def test_several_patches_of_one_base() -> None:
    old, first = pair(0.01, 1)
    second = {name: nudge(np.random.default_rng(9), array, 0.02) for name, array in old.items()}
    second["tied"] = second["bf16"]
    model = copy_of(old)
    a, b = (ckptdiff.diff(old, new).load(model) for new in (first, second))
    for _ in range(3):
        for loaded, expected in ((a, first), (b, second)):
            loaded.apply_()
            assert equal(model, expected)
            loaded.revert_()
    a.apply_()
    with pytest.raises(BaseMismatchError, match=r"it is not the base: is another patch applied\? Nothing was written"):
        b.apply_()
    assert equal(model, first)
    with pytest.raises(BaseMismatchError, match="is applied already: revert it first"):
        a.apply_()
    model["f32"].view(torch.uint8)[0, 0] ^= 1
    with pytest.raises(BaseMismatchError, match=r"tensor f32 has the digest .* it was changed since the patch was applied"):
        a.revert_()
    model["f32"].view(torch.uint8)[0, 0] ^= 1
    a.revert_()
    with pytest.raises(BaseMismatchError, match="is not applied, there is nothing to revert"):
        a.revert_()
    assert equal(model, old)


def test_tensors_that_were_replaced() -> None:
    """A loaded patch writes to the tensors that it was loaded for; where the model has others it says so."""
    module = torch.nn.Linear(8, 8)
    old = {name: part.clone() for name, part in module.state_dict().items()}
    loaded = ckptdiff.diff(old, {name: part + 1 for name, part in old.items()}).load(module)
    module.double().float()
    with pytest.raises(BaseMismatchError, match=r"tensor \w+ is not the one that the patch was loaded for: was the model cast, moved"):
        loaded.apply_()
    loaded = ckptdiff.diff(old, {name: part + 1 for name, part in old.items()}).load(old)
    del old["bias"]
    with pytest.raises(BaseMismatchError, match="tensor bias is not the one"):
        loaded.apply_()


def test_patches_are_not_stacked() -> None:
    """A patch of one tensor is not applied to a base whose other tensors another patch has moved."""
    old = {name: torch.zeros(9) for name in "ab"}
    first, second = (ckptdiff.diff(old, {**old, name: old[name] + 1}).load(old) for name in "ab")
    first.apply_()
    with pytest.raises(BaseMismatchError, match=r"tensor a .* it is not the base: is another patch applied\?"):
        second.apply_()
    assert old["a"].eq(1).all() and old["b"].eq(0).all()


def test_threads() -> None:
    """Two threads that switch one patch: one does, the other hears that it is done."""
    old, new = pair()
    for _ in range(5):
        model, errors = copy_of(old), []
        loaded = ckptdiff.diff(old, new).load(model)

        def switch(loaded: Any = loaded, errors: list[str] = errors) -> None:
            try:
                loaded.apply_()
            except BaseMismatchError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=switch) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 2 and "is applied already" in errors[0] and equal(model, new)


def test_backward_through_a_switch_fails() -> None:
    module = torch.nn.Linear(4, 4)
    new = {name: part + 1 for name, part in module.state_dict().items()}
    patch, inputs = ckptdiff.diff(module, new), torch.randn(2, 4, requires_grad=True)
    loss = module(inputs).sum()
    patch.apply_(module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_chains_and_wrong_bases() -> None:
    old, new = pair()
    newer = {name: nudge(np.random.default_rng(3), array, 0.05) for name, array in new.items()}
    newer["tied"] = newer["bf16"]
    first, second = ckptdiff.diff(old, new), ckptdiff.diff(new, newer, codec="context")
    assert second.base_identity == first.target_identity
    model = copy_of(old)
    with pytest.raises(BaseMismatchError, match=r"the model: is not the base of the patch: its tensor .* has the digest"):
        second.apply_(model)
    assert equal(model, old)
    first.apply_(model)
    with pytest.raises(BaseMismatchError, match="is already the target of the patch") as caught:
        first.apply_(model)
    assert caught.value.kind == "already_target"
    second.apply_(model)
    assert equal(model, newer)
    del model["f32"]
    with pytest.raises(BaseMismatchError, match="it has no tensor f32"):
        second.load(model)


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_all_or_nothing(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result, an error in the middle, Ctrl-C: the base is as it was."""
    old, new = pair()
    model = copy_of(old)
    loaded = ckptdiff.diff(old, new, codec=codec).load(model)
    loaded._moves[-1].digest = bytes(16)
    with pytest.raises(IntegrityError, match=r"came out with the digest .*, expected 0000.* it was taken back"):
        loaded.apply_()
    assert equal(model, old) and not loaded.applied
    plain, count = loaded_module._shift, 0

    def failing(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(loaded_module, "_shift", failing)
    with pytest.raises(KeyboardInterrupt):
        loaded.apply_()
    assert equal(model, old)


def test_broken_patches() -> None:
    old, new = pair()
    data = ckptdiff.diff(old, new).to_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        with pytest.raises((FormatError, CheckpointError)):
            ckptdiff.Patch.from_bytes(data[:cut])
    broken = bytearray(data)
    broken[-5] ^= 1
    with pytest.raises(IntegrityError, match="its payload has the digest"):
        ckptdiff.Patch.from_bytes(bytes(broken))


def test_tensors_that_cannot_be_read_in_place() -> None:
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


def test_what_cannot_be_done_in_place() -> None:
    rng = np.random.default_rng(1)
    old = {"a": tensor(rng, "BF16", (5, 8)), "b": tensor(rng, "BF16", (5, 8))}
    grown = {**old, "a": tensor(rng, "BF16", (6, 8))}
    with pytest.raises(
        UnsupportedError, match=r"the tensor a, BF16 \[6, 8\]; the model has it as BF16 \[5, 8\]: it cannot be written in place"
    ):
        ckptdiff.diff(old, grown).load(old)
    with pytest.raises(UnsupportedError, match=r"the tensor c, .*; the model has no such tensor"):
        ckptdiff.diff(old, {**old, "c": tensor(rng, "F32", (2,))}).load(old)
    tied = {"a": old["a"], "b": old["a"]}
    untied = {"a": old["a"].clone(), "b": nudge(rng, old["a"], 0.5)}
    with pytest.raises(
        UnsupportedError, match="a and b share memory, but the target of the patch has two contents for them: untie them first"
    ):
        ckptdiff.diff({"a": old["a"], "b": old["a"].clone()}, untied).load(tied)
    storage = torch.zeros(100)
    views = {"a": storage[:60], "b": storage[50:], "c": storage[:10]}
    for names in ("ab", "ac"):
        model = {name: views[name] for name in names}
        with pytest.raises(UnsupportedError, match=r"the model: \w and \w share a part of their memory: give a copy of one"):
            ckptdiff.diff(model, {name: view + 1 for name, view in model.items()}).apply_(model)
    apart = {"a": storage[:50], "b": storage[50:]}
    ckptdiff.diff(apart, {name: view + 1 for name, view in apart.items()}).apply_(apart)
    assert storage.eq(1).all()
    frozen = np.zeros(5, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(UnsupportedError, match="w: is read-only memory"):
        ckptdiff.diff({"w": frozen}, {"w": np.ones(5, np.float32)}).load({"w": frozen})


def test_new_content_and_other_names() -> None:
    """What a patch has as new, as a copy, or under another name, where the model has a place for it."""
    rng = np.random.default_rng(2)
    old = {"embed": tensor(rng, "BF16", (30, 8)), "head": tensor(rng, "BF16", (30, 8)), "gone": tensor(rng, "F32", (3,))}
    changed = nudge(rng, old["embed"], 0.2)
    new = {"embed": changed, "head": changed.clone()}
    patch = ckptdiff.diff({"embed": old["embed"], "gone": old["gone"]}, new)  # the base lacks the head: new, and a copy
    model = copy_of(old)
    loaded = patch.load(model)
    loaded.apply_()
    assert equal({k: model[k] for k in new}, new) and raw(model["gone"]) == raw(old["gone"])
    loaded.revert_()
    assert equal(model, old)
    wrapped = {f"module.model.{name}": array.clone() for name, array in old.items()}
    patch.apply_(wrapped)
    assert raw(wrapped["module.model.head"]) == raw(changed)
    renamed = ckptdiff.diff(old, {"x.embed": changed, "head": old["head"], "gone": old["gone"]}, rename=[r"x\.="])
    model = copy_of(old)
    renamed.apply_(model)
    assert raw(model["embed"]) == raw(changed)


def test_modules_and_numpy(tmp_path: Path) -> None:
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


def test_patch_folders(tmp_path: Path) -> None:
    """A folder with several scopes, as of a pipeline."""
    rng = np.random.default_rng(6)
    sides: dict[str, dict[str, State]] = {"base": {}, "target": {}}
    for part in ("unet", "vae"):
        sides["base"][part] = {"w": tensor(rng, "F16", (40, 8))}
        sides["target"][part] = {"w": nudge(rng, sides["base"][part]["w"], 0.1)}
        for name in ("base", "target"):
            (tmp_path / name / part).mkdir(parents=True)
            safetensors_torch.save_file(sides[name][part], tmp_path / name / part / "model.safetensors")
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "patch")
    with ckptdiff.Patch.open(tmp_path / "patch") as patch:
        with pytest.raises(UnsupportedError, match=r"has the scopes unet/model, vae/model: load them one by one, with scope="):
            patch.load(sides["base"]["vae"])
        with pytest.raises(CheckpointError, match="is a patch folder, not one patch file"):
            patch.to_bytes()
        model = copy_of(sides["base"]["vae"])
        with pytest.raises(BaseMismatchError, match="is not the base"):
            patch.load(model, scope="unet/model")
        patch.apply_(model, scope="vae/model")
        assert equal(model, sides["target"]["vae"])


def test_no_memory_is_held() -> None:
    """A hundred switches, by several threads' arrays: what the process holds does not grow."""
    old, new = pair(0.05)
    model = copy_of(old)
    loaded = ckptdiff.diff(old, new).load(model)
    assert loaded.nbytes < 3 * sum(len(raw(array)) for array in old.values())

    def held() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])

    for _ in range(20):
        loaded.apply_()
        loaded.revert_()
    before = held()
    for _ in range(100):
        loaded.apply_()
        loaded.revert_()
    assert held() - before < 20_000 and equal(model, old) and threading.active_count() < 20


def test_without_torch(tmp_path: Path) -> None:
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
    assert result.stdout == "the device cuda needs torch: pip install 'ckptdiff[torch]'\n"


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
@pytest.mark.parametrize("name", ["grpo-lr1e-6", "grpo-fp32master-lr1e-6", "sft-lr1e-5"])
def test_real_pairs(name: str) -> None:
    """E1 on the real pairs: the same bytes by both ways, and the target's weights in place."""
    base, target = SHARED_DATA / "tiny6m-base" / "model.safetensors", SHARED_DATA / f"tiny6m-{name}" / "model.safetensors"
    old, new = safetensors_torch.load_file(base), safetensors_torch.load_file(target)
    for codec in ("sparse", "context"):
        patch = ckptdiff.diff(old, new, codec=codec)
        assert ckptdiff.diff(old, new, codec=codec, device="cpu").to_bytes() == patch.to_bytes()
        model = copy_of(old)
        patch.apply_(model)
        assert equal(model, new)


def test_a_device_coder_reads_what_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cast and resized bases, and new tensors, go to the host's coder."""
    rng = np.random.default_rng(8)
    old = {"cast": tensor(rng, "BF16", (30, 4)), "rows": tensor(rng, "F32", (30, 4))}
    new = {"cast": old["cast"].float() * 1.01, "rows": tensor(rng, "F32", (33, 4)), "new": tensor(rng, "U8", (9,))}
    coder = DeviceEncoder(torch.device("cpu"))
    assert coder.groups > 1
    assert ckptdiff.diff(old, new, codec="context", device="cpu").to_bytes() == ckptdiff.diff(old, new, codec="context").to_bytes()

"""``Patch.load``: which models a patch can be loaded for, under which names, and which it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, CheckpointError, UnsupportedError
from tests.support import checkpoints

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
safetensors_torch = pytest.importorskip("safetensors.torch")

from tests.support.torch_states import State, copy_of, equal, nudge, pair, raw, tensor  # noqa: E402


def test_patches_are_applied_in_turn_and_to_no_wrong_base() -> None:
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


def test_what_cannot_be_done_in_place_is_refused() -> None:
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
        UnsupportedError, match="a and b share memory, but the target of the patch gives them different contents: untie them first"
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


def test_new_content_and_other_names_find_their_place() -> None:
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


def test_a_folder_of_several_scopes_is_loaded_scope_by_scope(tmp_path: Path) -> None:
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


def test_tensors_that_were_replaced_are_refused() -> None:
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


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    for name, byte in (("base", 1), ("target", 2)):
        checkpoints.write(tmp_path / f"{name}.safetensors", {"w": checkpoints.tensor("F6_E2M3", (8,), bytes([byte] * 6))})
    ckptdiff.make(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "patch")
    with pytest.raises(UnsupportedError, match=r"tensor w: torch \S+ has no dtype for F6_E2M3; ckptdiff apply writes it to a file$"):
        ckptdiff.load_target(tmp_path / "base.safetensors", tmp_path / "patch")

"""Folders with several scopes, and folders whose base and target are sharded differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import perturb, random_tensor, tree, write, write_sharded
from tests.support.layouts import LAYOUTS, lay_out
from tests.support.roundtrips import kinds, put, roundtrip


def test_scopes_of_a_diffusers_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    """Files of one folder repeat tensor names; each stands against the file of its own place."""
    files = [
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors", "text_encoder_2/model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    for k, file in enumerate(files):
        tensors = {"w": random_tensor(rng, "F16", [8, 8]), "bias": random_tensor(rng, "F16", [8])}
        write(tmp_path / "base" / file, tensors)
        write(tmp_path / "target" / file, {**tensors, "w": perturb(rng, tensors["w"], 0.05)} if k % 2 else tensors)
    put(tmp_path / "base", {"model_index.json": "{}", "unet/config.json": "{}"})
    put(tmp_path / "target", {"model_index.json": "{ }", "unet/config.json": "{}"})
    info = roundtrip(tmp_path, tmp_path / "base", tmp_path / "target")
    expected = {(file, name): "delta" if k % 2 and name == "w" else "same" for k, file in enumerate(files) for name in ("w", "bias")}
    assert kinds(info) == expected
    assert {row.bases for row in info.tensors} == {("w",), ("bias",)}


def test_sharded_variants_beside_each_other(tmp_path: Path, rng: np.random.Generator) -> None:
    """Shards and their ``.fp16`` variant, each with its own index, hold the same names in two scopes."""
    for folder, share in (("base", 0.0), ("target", 0.05)):
        fresh = np.random.default_rng(5)
        for variant, dtype in (("", "F32"), (".fp16", "F16")):
            a, b = (perturb(rng, random_tensor(fresh, dtype, [6, 6]), share) for _ in range(2))
            shards = {f"model-0000{k}-of-00002{variant}.safetensors": {name: data} for k, name, data in ((1, "a", a), (2, "b", b))}
            write_sharded(tmp_path / folder, shards, f"model.safetensors.index{variant}.json")
    assert roundtrip(tmp_path, tmp_path / "base", tmp_path / "target").totals.delta == 4


def test_a_component_is_added_and_one_removed(tmp_path: Path, rng: np.random.Generator) -> None:
    """A folder gains a scope and loses another, whose tensor it has, which tells which of two scopes of equal names is its base."""
    w, v = random_tensor(rng, "F32", [5, 5]), random_tensor(rng, "F32", [6, 6])
    for folder, files in (("base", {"unet": w, "safety_checker": v}), ("target", {"unet": perturb(rng, w, 0.1), "prior": v})):
        for name, data in files.items():
            write(tmp_path / folder / name / "model.safetensors", {"w": data})
    info = roundtrip(tmp_path, tmp_path / "base", tmp_path / "target")
    assert kinds(info) == {("prior/model.safetensors", "w"): "same", ("unet/model.safetensors", "w"): "delta"}
    assert info.removed_files == ("safety_checker/model.safetensors",)


NUMBERS = tuple("abcdefghi")


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_base_and_target_sharded_differently(tmp_path: Path, rng: np.random.Generator, before: str, after: str) -> None:
    """However either side is split, only the tensor that changed is stored."""
    base = {name: random_tensor(rng, "BF16", [5, 4]) for name in NUMBERS}
    target = {**base, "d": perturb(rng, base["d"], 0.2)}
    info = roundtrip(tmp_path, lay_out(tmp_path / "base", base, before), lay_out(tmp_path / "target", target, after))
    assert {name: kind for (_, name), kind in kinds(info).items()} == {name: "delta" if name == "d" else "same" for name in NUMBERS}
    assert info.removed_tensors == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resharded_base_is_the_same_base(tmp_path: Path, rng: np.random.Generator, layout: str) -> None:
    """A patch made from one split of the base applies to any other, and to its single file."""
    base = {name: random_tensor(rng, "BF16", [5, 4]) for name in NUMBERS}
    target = {**{name: perturb(rng, data, 0.1) for name, data in base.items()}, "c": base["c"]}
    made_from = lay_out(tmp_path / "base", base, "two shards")
    wanted = lay_out(tmp_path / "target", target, "three shards")
    ckptdiff.make(made_from, wanted, tmp_path / "p")
    other = lay_out(tmp_path / "other", dict(reversed(base.items())), layout)
    ckptdiff.apply(other, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(wanted)
    ckptdiff.make(other, wanted, tmp_path / "p2")
    assert ckptdiff.info(tmp_path / "p2").base_identity == ckptdiff.info(tmp_path / "p").base_identity
    if layout == "one file":
        ckptdiff.apply(other / "model.safetensors", tmp_path / "p", tmp_path / "out2")
        assert tree(tmp_path / "out2") == tree(wanted)


def test_base_as_folder_or_as_file(tmp_path: Path, rng: np.random.Generator) -> None:
    """For a patch file and for a patch folder the base may be given either way, in make and in apply."""
    w = random_tensor(rng, "BF16", [30, 10])
    as_file = write(tmp_path / "base" / "model.safetensors", {"w": w})
    target = write(tmp_path / "target" / "model.safetensors", {"w": perturb(rng, w, 0.1)})
    for j, goal in enumerate((target, target.parent)):
        for k, made_from in enumerate((as_file, as_file.parent)):
            patch = tmp_path / f"p{j}{k}"
            ckptdiff.make(made_from, goal, patch)
            for m, base in enumerate((as_file, as_file.parent)):
                out = tmp_path / f"out{j}{k}{m}"
                ckptdiff.apply(base, patch, out)
                assert tree(out) == tree(goal)
        assert tree(tmp_path / f"p{j}0") == tree(tmp_path / f"p{j}1")


def test_one_file_out_of_a_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    """A patch file is made from the scope of a folder that has the file's name, and needs only that."""
    w = random_tensor(rng, "BF16", [30, 10])
    for name in ("model", "adapter"):
        write(tmp_path / "base" / f"{name}.safetensors", {"w": w if name == "model" else perturb(rng, w, 0.5)})
    target = write(tmp_path / "model.safetensors", {"w": perturb(rng, w, 0.01)})
    assert roundtrip(tmp_path, tmp_path / "base", target).totals.delta == 1
    ckptdiff.apply(tmp_path / "base" / "model.safetensors", tmp_path / "the patch", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)

"""apply: chains of patches, only some tensors, any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import ckptdiff
from tests.support.checkpoints import BITS, perturb, random_tensor, tensor, tree, write
from tests.support.layouts import busy, steps
from tests.support.refusals import refused
from tests.support.roundtrips import MIB2, pair, put
from tests.support.safetensors_views import library_view
from tests.support.small_pair import Pair


@pytest.mark.parametrize("rows", [20, (MIB2 + MIB2 // 2) // 8 + 1], ids=["small", "blocks"])
def test_chain_of_patches(tmp_path: Path, rng: np.random.Generator, rows: int) -> None:
    """Three patches in a row give the same bytes as one after the other, for each end of the chain."""
    checkpoints = steps(tmp_path, rng, rows)
    patches = []
    for k in range(3):
        patches.append(tmp_path / f"patch{k}")
        ckptdiff.make(checkpoints[k], checkpoints[k + 1], patches[k])
    seen = [{row.name: row.kind for row in ckptdiff.info(patch).tensors} for patch in patches]
    assert seen[0] == {"w": "delta", "e": "delta", "head": "copy", "s": "same", "fresh": "new"}
    assert seen[1] == {"module.w": "delta", "module.e": "same", "module.head": "delta", "moved": "same", "module.fresh": "same"}
    assert seen[2] == {"w": "delta", "e": "same", "head": "same", "s": "same", "fresh": "same"}
    for k in range(3):
        for j in range(k, 3):
            out = tmp_path / f"out{k}{j}"
            ckptdiff.apply(checkpoints[k], patches[k : j + 1], out, threads=1 + j)
            assert tree(out) == tree(checkpoints[j + 1]), (k, j)


def test_chain_of_patch_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """Patches of single files whose names differ; the chain may end in a patch folder too."""
    w = random_tensor(rng, "F32", [50])
    tensors, files = {"w": w, "keep": w}, []
    for k in range(4):
        files.append(write(tmp_path / f"step {k}" / f"model{k}.safetensors", tensors, pad=k + 1))
        tensors = {"w": perturb(rng, tensors["w"], 0.1), "keep": w}
    goals = [*files[:3], files[3].parent]
    patches = [tmp_path / f"p{k}" for k in range(3)]
    for k in range(3):
        ckptdiff.make(files[k], goals[k + 1], patches[k])
    ckptdiff.apply(files[0], patches[:2], tmp_path / "out2")
    assert tree(tmp_path / "out2") == tree(files[2])
    ckptdiff.apply(files[0], patches, tmp_path / "out3")
    assert tree(tmp_path / "out3") == tree(goals[3])


def test_a_chain_that_never_changes_anything(tmp_path: Path, two_folders: tuple[Path, Path]) -> None:
    """Patches without any change, applied over and over."""
    put(two_folders[0], {"config.json": "{}"})
    ckptdiff.make(two_folders[0], two_folders[0], tmp_path / "p")
    ckptdiff.apply(two_folders[0], [tmp_path / "p"] * 5, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(two_folders[0])


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_apply_with_any_number_of_threads(tmp_path: Path, rng: np.random.Generator, threads: int) -> None:
    """The number of threads does not change what is rebuilt."""
    base, target = busy(tmp_path, rng)
    ckptdiff.make(base, target, tmp_path / "p")
    ckptdiff.apply(base, tmp_path / "p", tmp_path / "out", threads=threads)
    assert tree(tmp_path / "out") == tree(target)


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["w"], {"w"}),
        (["head"], {"head"}),
        (["*"], {"w", "e", "head", "s", "fresh"}),
        (["[ew]", "fr?sh"], {"e", "w", "fresh"}),
        (["s", "*s*"], {"s", "fresh"}),
    ],
)
def test_only_some_tensors(tmp_path: Path, rng: np.random.Generator, globs: list[str], names: set[str]) -> None:
    """``only`` gives one valid safetensors file of just the tensors that match, after one patch and after a chain."""
    checkpoints = steps(tmp_path, rng, 20)
    patches = [tmp_path / f"patch{k}" for k in range(3)]
    for k in range(3):
        ckptdiff.make(checkpoints[k], checkpoints[k + 1], patches[k])
    for count in (1, 3):
        out = tmp_path / f"only{count}.safetensors"
        result = ckptdiff.apply(checkpoints[0], patches[:count], out, only=globs)
        whole = {}
        for shard in checkpoints[count].rglob("*.safetensors"):
            whole |= library_view(shard.read_bytes())
        assert library_view(out.read_bytes()) == {name: whole[name] for name in names}
        assert result.tensors == len(names) and set(safe_open(out, "np").keys()) == names


@pytest.mark.parametrize("dtype", BITS)
def test_only_of_every_dtype(tmp_path: Path, rng: np.random.Generator, dtype: str) -> None:
    """``only`` from a patch file, for each dtype, with an odd number of bytes before it."""
    base = {"odd": tensor("U8", [3], b"abc"), "w": random_tensor(rng, dtype, [8, 4]), "x": random_tensor(rng, "F32", [5])}
    target = {**base, "w": perturb(rng, base["w"], 0.1)}
    pair(tmp_path, base, target)
    ckptdiff.apply(tmp_path / "base.safetensors", tmp_path / "the patch", tmp_path / "only.safetensors", only=["odd", "w"])
    assert library_view((tmp_path / "only.safetensors").read_bytes()) == {name: target[name] for name in ("odd", "w")}


def test_only_of_two_scopes(tmp_path: Path, rng: np.random.Generator) -> None:
    """``only`` may take tensors of several scopes, but not one name twice."""
    w, v = random_tensor(rng, "F32", [4]), random_tensor(rng, "F32", [4])
    for name in ("unet", "vae"):
        write(tmp_path / "base" / name / "model.safetensors", {"w": w, name: v})
    ckptdiff.make(tmp_path / "base", tmp_path / "base", tmp_path / "p")
    ckptdiff.apply(tmp_path / "base", tmp_path / "p", tmp_path / "out.safetensors", only=["unet", "vae"])
    assert library_view((tmp_path / "out.safetensors").read_bytes()) == {"unet": v, "vae": v}
    with pytest.raises(ckptdiff.OutputError, match="two scopes"):
        ckptdiff.apply(tmp_path / "base", tmp_path / "p", tmp_path / "out2.safetensors", only=["w"])
    with pytest.raises(ckptdiff.OutputError, match="none of its 4 tensors"):
        ckptdiff.apply(tmp_path / "base", tmp_path / "p", tmp_path / "out2.safetensors", only=["nothing"])
    assert not (tmp_path / "out2.safetensors").exists()


def test_only_that_matches_nothing_or_two_scopes(files: Pair, tmp_path: Path) -> None:
    text = (
        f"{files.patch}: --only 'zzz*' matches none of its 3 tensors, such as c, b.weight, a.weight: a glob is matched with the whole name"
    )
    with refused(ckptdiff.OutputError, text, tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors", only=["zzz*"])
    for side in ("b", "t"):
        for part in ("unet", "vae"):
            write(tmp_path / side / part / "model.safetensors", {"w": tensor("U8", (2,), b"ab")})
    ckptdiff.make(tmp_path / "b", tmp_path / "t", tmp_path / "p")
    with refused(ckptdiff.OutputError, "--only matches w of two scopes, unet/model and vae/model: narrow it", tmp_path):
        ckptdiff.apply(tmp_path / "b", tmp_path / "p", tmp_path / "out.safetensors", only=["w"])


def test_an_empty_chain(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.FormatError, "a chain has 1 to 64 patches, found 0", tmp_path):
        ckptdiff.apply(files.base, [], tmp_path / "out")

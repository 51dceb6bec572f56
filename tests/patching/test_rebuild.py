"""apply refuses a base or a chain that is not the patch's, before it writes anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import check_stored
from tests.support.checkpoints import bf16, perturb, tree, write
from tests.support.refusals import refused
from tests.support.small_pair import Pair, tensors


def test_wrong_base_names_the_first_tensor_and_the_base_it_wants(files: Pair, tmp_path: Path) -> None:
    base, _ = tensors()
    rng = np.random.default_rng(9)
    other = write(tmp_path / "other.safetensors", {n: perturb(rng, t, 0.5) if n != "a.weight" else t for n, t in base.items()})
    sha256 = tree(files.base)["."]
    wanted = f'It wants "base.safetensors" with the SHA-256 {sha256}'
    with refused(ckptdiff.BaseMismatchError, "its tensor b.weight has the digest", tmp_path, "wrong_base"):
        ckptdiff.apply(other, files.patch, tmp_path / "out.safetensors")
    with refused(ckptdiff.BaseMismatchError, wanted, tmp_path):
        ckptdiff.apply(other, files.patch, tmp_path / "out.safetensors")


def test_wrong_base_names_the_hub_repo_if_the_patch_knows_it(files: Pair, tmp_path: Path) -> None:
    from ckptdiff.patching.wrong_base import describe_base

    with open_patch(files.patch) as patch:
        patch.files[0].metadata.info.update({"base_repo": "org/model", "base_revision": "abc123"})
        assert describe_base(patch) == "It wants org/model@abc123"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "b.weight"}, "it has no tensor b.weight"),
        (lambda t: {**t, "b.weight": bf16(np.zeros(30))}, "its tensor b.weight is BF16, expected F32"),
        (lambda t: {**t, "a.weight": bf16(np.zeros((64, 40)))}, "its tensor a.weight has the digest"),
    ],
)
def test_wrong_base_by_header(change: object, text: str, files: Pair, tmp_path: Path) -> None:
    assert callable(change)
    other = write(tmp_path / "other.safetensors", change(tensors()[0]))
    with refused(ckptdiff.BaseMismatchError, text, tmp_path, "wrong_base"):
        ckptdiff.apply(other, files.patch, tmp_path / "out.safetensors")


def test_a_patch_applied_twice(files: Pair, folders: Pair, tmp_path: Path) -> None:
    for pair in (files, folders):
        with refused(ckptdiff.BaseMismatchError, "is already the target of", tmp_path, "already_target"):
            ckptdiff.apply(pair.target, pair.patch, tmp_path / "out")


def test_a_base_that_is_partly_the_target_is_a_wrong_base(files: Pair, tmp_path: Path) -> None:
    base, target = tensors()
    mixed = write(tmp_path / "mixed.safetensors", {**base, "a.weight": target["a.weight"]})
    with refused(ckptdiff.BaseMismatchError, "its tensor a.weight has the digest", tmp_path, "wrong_base"):
        ckptdiff.apply(mixed, files.patch, tmp_path / "out.safetensors")


def test_a_base_with_another_config(folders: Pair, tmp_path: Path) -> None:
    (folders.base / "config.json").write_text("{}")
    with refused(ckptdiff.BaseMismatchError, "is not the file that the patch needs: its SHA-256 is", tmp_path, "wrong_base"):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    (folders.base / "config.json").unlink()
    with refused(ckptdiff.BaseMismatchError, "config.json: the base has no such file, which the patch needs", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_base_and_patch_the_wrong_way_round(files: Pair, folders: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.FormatError, "are base and patch the wrong way round?", tmp_path):
        ckptdiff.apply(files.patch, files.base, tmp_path / "out.safetensors")
    plain = "not a ckptdiff patch, but a plain safetensors file; give what ckptdiff make wrote"
    with refused(ckptdiff.FormatError, f"{plain}: are base and patch the wrong way round?", tmp_path):
        ckptdiff.apply(folders.patch, folders.base, tmp_path / "out")
    folder = "it has no ckptdiff.json, but safetensors files, as a checkpoint has; give what ckptdiff make wrote"
    with refused(ckptdiff.FormatError, f"not a ckptdiff patch: {folder}: are base and patch the wrong way round?", tmp_path):
        ckptdiff.apply(folders.patch, folders.target, tmp_path / "out")
    with refused(ckptdiff.FormatError, folder, tmp_path) as found:
        ckptdiff.apply(folders.base, folders.target, tmp_path / "out")
    assert "wrong way round" not in str(found.value)
    with refused(ckptdiff.CheckpointError, "is a ckptdiff patch, not a checkpoint; rebuild its target with: ckptdiff apply", tmp_path):
        ckptdiff.make(folders.patch, folders.target, tmp_path / "out")


def test_a_chain_out_of_order_and_with_a_gap(files: Pair, tmp_path: Path) -> None:
    paths, rng = [files.target], np.random.default_rng(5)
    state = tensors()[1]
    for k in range(2):
        state = {name: perturb(rng, value, 0.01) for name, value in state.items()}
        paths.append(write(tmp_path / f"step{k}.safetensors", state, {"format": "pt"}))
        ckptdiff.make(paths[-2], paths[-1], tmp_path / f"patch{k}.safetensors")
    one, two, three = files.patch, tmp_path / "patch0.safetensors", tmp_path / "patch1.safetensors"
    ckptdiff.apply(files.base, [one, two, three], tmp_path / "ok.safetensors")
    assert tree(tmp_path / "ok.safetensors") == tree(paths[-1])
    for chain in ([one, three, two], [one, three], [two, one]):
        with refused(ckptdiff.BaseMismatchError, "put the patches in the order in which they were made, none left out", tmp_path):
            ckptdiff.apply(files.base, chain, tmp_path / "out.safetensors")
    with refused(ckptdiff.BaseMismatchError, "is not the base of", tmp_path, "wrong_base"):
        ckptdiff.apply(files.base, [two, three], tmp_path / "out.safetensors")


@pytest.mark.parametrize("only", [(), ("a.*",)])
def test_the_check_of_a_patch_comes_to_its_end(folders: Pair, only: tuple[str, ...]) -> None:
    """Whatever is checked: all of it, or what ``--only`` asks for."""
    steps: list[tuple[str, int, int]] = []
    with open_patch(folders.patch) as patch:
        check_stored(patch, only, lambda *step: steps.append(step))
    assert steps and steps[-1][1] == steps[-1][2] and [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert len({total for *_, total in steps}) == 1


def test_a_chain_has_a_limit(files: Pair) -> None:
    with open_patch(files.patch) as patch, pytest.raises(ckptdiff.FormatError, match="1 to 64 patches, found 65"):
        check_chain([patch] * 65)
    with pytest.raises(ckptdiff.FormatError, match="1 to 64 patches, found 0"):
        check_chain([])

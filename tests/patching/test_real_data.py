"""Real checkpoint pairs: the same files back, with every codec, and readable by the real library."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

import ckptdiff
from tests.support.checkpoints import SHARED_DATA, tree
from tests.support.real_pairs import BASE, TARGETS

CHANGED = {"tiny6m-grpo-lr1e-6": 80_953, "tiny6m-grpo-fp32master-lr1e-6": 2_014_290, "tiny6m-sft-lr1e-5": 670_238}

pytestmark = pytest.mark.skipif(not BASE.is_dir(), reason=f"the real checkpoint pairs are not at {SHARED_DATA}")


@pytest.mark.parametrize("codec", [None, "raw", "sparse", "context"])
@pytest.mark.parametrize("name", TARGETS)
def test_every_file_comes_back(name: str, codec: str | None, tmp_path: Path) -> None:
    target = SHARED_DATA / name
    result = ckptdiff.make(BASE, target, tmp_path / "patch", codec=codec)
    assert result.totals.changed == CHANGED[name]
    ckptdiff.apply(BASE, tmp_path / "patch", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)
    assert ckptdiff.verify(tmp_path / "patch", base=BASE, target=tmp_path / "out").ok
    assert ckptdiff.compare(target, tmp_path / "out").same
    if codec != "raw":
        assert result.patch_size < result.target_size / 5


def test_a_patch_is_a_safetensors_file(tmp_path: Path) -> None:
    ckptdiff.make(BASE, SHARED_DATA / TARGETS[0], tmp_path / "patch")
    with safe_open(tmp_path / "patch" / "patch" / "model.safetensors", "np") as file:
        names = set(file.keys())
        assert {"ckptdiff/table", "ckptdiff/header/model.safetensors", "ckptdiff/payloads"} == names
        assert all(file.get_tensor(name).dtype == "uint8" for name in names)


def test_one_tuned_model_as_the_base_of_another(tmp_path: Path) -> None:
    """A chain over three real models, in one patch and in two."""
    first, second = SHARED_DATA / TARGETS[0], SHARED_DATA / TARGETS[2]
    ckptdiff.make(BASE, first, tmp_path / "one")
    ckptdiff.make(first, second, tmp_path / "two")
    ckptdiff.apply(BASE, [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert tree(tmp_path / "out") == tree(second)

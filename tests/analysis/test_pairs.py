"""Reports of patches whose bases are adapted: casts, other shapes, pieces, and rows that were added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff import Mask
from ckptdiff.format.entry import Piece
from tests.support.casts import cast_bits
from tests.support.checkpoints import TensorData, perturb, random_tensor, tensor, write
from tests.support.commands import run
from tests.support.pieces import make_patch

BASE = {"w": [30, 8], "v": [30, 8]}


@pytest.fixture
def base(tmp_path: Path) -> dict[str, TensorData]:
    rng = np.random.default_rng(1)
    tensors = {name: random_tensor(rng, "BF16", shape) for name, shape in BASE.items()}
    write(tmp_path / "base.safetensors", tensors)
    return tensors


def report_of(folder: Path, target: dict[str, TensorData], pieces: dict[str, list[Piece]] | None = None) -> ckptdiff.Report:
    """The report of a base and the patch to a target."""
    write(folder / "target.safetensors", target)
    make_patch(folder / "base.safetensors", folder / "target.safetensors", folder / "patch.safetensors", pieces or {})
    return ckptdiff.report(folder / "base.safetensors", folder / "patch.safetensors", rank="all")


def test_rows_that_were_added_count_in_nothing_but_their_number(tmp_path: Path, base: dict[str, TensorData]) -> None:
    rng = np.random.default_rng(2)
    common = perturb(rng, base["w"], 0.1)
    same = report_of(tmp_path, {**base, "w": common})
    longer = tensor("BF16", [37, 8], common[2] + rng.bytes(7 * 16))
    found = report_of(tmp_path, {**base, "w": longer})
    assert found.against_zeros == 56 and same.against_zeros == 0 and found.unpaired == ()
    assert [(t.name, t.shape, t.counts) for t in found.tensors] == [(t.name, t.shape, t.counts) for t in same.tensors]
    assert [t.ranks for t in found.tensors] == [t.ranks for t in same.tensors] and found.ulps == same.ulps
    shown = run("report", tmp_path / "base.safetensors", tmp_path / "patch.safetensors", "--rank", "none").stdout
    assert "added rows" in shown and "56 elements, in no number above" in shown
    mask = Mask.from_patch(tmp_path / "patch.safetensors", tmp_path / "base.safetensors")
    changed = np.frombuffer(common[2], "<u2") != np.frombuffer(base["w"][2], "<u2")
    assert mask.flags("w").shape == (37, 8) and mask.flags("w")[30:].all()  # what the base does not have counts as changed
    assert (mask.flags("w")[:30].reshape(-1) == changed).all()


def test_rows_beyond_a_block_are_checked_too(tmp_path: Path) -> None:
    """The digest of a tensor is that of all of it, also of blocks that no report reads."""
    rng = np.random.default_rng(3)
    old = random_tensor(rng, "U8", [100])
    write(tmp_path / "base.safetensors", {"w": old})
    found = report_of(tmp_path, {"w": tensor("U8", [100 + (5 << 20)], old[2] + rng.bytes(5 << 20))})
    assert found.against_zeros == 5 << 20 and [t.counts.elements for t in found.tensors] == [100]


def test_values_of_a_cast_tensor_are_compared_after_the_cast(tmp_path: Path, base: dict[str, TensorData]) -> None:
    wide = {name: tensor("F32", data[1], cast_bits("BF16-F32", np.frombuffer(data[2], "<u2"))) for name, data in base.items()}
    target = {**wide, "w": perturb(np.random.default_rng(4), wide["w"], 0.02)}
    found = report_of(tmp_path, target)
    changed = np.count_nonzero(np.frombuffer(target["w"][2], "<u4") != np.frombuffer(wide["w"][2], "<u4"))
    assert {t.name: (t.dtype, t.counts.changed) for t in found.tensors} == {"w": ("F32", changed), "v": ("F32", 0)}


def test_fused_tensors_are_compared_but_for_zeros_between_pieces(tmp_path: Path, base: dict[str, TensorData]) -> None:
    rng = np.random.default_rng(5)
    fused = perturb(rng, tensor("BF16", [60, 8], base["w"][2] + base["v"][2]), 0.05)
    gap = tensor("BF16", [62, 8], base["w"][2] + rng.bytes(32) + base["v"][2])
    both = [Piece("w", 0, 240), Piece("v", 0, 240)]
    found = report_of(tmp_path, {"fused": fused, "gap": gap}, {"fused": both, "gap": [both[0], Piece(None, 0, 16), both[1]]})
    changed = np.count_nonzero(np.frombuffer(fused[2], "<u2") != np.frombuffer(base["w"][2] + base["v"][2], "<u2"))
    assert [(t.name, t.shape, t.counts.elements, t.counts.changed, t.bases) for t in found.tensors] == [
        ("fused", (60, 8), 480, changed, ("w", "v")),
        ("gap", (60, 8), 480, 0, ("w", "v")),
    ]
    assert found.unpaired == () and found.against_zeros == 16

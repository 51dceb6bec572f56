"""``as_dtype``: both sides are cast while they are read. The oracle is torch: files of tensors that torch has cast, compared without it."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import ckptdiff
from ckptdiff import Mask
from ckptdiff.analysis.cast_on_read import cast_bytes, cast_dtype
from ckptdiff.analysis.pairs import open_source
from ckptdiff.errors import CheckpointError
from tests.support.casts import TIES
from tests.support.checkpoints import tensor, write
from tests.support.commands import run
from tests.support.reports import SCHEMA

torch = pytest.importorskip("torch")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = {"big": (3, 500_100), "small": (7, 5), "vector": (33,)}
"""The first has more than one block of 2^21 bytes in any dtype."""


def states(seed: int = 0) -> tuple[dict, dict]:
    rng = torch.Generator().manual_seed(seed)
    old = {name: torch.randn(shape, generator=rng) * 0.02 for name, shape in SHAPES.items()}
    new = {name: x + (torch.rand(x.shape, generator=rng) < 0.3) * torch.randn(x.shape, generator=rng) * 1e-4 for name, x in old.items()}
    return old, new


def to(state: dict, dtype: str) -> dict:
    return {name: x.to(DTYPES[dtype]) for name, x in state.items()}


def save(path: Path, state: dict) -> Path:
    from safetensors.torch import save_file

    save_file(state, path)
    return path


def plain(report: ckptdiff.Report) -> dict:
    """Tensors by name, without what tells how they are stored."""
    return {t.name: replace(t, scope="", base_dtype=None, target_dtype=None) for t in report.tensors}


@pytest.mark.parametrize("wanted", list(DTYPES))
def test_a_cast_is_torchs_bit_for_bit(wanted: str) -> None:
    """All 16-bit patterns, ties, subnormals, overflows, and random patterns of F32. A NaN stays one, though torch may drop its bits."""
    rng = np.random.default_rng(4)
    wide = np.concatenate([np.array(TIES, "<u4"), rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32)]).astype("<u4")
    patterns = {"F32": wide, "F16": np.arange(1 << 16).astype("<u2"), "BF16": np.arange(1 << 16).astype("<u2")}
    for stored, bits in patterns.items():
        values = torch.from_numpy(bits.view(f"<i{bits.itemsize}").copy()).view(DTYPES[stored])
        expected, width = values.to(DTYPES[wanted]), 4 if wanted == "F32" else 2
        found = cast_bytes(bits.view(np.uint8), stored, wanted).view(f"<u{width}")
        nan = torch.isnan(values).numpy()
        assert (found[~nan] == expected.view(torch.int32 if width == 4 else torch.int16).numpy().view(f"<u{width}")[~nan]).all()
        back = torch.from_numpy(found.view(f"<i{width}").copy()).view(DTYPES[wanted])
        assert torch.isnan(back).numpy()[nan].all() and nan.sum() > 0


@pytest.mark.parametrize("wanted", list(DTYPES))
@pytest.mark.parametrize(
    ("base", "target"), [("F32", "F32"), ("F32", "BF16"), ("BF16", "F32"), ("F32", "F16"), ("F16", "BF16"), ("BF16", "BF16")]
)
def test_a_report_is_that_of_what_torch_has_cast(tmp_path: Path, base: str, target: str, wanted: str) -> None:
    """Of two checkpoints, and of a patch; in memory; sparsity, moves, rows, ranks and overlaps."""
    old, new = (to(side, dtype) for side, dtype in zip(states(), (base, target), strict=True))
    sides = [save(tmp_path / f"{name}.safetensors", side) for name, side in (("base", old), ("target", new))]
    ready = [save(tmp_path / f"{name}-cast.safetensors", to(side, wanted)) for name, side in (("base", old), ("target", new))]
    expected = ckptdiff.report(*ready, rank="all")
    found = ckptdiff.report(*sides, rank="all", as_dtype=wanted.lower())
    assert found.cast == wanted and found.to_json()["settings"]["as"] == wanted and expected.cast is None
    jsonschema.validate(found.to_json(), SCHEMA)
    assert {t.base_dtype for t in found.tensors} == {base if base != wanted else None}
    assert {t.target_dtype for t in found.tensors} == {target if target != wanted else None}
    assert plain(found) == plain(expected) and {t.dtype for t in found.tensors} == {wanted}
    assert (found.ulps, found.moves, found.exponents) == (expected.ulps, expected.moves, expected.exponents)
    ckptdiff.make(*sides, tmp_path / "patch.safetensors")
    of_patch = ckptdiff.report(sides[0], tmp_path / "patch.safetensors", rank="all", as_dtype=DTYPES[wanted], threads=2)
    assert of_patch.tensors == found.tensors and plain(ckptdiff.report(old, new, rank="all", as_dtype=wanted)) == plain(found)
    both, truth = (
        ckptdiff.overlap([sides[1], tmp_path / "patch.safetensors"], sides[0], as_dtype=wanted),
        ckptdiff.overlap(ready[1:], ready[0]),
    )
    assert both.pairs[0].jaccard == 1.0 and both.to_json()["as"] == wanted
    assert [t.changed.tolist() for t in both.tensors] == [[int(t.changed[0])] * 2 for t in truth.tensors]
    assert Mask.from_patch(tmp_path / "patch.safetensors", sides[0], as_dtype=wanted) == Mask.from_patch(ready[1], ready[0])


def test_updates_in_several_dtypes_are_compared_once_they_are_cast(tmp_path: Path) -> None:
    old, new = states()
    updates = {"fp32": new, "bf16": to(new, "BF16")}
    found = ckptdiff.overlap(updates, old, as_dtype="bf16")
    assert found.names == ("fp32", "bf16") and found.pairs[0].jaccard == 1.0 and not found.left_out
    with pytest.raises(CheckpointError, match="no part of the base is in all updates in one dtype"):
        ckptdiff.overlap(updates, old)


def test_a_broken_patch_is_found_through_the_cast(tmp_path: Path) -> None:
    """Its digests are those of what is stored."""
    old, new = states()
    sides = [save(tmp_path / f"{name}.safetensors", side) for name, side in (("base", old), ("target", new))]
    patch = tmp_path / "patch.safetensors"
    ckptdiff.make(*sides, patch, codec="raw")
    other = save(tmp_path / "other.safetensors", {name: x + 1e-9 for name, x in old.items()})
    with pytest.raises(ckptdiff.BaseMismatchError):
        ckptdiff.report(other, patch, as_dtype="bf16")


@pytest.mark.parametrize("wanted", ["BF16", "F32"])
def test_readers_work_in_other_processes(tmp_path: Path, wanted: str) -> None:
    """As workers of Ray have them: what a copy read of a patch is checked here."""
    old, new = (to(side, "F32" if wanted == "BF16" else "BF16") for side in states())
    sides = [save(tmp_path / f"{name}.safetensors", side) for name, side in (("base", old), ("target", new))]
    ckptdiff.make(*sides, tmp_path / "patch.safetensors")
    for target in (sides[1], tmp_path / "patch.safetensors"):
        with open_source(sides[0], target, as_dtype=wanted) as source:
            for pair in source.pairs:
                copy = pickle.loads(pickle.dumps(pair))
                for start in pair.starts:
                    _, there = copy.read(start, start + copy.step)
                    expected = to(new, wanted)[pair.name].reshape(-1).view(torch.uint8)[start : start + pair.step]
                    assert (there == expected.numpy()).all()
                    pair.reader.give(start, copy.reader.take(start))
                pair.finish()


def test_other_dtypes_stay_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = {"i": tensor("I32", (50,), rng.integers(0, 9, 50).astype("<i4")), "w": tensor("F32", (4,), np.ones(4, "<f4"))}
    target = {"i": tensor("I32", (50,), rng.integers(0, 9, 50).astype("<i4")), "w": tensor("F32", (4,), np.full(4, 1.0001, "<f4"))}
    paths = [write(tmp_path / f"{name}.safetensors", side) for name, side in (("base", base), ("target", target))]
    found = {t.name: t for t in ckptdiff.report(*paths, as_dtype="bf16").tensors}
    assert found["i"].dtype == "I32" and found["w"].dtype == "BF16" and found["w"].counts.changed == 0 < found["i"].counts.changed


def test_names_of_dtypes_and_reports_that_cannot_be_stored(tmp_path: Path) -> None:
    for name in ("bf16", "BF16", "bfloat16", torch.bfloat16):
        assert cast_dtype(name) == "BF16"
    for name in ("int8", 16, "F64"):
        with pytest.raises(CheckpointError, match="as_dtype: expected one of bf16, f16, f32, found"):
            ckptdiff.report({}, {}, as_dtype=name)
    old, new = states()
    found = ckptdiff.report(old, new, as_dtype="bf16")
    with pytest.raises(
        CheckpointError, match="the report is of tensors cast to BF16, the patch of what is stored: report without as_dtype"
    ):
        found.to_bytes()


def test_the_command(tmp_path: Path) -> None:
    old, new = states()
    sides = [save(tmp_path / f"{name}.safetensors", side) for name, side in (("base", old), ("target", new))]
    text = run("report", *sides, "--as", "bf16", "--rank", "none").stdout
    assert (
        "as BF16, but for tensors of other dtypes than F32, F16 and BF16" in text
        and "3 tensors of the target after a cast from F32" in text
    )
    assert "no more than are equal by value: one step of BF16 is at least 0.392 % of |base|" in text
    assert "one step" not in run("report", *sides, "--as", "f16", "--rank", "none").stdout  # of 1e-3, a step of F16 may be within it
    value = json.loads(run("report", *sides, "--as", "bf16", "--rank", "none", "--json").stdout)
    assert value["totals"]["within_rtol"] == value["totals"]["equal"] and value["settings"]["as"] == "BF16"
    assert "compared  as BF16" in " ".join(run("overlap", sides[1], "--base", sides[0], "--as", "bf16").stdout.split(" ")).replace(
        "   ", "  "
    )
    wrong = run("report", *sides, "--as", "int8")
    assert wrong.exit_code == 2 and "'int8' is not one of" in wrong.output

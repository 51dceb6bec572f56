"""Counts of a report against an oracle: plain torch over whole models, with the paper's definitions (notes of arXiv 2505.11711)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.analysis.sparsity import COUNT_FIELDS, BlockCounter, Counts, Tolerance
from ckptdiff.analysis.values import element_bits, values_of
from ckptdiff.checkpoint.recognition import is_patch
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.verbs.report import report, report_patch
from tests.support.checkpoints import SHARED_DATA, tensor, write
from tests.support.real_pairs import BASE, TARGETS

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
load_file = pytest.importorskip("safetensors.torch").load_file


def oracle(base: dict[str, Any], target: dict[str, Any], atol: float, rtol: float) -> Counts:
    """As ``check_sparsity.py`` of the paper's code: deltas in the model's dtype, all of them in one tensor; and in float64."""
    names = [name for name in base if base[name].is_floating_point()]
    old, new = (torch.cat([model[name].flatten() for name in names]) for model in (base, target))
    delta, exact = new - old, new.double() - old.double()
    bits = {2: torch.int16, 4: torch.int32}[old.element_size()]
    return Counts(
        elements=old.numel(),
        bit_identical=int((old.view(bits) == new.view(bits)).sum()),
        equal=int((delta == 0).sum()),
        within_atol=int((exact.abs() <= atol).sum()),
        within_rtol=int((exact.abs() <= rtol * old.double().abs()).sum()),
        within_atol_rounded=int(torch.isclose(delta, torch.zeros_like(delta), atol=atol).sum()),
        one_ulp=int((torch.nextafter(old, new) == new).logical_and(old != new).sum()),
        up=int((exact > 0).sum()),
        down=int((exact < 0).sum()),
    )


@pytest.mark.skipif(not BASE.exists(), reason=f"no real checkpoints in {SHARED_DATA}")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("atol", [1e-8, 1e-5, 1e-4])
def test_real_pairs_agree_with_torch(target: str, atol: float) -> None:
    found = report(BASE, SHARED_DATA / target, atol=atol, rank="none").totals
    expected = oracle(load_file(BASE / "model.safetensors"), load_file(SHARED_DATA / target / "model.safetensors"), atol, 1e-3)
    assert found == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_made_pairs_agree_with_torch(tmp_path: Path, dtype: str) -> None:
    """Zeros of both signs, subnormals, and differences next to the tolerance as it is and as it is rounded."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    base = {"a": (torch.randn(300, 40) * 0.02).to(kind), "b": torch.zeros(64, dtype=kind), "c": torch.full((400,), 1e-3).to(kind)}
    target = {name: t + (torch.randn(t.shape) * 1e-5).to(kind) * (torch.rand(t.shape) < 0.3) for name, t in base.items()}
    target["b"][:8] = -0.0
    target["c"][:100] = (base["c"][:100].double() + torch.linspace(0.99e-5, 1.01e-5, 100)).to(kind)
    from safetensors.torch import save_file

    save_file(base, tmp_path / "base.safetensors")
    save_file(target, tmp_path / "target.safetensors")
    found = report(tmp_path / "base.safetensors", tmp_path / "target.safetensors", rank="none").totals
    assert found == oracle(base, target, 1e-5, 1e-3)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_counted(name: str) -> None:
    """Against counts element by element in NumPy; histograms add up."""
    rng, row = np.random.default_rng(7), DTYPES[name]
    nbytes = 24 * 64 * 8
    old = rng.integers(0, 256, nbytes).astype(np.uint8) & (1 if name == "BOOL" else 255)
    new = np.where(rng.random(nbytes) < 0.1, rng.integers(0, 256, nbytes), old).astype(np.uint8) & (1 if name == "BOOL" else 255)
    elements = nbytes * 8 // row.bits
    counter = BlockCounter(name, Tolerance(0.5, 0.01))
    found = counter.count(old, new, elements // 64, 0)
    counts, histograms = Counts.from_numbers(found.numbers), counter.histograms()
    kind = "F32" if name == "C64" else name
    a, b = element_bits(old, kind), element_bits(new, kind)
    changed = a != b
    with np.errstate(invalid="ignore", over="ignore"):
        x, y = (values_of(bits, kind).astype(np.float64) for bits in (a, b))
        d = np.abs(y - x)
        assert counts.equal == int(np.sum(~changed | (x == y)))
        assert counts.within_atol == int(np.sum(~changed | (d <= 0.5)))
        assert counts.within_rtol == int(np.sum(~changed | ((d <= 0.01 * np.abs(x)) & np.isfinite(d))))
        assert (counts.up, counts.down) == (int(np.sum(y > x)), int(np.sum(y < x)))
    assert counts.elements == len(a) and counts.changed == changed.sum() == histograms.ulps.sum()
    assert histograms.exponents.sum() in (0, len(a)) and histograms.changed_exponents.sum() in (0, changed.sum())
    assert found.rows.tolist() == changed.reshape(64, -1).sum(1).tolist()
    assert found.columns.tolist() == changed.reshape(64, -1).sum(0).tolist()


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_moves_that_are_gathered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit moved by -6 to 6 ulps, over zero and beyond the infinities too: the same numbers as one by one, twice."""
    units = np.repeat(np.arange(1 << 16, dtype=np.uint16), 13)
    ordered = np.where(units >> 15, ~units, units | 1 << 15) + np.tile(np.arange(-6, 7), 1 << 16).astype(np.uint16)
    moved = np.where(ordered >> 15, ordered & 0x7FFF, ~ordered)
    old, new = (side.astype("<u2").view(np.uint8) for side in (units, moved))
    found = []
    for many in (0, 0, len(units) + 1):
        monkeypatch.setattr("ckptdiff.analysis.sparsity.MIN_MERGED_CHANGES", many)
        counter = BlockCounter(name, Tolerance())
        block = counter.count(old, new, 1 << 10, 0)
        histograms = counter.histograms()
        found.append(
            [
                x.tolist()
                for x in (block.numbers, block.rows, block.columns, histograms.ulps, histograms.moves, histograms.changed_exponents)
            ]
        )
    assert found[0] == found[1] == found[2] and Counts.from_numbers(found[0][0]).changed == 12 << 16
    assert (found[0][0][COUNT_FIELDS.index("one_ulp")]) > 1 << 16


def test_nan_equals_itself_only_by_bits() -> None:
    old = np.array([0x7FC0, 0x7FC0, 0x7FC1, 0x3F80], "<u2").view(np.uint8)
    new = np.array([0x7FC0, 0x7FC1, 0x3F80, 0x7FC0], "<u2").view(np.uint8)
    counts = Counts.from_numbers(BlockCounter("BF16", Tolerance()).count(old, new, 0, 0).numbers)
    assert counts == Counts(elements=4, bit_identical=1, equal=1, within_atol=1, within_rtol=1, within_atol_rounded=1, one_ulp=1)


@pytest.mark.parametrize("how", ["file", "folder"])
def test_a_patch_in_place_of_its_target(tmp_path: Path, how: str) -> None:
    """A report from base and patch is the one from base and target; a patch alone knows the changed ones."""
    rng = np.random.default_rng(5)
    name, shape = "model.layers.0.mlp.up_proj.weight", (3000, 700)
    units = (rng.normal(0, 0.02, 2_100_000).astype("<f4").view("<u4") >> 16).astype("<u2")
    moved = units + (rng.random(len(units)) < 0.02).astype("<u2")
    head, alone = tensor("U8", (5, 5), np.arange(25, dtype=np.uint8)), tensor("F32", (4,), np.arange(4, dtype="<u4"))
    old = {name: tensor("BF16", shape, units), "gone": alone, "lm_head.weight": head}
    new = {name: tensor("BF16", shape, moved), "lm_head.weight": head, "added": tensor("F32", (4,), np.arange(1, 5, dtype="<u4"))}
    places = (tmp_path / "base", tmp_path / "target")
    for place, tensors in zip(places, (old, new), strict=True):
        place.mkdir()
        write(place / "model.safetensors", tensors)
    base, target = places if how == "folder" else [place / "model.safetensors" for place in places]
    ckptdiff.make(base, target, tmp_path / "patch.safetensors")
    assert is_patch(tmp_path / "patch.safetensors") and not is_patch(base)
    with pytest.raises(ckptdiff.CheckpointError, match="no such: no such file or folder"):
        is_patch(tmp_path / "no such")
    by_target, by_patch = (report(base, path, rank="none").to_json() for path in (target, tmp_path / "patch.safetensors"))
    by_patch["target"] = by_target["target"]
    assert by_patch == by_target
    assert by_target["added"] == ["added"] and by_target["removed"] == ["gone"]
    totals, known = by_target["totals"], report_patch(tmp_path / "patch.safetensors").totals
    assert (known.elements, known.bit_identical) == (totals["elements"], totals["bit_identical"])

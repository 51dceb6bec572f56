"""report: what is counted and measured, against plain numpy and torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import ckptdiff
from ckptdiff.analysis.values import element_bits
from ckptdiff.errors import CheckpointError
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.verbs.report import QUANTILES, report
from tests.support.checkpoints import SHARED_DATA, tensor, write
from tests.support.commands import run
from tests.support.real_pairs import BASE, TARGETS
from tests.support.reports import SCHEMA


def test_sums_and_quantiles_are_those_of_plain_numpy(pair: tuple[Path, Path]) -> None:
    found = report(*pair, rank="none")
    assert found.totals == sum((t.counts for t in found.tensors), type(found.totals)())
    assert sum(c.elements for c in found.apart.values()) == found.totals.elements and set(found.apart) == {
        "matrices",
        "norm",
        "bias",
        "embedding",
    }
    assert sum(b.count for b in found.ulps) == sum(b.count for b in found.moves) == found.totals.changed
    assert sum(row.changed for row in found.exponents) == found.totals.changed
    assert sum(row.elements for row in found.exponents) == found.totals.elements
    by_name = {t.name: t for t in found.tensors}
    rows, columns = by_name["model.embed_tokens.weight"].rows, by_name["model.layers.0.mlp.experts.gate_up_proj"].columns
    old, new = (_units(path, "model.embed_tokens.weight", (90, 32)) for path in pair)
    assert rows == tuple(np.quantile((old != new).mean(1), QUANTILES))
    old, new = (_units(path, "model.layers.0.mlp.experts.gate_up_proj", (96, 48)) for path in pair)
    assert columns == tuple(np.quantile((old != new).mean(0), QUANTILES))


def _units(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + n])[name]["data_offsets"]
    return np.frombuffer(raw[8 + n + begin : 8 + n + end], "<u2").reshape(shape)


def test_threads_do_not_matter(pair: tuple[Path, Path]) -> None:
    assert report(*pair, threads=1).to_json() == report(*pair, threads=3).to_json()


def test_a_tensor_of_several_blocks_is_the_sum_of_its_rows(tmp_path: Path) -> None:
    """Rows that cross the ends of blocks of 2^21 bytes."""
    rng = np.random.default_rng(3)
    units = rng.integers(0x3C00, 0x3E00, (700, 3001)).astype("<u2")
    moved = units + (rng.random(units.shape) < rng.random((700, 1)) * rng.random(3001))
    pair = [write(tmp_path / f"{k}.safetensors", {"w": tensor("BF16", (700, 3001), x)}) for k, x in enumerate((units, moved))]
    row = report(*pair, rank="none").tensors[0]
    assert row.rows == tuple(np.quantile((units != moved).mean(1), QUANTILES))
    assert row.columns == tuple(np.quantile((units != moved).mean(0), QUANTILES))


@pytest.mark.parametrize(("name", "shape"), [("F6_E2M3", (2048, 2048)), ("F4", (2048, 3000)), ("C64", (400, 1000))])
def test_elements_that_do_not_fill_a_block(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    """Tensors of several blocks whose elements have 4, 6 or 64 bits; a patch in place of the target gives the same."""
    rng, nbytes = np.random.default_rng(1), int(np.prod(shape)) * DTYPES[name].bits // 8
    old = rng.integers(0, 256, nbytes).astype(np.uint8)
    new = np.where(rng.random(nbytes) < 0.01, rng.integers(0, 256, nbytes), old).astype(np.uint8)
    pair = [write(tmp_path / f"{k}.safetensors", {"w": tensor(name, shape, x)}) for k, x in enumerate((old, new))]
    kind = "F32" if name == "C64" else name
    changed = (element_bits(old, kind) != element_bits(new, kind)).reshape(shape[0], -1)
    found = report(*pair)
    assert (found.totals.elements, found.totals.changed) == (changed.size, changed.sum())
    assert found.tensors[0].rows == tuple(np.quantile(changed.mean(1), QUANTILES)) and found.tensors[0].ranks is None
    ckptdiff.make(*pair, tmp_path / "patch.safetensors")
    assert report(pair[0], tmp_path / "patch.safetensors").totals == found.totals
    both = ckptdiff.overlap([pair[1], tmp_path / "patch.safetensors"], pair[0])
    assert both.core == changed.sum() and both.pairs[0].same_direction == 1.0


def test_fp8_matrices_have_a_rank(tmp_path: Path) -> None:
    units = np.full((30, 20), 0x38, np.uint8)  # 1.0
    moved = units + np.eye(30, 20, dtype=np.uint8)
    pair = [write(tmp_path / f"{k}.safetensors", {"w": tensor("F8_E4M3", (30, 20), x)}) for k, x in enumerate((units, moved))]
    assert [row.spectrum.rank for row in report(*pair).tensors[0].ranks or ()] == [20]


def test_bad_arguments_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(CheckpointError, match=r"atol and rtol must be finite and not negative, found (-1\.0|nan|inf) and 0\.001"):
            report(*pair, atol=wrong)
    with pytest.raises(CheckpointError, match="unknown choice of ranks 'some': expected one of none, sample, all"):
        report(*pair, rank="some")  # type: ignore[arg-type]
    other = write(tmp_path / "other.safetensors", {"other": tensor("BF16", (3,), np.zeros(3, "<u2"))})
    with pytest.raises(CheckpointError, match=r"have nothing in common: .* are they of one model\?"):
        report(pair[0], other)


def test_unchanged_matrices_are_not_averaged(tmp_path: Path) -> None:
    """An update of 0 has no stable rank."""
    units = np.full((3, 20, 30), 0x3F80, "<u2")
    moved = units.copy()
    moved[1, np.arange(5), np.arange(5)] += 1
    pair = [write(tmp_path / f"{k}.safetensors", {"w.experts": tensor("BF16", x.shape, x)}) for k, x in enumerate((units, moved))]
    found = report(*pair, rank="all")
    assert found.rank is not None and (found.rank.matrices, found.rank.unchanged, found.rank.rank_share) == (1, 2, 5 / 20)
    assert abs(found.rank.stable_rank - 5) < 1e-12
    jsonschema.validate(found.to_json(), SCHEMA)
    assert "over 1 matrices (2 did not change)" in run("report", *pair).stdout
    assert report(pair[0], pair[0]).rank is None
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = found.to_frame()
    assert frame["rank_share"].tolist() == [0.25] and report(pair[0], pair[0]).to_frame()["stable_rank"].isna().all()


def test_infinities_are_not_near(tmp_path: Path) -> None:
    old, new = (np.array([x, 0x3F80], "<u2") for x in (0x7F80, 0x3F80))
    pair = [write(tmp_path / f"{k}.safetensors", {"w": tensor("BF16", (2,), x)}) for k, x in enumerate((old, new))]
    for base, target in (pair, pair[::-1]):
        assert (report(base, target).totals.within_rtol, report(base, target).totals.within_atol) == (1, 1)


def test_a_frame_has_a_row_for_each_tensor(pair: tuple[Path, Path]) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = report(*pair, rank="none").to_frame()
    assert set(frame["module"]) == {"embedding", "q", "experts", "norm", "bias"}
    assert frame["elements"].sum() == report(*pair, rank="none").totals.elements


@pytest.mark.skipif(not BASE.exists(), reason=f"no real checkpoints in {SHARED_DATA}")
@pytest.mark.parametrize("target", TARGETS)
def test_real_ranks_agree_with_torch(target: str) -> None:
    """Every matrix of every pair: the integer that the paper's ``update_rank.py`` gives."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    from safetensors.torch import load_file

    base, tuned = (load_file(folder / "model.safetensors") for folder in (BASE, SHARED_DATA / target))
    found = report(BASE, SHARED_DATA / target, rank="all")
    ranks = {t.name: t.ranks[0].spectrum.rank for t in found.tensors if t.ranks}
    expected = {
        name: int(torch.linalg.matrix_rank((tuned[name] - base[name]).float()))
        for name in base
        if "layernorm" not in name and base[name].ndim == 2
    }
    assert ranks == expected
    shares = [rank / min(base[name].shape) for name, rank in expected.items()]
    assert found.rank is not None and abs(found.rank.rank_share - sum(shares) / len(shares)) < 1e-12

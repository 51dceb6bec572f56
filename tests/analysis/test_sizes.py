"""How far sizes explain where an update lies, against torch; and sizes of updates inferred from places, of runs that are known."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

torch = pytest.importorskip("torch")

from ckptdiff.analysis.report_model import Report  # noqa: E402
from ckptdiff.analysis.report_stored import unpack  # noqa: E402
from ckptdiff.analysis.sizes import ExponentCounts, explained  # noqa: E402
from ckptdiff.verbs.report import report  # noqa: E402
from tests.support import null_oracles as oracle  # noqa: E402
from tests.support.checkpoints import tensor, write  # noqa: E402
from tests.support.real_pairs import BASE, TARGETS  # noqa: E402

needs_data = pytest.mark.skipif(not BASE.exists(), reason="needs the project's data")


@cache
def measured(target: str) -> Report:
    return report(BASE, BASE.parent / target, rank="none")


@needs_data
@pytest.mark.parametrize("target", TARGETS)
def test_counts_by_exponent_and_what_they_explain_are_those_of_torch(target: str) -> None:
    every, moved = [], []
    for row in measured(target).tensors:
        base, new = oracle.state("tiny6m-base")[row.name], oracle.state(target)[row.name]
        sizes, flags = oracle.exponents(base), oracle.changed(base, new)
        expected = {int(s): (int((sizes == s).sum()), int(flags[sizes == s].sum())) for s in sizes.unique()}
        assert row.exponents is not None
        assert {0 if e is None else e + 127: (n, c) for e, n, c in row.exponents.rows()} == expected
        if 0 < int(flags.sum()) < flags.numel():
            assert row.exponents.explained == pytest.approx(oracle.explained(sizes, flags), abs=1e-9)
        else:
            assert row.exponents.explained is None
        every.append(sizes.flatten())
        moved.append(flags.flatten())
    size = measured(target).sizes
    assert size is not None and size.explained == pytest.approx(oracle.explained(torch.cat(every), torch.cat(moved)), abs=1e-9)


@needs_data
@pytest.mark.parametrize("target", TARGETS)
def test_densities_are_predicted_from_all_matrices_together(target: str) -> None:
    found, names = measured(target), [t.name for t in measured(target).tensors if len(t.shape) == 2]
    sizes = [oracle.exponents(oracle.state("tiny6m-base")[name]).flatten() for name in names]
    moved = [oracle.changed(*(oracle.state(side)[name] for side in ("tiny6m-base", target))).flatten().double() for name in names]
    odds = torch.zeros(256, dtype=torch.float64)
    every, flags = torch.cat(sizes), torch.cat(moved)
    for size in every.unique():
        odds[size] = flags[every == size].mean()
    density = torch.stack([part.mean() for part in moved])
    predicted = torch.stack([odds[part].mean() for part in sizes])
    expected = 1 - float(((density - predicted) ** 2).sum() / ((density - density.mean()) ** 2).sum())
    assert found.sizes is not None and found.sizes.densities == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(10, 10), (30, 0)], Fraction(1)),
        ([(10, 5), (30, 15)], Fraction(0)),
        ([(4, 3), (0, 0), (4, 1)], Fraction(1, 4)),
        ([(7, 7)], None),
        ([(7, 0), (2, 0)], None),
        ([], None),
    ],
)
def test_what_bins_explain(rows: list[tuple[int, int]], expected: Fraction | None) -> None:
    assert explained(rows) == expected


def test_other_dtypes_have_no_exponents_and_parts_of_complex_numbers_count(tmp_path: Path) -> None:
    values = {"I8": np.arange(6, dtype=np.int8), "C64": np.array([1, 2, 0.5, 0, 3, 1], "<f4"), "F8_E4M3": np.full(6, 0x38, np.uint8)}
    paths = []
    for k in range(2):
        sides = {}
        for dtype, data in values.items():
            changed = data.copy()
            changed[1] += k
            sides[dtype] = tensor(dtype, (3,) if dtype == "C64" else (6,), changed)
        paths.append(write(tmp_path / f"{k}.safetensors", sides))
    rows = {t.name: t.exponents for t in report(*paths).tensors}
    assert rows["I8"] is None and rows["F8_E4M3"] == ExponentCounts((0, 0), 0, (6,), (1,))
    assert rows["C64"] == ExponentCounts((1, 0), -1, (1, 2, 2), (0, 0, 1))


def test_blocks_and_tensors_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptdiff.analysis.cast_on_read.BLOCK", 1 << 10)
    rng = np.random.default_rng(0)
    sides: list[dict[str, Any]] = [{}, {}]
    units = {name: rng.integers(0x3000, 0x4100, 5000, dtype=np.uint16) for name in "abc"}
    for name, old in units.items():
        new = old + (rng.random(5000) < 0.1).astype(np.uint16)
        for side, part in zip(sides, (old, new), strict=True):
            side[name] = tensor("BF16", (5000,), part)
    found = report(*(write(tmp_path / f"{k}.safetensors", side) for k, side in enumerate(sides)))
    for row in found.tensors:
        assert row.exponents is not None
        assert {e: n for e, n, _ in row.exponents.rows()} == Counter((units[row.name] >> 7).astype(int) - 127)
        assert sum(c for *_, c in row.exponents.rows()) == row.counts.changed


# --- what places tell of updates ---


def trained(folder: Path, steps: int, in_float32: bool, rate: float = 2e-5) -> tuple[Path, Path, Any]:
    """A base, what steps of a random walk with a drift made of it, and the update before it was rounded."""
    random = torch.Generator().manual_seed(0)
    shape = (512, 512)
    base = (0.02 * torch.randn(shape, generator=random)).bfloat16()
    weights = base.float() if in_float32 else base.clone()
    drift = torch.randn(shape, generator=random)
    for _ in range(steps):
        weights += (rate / steps * (drift + torch.randn(shape, generator=random))).to(weights.dtype)
    sides = [
        write(folder / f"{name}.safetensors", {"w": tensor("BF16", shape, side.bfloat16().view(torch.int16).numpy())})
        for name, side in (("base", base), ("target", weights))
    ]
    return sides[0], sides[1], weights.double() - base.double()


def test_updates_of_a_run_with_float32_weights_are_found_from_places(tmp_path: Path) -> None:
    base, target, update = trained(tmp_path, 20, in_float32=True)
    size = report(base, target, rank="none").sizes
    assert size is not None and size.updates is not None and size.updates.holds
    for share in (0.5, 0.1):
        truth = float(update.abs().flatten().quantile(1 - share))
        assert size.updates.exceeded_by(share) == pytest.approx(truth, rel=0.1)
    for above, share in size.updates.above:
        here = float((update.abs() > above).double().mean())
        assert share == pytest.approx(here, abs=0.02) or above < 1e-8  # few weights are so small


def test_nothing_is_inferred_of_a_run_with_bf16_weights(tmp_path: Path) -> None:
    base, target, _ = trained(tmp_path, 20, in_float32=False, rate=2e-4)
    size = report(base, target, rank="none").sizes
    assert size is not None and size.updates is not None and not size.updates.holds and size.updates.disagreement > 0.3


@needs_data
def test_real_runs_are_told_apart() -> None:
    found = {target: measured(target).sizes for target in TARGETS}
    assert [size.updates.holds for size in found.values() if size and size.updates] == [False, True, False]
    assert all(math.isfinite(size.updates.disagreement) for size in found.values() if size and size.updates)


def test_updates_of_other_dtypes_are_not_inferred(tmp_path: Path) -> None:
    values = np.linspace(0.01, 1, 64).astype("<f4")
    paths = [
        write(tmp_path / f"{k}.safetensors", {"w": tensor("F32", (64,), (values + k * 1e-6 * (values < 0.5)).astype("<f4"))})
        for k in range(2)
    ]
    size = report(*paths).sizes
    assert size is not None and size.updates is None


@needs_data
def test_a_frame_has_a_row_for_each_exponent_of_each_tensor() -> None:
    pytest.importorskip("pandas")
    found = measured(TARGETS[1])
    frame, tensors = found.to_frame("exponents"), found.to_frame()
    assert list(frame.groupby("name", sort=False)["elements"].sum()) == list(tensors["elements"])
    assert list(frame.groupby("name", sort=False)["changed"].sum()) == list(tensors["elements"] - tensors["bit_identical"])
    assert (frame["p_changed"] == frame["changed"] / frame["elements"]).all()
    shares = [t.exponents.explained for t in found.tensors if t.exponents is not None]
    assert [None if math.isnan(x) else x for x in tensors["explained"]] == shares


def test_a_report_that_would_be_too_large_is_stored_without_exponents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = np.arange(0x3C00, 0x3C00 + 2048, dtype="<u2")
    base, target = (
        write(tmp_path / f"{k}.safetensors", {"w": tensor("BF16", (2048,), units + (k * (units % 7 == 0)).astype("<u2"))}) for k in range(2)
    )
    found = report(base, target, rank="none")
    whole = unpack(found.to_bytes(), "a", "t")
    assert whole.tensors[0].exponents == found.tensors[0].exponents and whole.sizes == found.sizes
    size = len(zstandard.ZstdDecompressor().decompress(found.to_bytes()))
    monkeypatch.setattr("ckptdiff.analysis.report_model.MAX_REPORT", size - 1)
    small = unpack(found.to_bytes(), "a", "t")
    assert small.tensors[0].exponents is None and small.sizes is None and small.totals == found.totals

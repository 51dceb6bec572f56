"""Gaps in histograms are marked, and moves across zero are told apart wherever a report's sums can tell them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.pages import histograms, labels
from ckptdiff.pages.report_captions import captions
from tests.support.checkpoints import tensor, write

pytest.importorskip("altair", reason="needs ckptdiff[report]")

from ckptdiff.pages import report_charts


def report_of(folder: Path, dtype: str, base: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    sides = {"a.safetensors": base, "b.safetensors": target}
    paths = [write(folder / name, {"w": tensor(dtype, bits.shape, bits)}) for name, bits in sides.items()]
    return ckptdiff.report(*paths, rank="none").to_json()


def bf16(*values: float) -> np.ndarray:
    return (np.array(values, np.float32).view(np.uint32) >> 16).astype("<u2")


def test_what_crosses_zero_is_told_from_what_keeps_its_sign(tmp_path: Path) -> None:
    base = bf16(*[2.0**-10] * 6, *[2.0**-16] * 3)
    target = bf16(*[2.0**-10] * 6, *[-(2.0**-16)] * 3)
    target[:6] += np.array([1, 1, 2, 2, 5, 0], "<u2")
    report = report_of(tmp_path, "BF16", base, target)
    rows = histograms.ulp_rows(report)
    assert [(row["ulps"], row["count"], row["kind"]) for row in rows] == [
        ("1", 2, histograms.KEPT_SIGN),
        ("2–3", 2, histograms.KEPT_SIGN),
        ("4–7", 1, histograms.KEPT_SIGN),
        ("8–16,383", 0, histograms.NONE),
        ("16,384–32,767", 3, histograms.CROSSED),
    ]
    assert [row["label"] for row in rows[-2:]] == ["none", "37.5 % crossed zero"]
    text = captions(report)["ulps"]
    assert "The 3 that moved by 16,384 ulps or more crossed zero" in text
    assert "No weight moved by 8–16,383 ulps: the gap that crossings leave." in text
    (chart,) = (chart for chart in report_charts.charts(report) if chart.name == "ulps")
    assert chart.spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [histograms.KEPT_SIGN, histograms.CROSSED]
    assert chart.spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [row["ulps"] for row in rows]


SEEDS = range(8)


@pytest.mark.parametrize(("dtype", "bits", "width"), [("BF16", 16, "<u2"), ("F16", 16, "<u2"), ("F8_E4M3", 8, "u1"), ("F32", 32, "<u4")])
def test_no_claim_about_signs_is_wrong(dtype: str, bits: int, width: str, tmp_path: Path) -> None:
    """Whatever the bits are: in a bin that is said to have crossed zero all did, and in one that kept its sign all did."""
    claims = set().union(*(claims_of(seed, dtype, bits, width, tmp_path) for seed in SEEDS))
    assert {histograms.KEPT_SIGN, histograms.CROSSED} <= claims


def claims_of(seed: int, dtype: str, bits: int, width: str, tmp_path: Path) -> set[str]:
    """What is said of random moves, once it is checked."""
    rng = np.random.default_rng(seed)
    top = 1 << (bits - 1)
    low = int(rng.integers(0, top // 2))
    base = rng.integers(low, low + max(top // 8, 2), 300).astype(width)
    down, up = (1 << int(rng.integers(1, bits - 3)) for _ in range(2))
    moved = np.clip(base.astype(np.int64) + rng.integers(-down, up, 300), 0, top - 1)
    target = (moved + top * (rng.random(300) < 0.2)).astype(width)
    report = report_of(tmp_path, dtype, base, target)
    old, new = (side.astype(np.int64) for side in (base, target))
    signed = [np.where(x < top, x, top - x) for x in (old, new)]
    distances = np.abs(signed[0] - signed[1])
    crosses = (signed[0] > 0) & (new >= top) & (new != top)
    kept = (signed[0] != 0) & (new != 0) & (new < top)
    rows = histograms.ulp_rows(report)
    for row in rows:
        here = (old != new) & (distances >= row["from"]) & (distances <= (row["to"] or 1 << 60))
        if row["kind"] == histograms.CROSSED:
            assert crosses[here].all()
        if row["kind"] == histograms.KEPT_SIGN:
            assert kept[here].all()
    return {row["kind"] for row in rows}


def test_integers_only_moved(tmp_path: Path) -> None:
    report = report_of(tmp_path, "I8", np.arange(8, dtype="i1"), np.arange(8, dtype="i1")[::-1].copy())
    assert {row["kind"] for row in histograms.ulp_rows(report)} == {histograms.MOVED}
    (chart,) = (chart for chart in report_charts.charts(report) if chart.name == "ulps")
    assert chart.spec["layer"][0]["encoding"]["color"]["legend"] is None


def test_gaps_between_sizes_are_grey_and_named(tmp_path: Path) -> None:
    base = bf16(*[2.0**-20] * 8, *[1.0] * 4)
    report = report_of(tmp_path, "BF16", base, base + np.array([1] * 4 + [0] * 4 + [1] * 2 + [0] * 2, "<u2"))
    rows = histograms.size_rows(report)
    assert [(row["x"], row["x2"], row["value"]) for row in rows] == [(-27, -26, 2 / 3), (-7, -6, 1 / 3)]
    assert histograms.gaps(rows) == [{"x": -26, "x2": -7, "label": "none"}]
    assert "No weight changed by 2⁻²⁶ to 2⁻⁷ (grey)." in captions(report)["sizes"]
    assert "Grey: no weight of the base is of the size 2⁻¹⁹ to 2⁰." in captions(report)["exponents"]
    for chart in report_charts.charts(report):
        if chart.name in ("sizes", "exponents"):
            bands = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "rect"]
            assert len(bands) == 1 and bands[0]["mark"]["color"] == report_charts.GREY


def test_sizes_of_which_none_changed_are_told_from_sizes_that_no_weight_has(tmp_path: Path) -> None:
    base = bf16(*[2.0**-20] * 4, *[2.0**-3] * 4, *[0.25] * 4)
    report = report_of(tmp_path, "BF16", base, base + np.array([1] * 4 + [0] * 8, "<u2"))
    rows = histograms.exponent_rows(report)
    assert histograms.unchanged_runs(rows) == [{"x": -3, "x2": -1, "label": "none changed"}]
    assert f"Of the weights from {labels.power_of_two(-19)} on none changed." in captions(report)["exponents"]


def test_changes_without_a_size_are_counted(tmp_path: Path) -> None:
    report = report_of(tmp_path, "BF16", bf16(0.0, 1.0, 1.0), bf16(-0.0, np.inf, 2.0))
    assert " 2 have no size: they changed between −0 and +0, or to or from an infinity or a NaN." in captions(report)["sizes"]


def test_changes_of_nothing_but_nans(tmp_path: Path) -> None:
    """The binary exponent of NaNs of F64, 1024, is that of no number."""
    nans = np.full(4, np.nan)
    report = report_of(tmp_path, "F64", nans.view("<u8"), (nans.view("<u8") + 1).view("<u8"))
    assert [row["kind"] for row in histograms.ulp_rows(report)] == [histograms.KEPT_SIGN]

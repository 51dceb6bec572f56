"""Reports, overlaps and comparisons of odd but honest checkpoints: no traceback, no number that JSON lacks, nothing refused again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.analysis.modules import layer_of
from ckptdiff.analysis.report_model import Report
from ckptdiff.analysis.report_stored import unpack
from ckptdiff.cli import render, render_report
from ckptdiff.cli.render_overlap import print_overlap
from ckptdiff.errors import CheckpointError, FormatError
from ckptdiff.pages.overlap_page import render_overlap
from ckptdiff.pages.report_charts import charts
from ckptdiff.pages.report_page import render_page
from ckptdiff.verbs.report import report
from tests.support.checkpoints import BITS, TensorData, perturb, tensor, write
from tests.support.commands import run
from tests.support.reports import SCHEMA
from tests.support.strategies import examples_run

OVERLAP_SCHEMA = json.loads((Path(__file__).parents[2] / "spec" / "overlap.schema.json").read_text())
NAMES = [
    "w",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.99999999999999999999.self_attn.q_proj.weight",
    "h.18446744073709551616.attn.c_attn.weight",
    "layers.007.mlp.experts.down_proj",
    "layers.\u0663.k_proj.weight",
    "a\u202eb.bias",
    "\x1b[31m[red]<script>'\"&.weight",
    "x" * 300,
]
SHAPES = [(), (0,), (1,), (17,), (0, 3), (3, 0), (2, 0, 4), (1, 1), (1, 8), (8, 1), (6, 4), (3, 2, 2), (1, 2, 1, 4), (130, 4)]
FILLS = ["random", "zeros", "ones", "top", "near one"]


def filled(dtype: str, shape: tuple[int, ...], fill: str, seed: int) -> TensorData:
    """Random bits; or each byte 0, 0xff (NaN), 0x7f (NaN or the largest); or bytes of numbers near one."""
    size = int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
    rng = np.random.default_rng(seed)
    if fill == "random":
        return tensor(dtype, shape, rng.bytes(size))
    if fill == "near one":
        return tensor(dtype, shape, rng.integers(0x3C, 0x40, size, dtype=np.uint8))
    return tensor(dtype, shape, bytes([{"zeros": 0, "ones": 255, "top": 0x7F}[fill]]) * size)


@st.composite
def checkpoints(draw: st.DrawFn) -> list[dict[str, TensorData]]:
    """A base and two targets: the same, a little different, all different; or of other tensors."""
    sides: list[dict[str, TensorData]] = [{}, {}, {}]
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(BITS)))
        fits = [shape for shape in SHAPES if int(np.prod(shape, dtype=int)) * BITS[dtype] % 8 == 0]
        shape, fill, seed = draw(st.sampled_from(fits)), draw(st.sampled_from(FILLS)), draw(st.integers(0, 2**32))
        sides[0][name] = filled(dtype, shape, fill, seed)
        for k in (1, 2):
            how = draw(st.sampled_from(["same", "moved", "other content", "other shape", "none"]))
            if how == "same":
                sides[k][name] = sides[0][name]
            elif how == "moved":
                sides[k][name] = perturb(np.random.default_rng(seed + k), sides[0][name], 0.1)
            elif how == "other content":
                sides[k][name] = filled(dtype, shape, draw(st.sampled_from(FILLS)), seed + k)
            elif how == "other shape":
                sides[k][name] = filled("F32", draw(st.sampled_from(SHAPES)), "random", seed)
    return sides


@pytest.fixture(scope="module", autouse=True)
def _without_scripts() -> Any:
    """Pages without Vega's code, which does not look at the numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckptdiff.pages.templating.bundled", lambda: "")
        yield


def look_at_report(found: Report) -> dict[str, Any]:
    """Show a report in every form; returns its JSON."""
    value: dict[str, Any] = found.to_json()
    json.dumps(value, allow_nan=False)
    jsonschema.validate(value, SCHEMA)
    render_report.print_report(found, True)
    render_page(value)  # which takes no NaN and no infinity
    again = unpack(found.to_bytes(), "the report", "target")
    assert [(t.name, t.layer, t.counts) for t in again.tensors] == [(t.name, t.layer, t.counts) for t in found.tensors]
    assert again.sample == found.sample
    return value


@settings(max_examples=examples_run(25), deadline=None, phases=[Phase.explicit, Phase.generate])
@given(checkpoints(), st.sampled_from(["none", "sample", "all"]), st.sampled_from([0.0, 1e-5]), st.booleans())
def test_anything_can_be_measured(sides: list[dict[str, TensorData]], rank: Any, atol: float, series: bool) -> None:
    pytest.importorskip("altair", reason="altair is not installed: pip install '.[report]'")
    with tempfile.TemporaryDirectory() as folder:
        base, *targets = (write(Path(folder, f"{k}.safetensors"), side) for k, side in enumerate(sides))
        for target in targets:
            try:
                look_at_report(report(base, target, rank=rank, atol=atol))
                render.print_compare(ckptdiff.compare(base, target, atol=(atol,)), True)
            except CheckpointError as error:
                assert "have nothing in common" in str(error)
        try:
            both = ckptdiff.overlap(targets, base, atol=atol)
        except CheckpointError as error:
            assert "have nothing in common" in str(error) or "is in all updates in one dtype" in str(error)
        else:
            value = both.to_json()
            json.dumps(value, allow_nan=False)
            jsonschema.validate(value, OVERLAP_SCHEMA)
            print_overlap(both, series, True)
            render_overlap(both, series)


def both(folder: Path, old: dict[str, TensorData], new: dict[str, TensorData]) -> list[Path]:
    return [write(folder / f"{name}.safetensors", side) for name, side in (("base", old), ("target", new))]


def test_only_empty_tensors(tmp_path: Path) -> None:
    """The largest share of changed elements is asked for where there are no groups."""
    empty = {f"model.layers.{k}.mlp.up_proj.weight": tensor("BF16", (0, 3), b"") for k in range(3)}
    result = run("report", *both(tmp_path, empty, empty))
    assert result.exit_code == 0 and "0 in 3 tensors" in result.stdout and result.stderr == ""
    page = render_page(report(*(tmp_path / f"{name}.safetensors" for name in ("base", "target"))).to_json())
    assert "There are no weights to compare." in page


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layers.99999999999999999999.x", None),
        ("layers.1234567890.x", None),
        ("layers.123456789.x", 123456789),
        ("layers.0000000007.x", None),
        ("layers.\u0663.x", None),
        ("layers.99999999999999999999.h.4.x", 4),
    ],
)
def test_numbers_that_are_no_layers(tmp_path: Path, name: str, layer: int | None) -> None:
    """A report with such a layer was once refused when it was read again."""
    assert layer_of(name) == layer
    old, new = (tensor("F32", (4,), np.array([1, 2, 3, x], "<f4")) for x in (4, 5))
    paths = both(tmp_path, {name: old}, {name: new})
    assert look_at_report(report(*paths))["tensors"][0]["layer"] == layer
    ckptdiff.make(*paths, tmp_path / "patch.safetensors", report=report(*paths))
    assert ckptdiff.report_patch(tmp_path / "patch.safetensors").tensors[0].layer == layer


@pytest.mark.parametrize(("dtype", "old", "new"), [("I64", 0, 1 << 63), ("F64", 0x4000 << 48, 0xC000 << 48), ("U64", 5, 5 + (1 << 60))])
def test_moves_by_more_ulps_than_json_has_integers(tmp_path: Path, dtype: str, old: int, new: int) -> None:
    """The end of such a bin was once 2^64, which ckptdiff's own reader refuses and other readers round."""
    sides = ({"w": tensor(dtype, (3, 1), np.array([x, 7, 7], "<u8"))} for x in (old, new))
    value = look_at_report(report(*both(tmp_path, *sides)))
    assert value["moves"]["ulp"] == [{"from": 1 << 52, "to": None, "count": 1}]
    (chart,) = [chart for chart in charts(value) if chart.name == "ulps"]
    assert "4,503,599,627,370,496 or more" in json.dumps(chart.spec)


def test_singular_values_beyond_float64(tmp_path: Path) -> None:
    """They once gave Infinity in the JSON, and a ValueError in the page."""
    old, new = (np.full((20, 20), x, "<f8") for x in (0.0, 1.7e308))
    paths = both(tmp_path, {"w": tensor("F64", (20, 20), old)}, {"w": tensor("F64", (20, 20), new)})
    value = look_at_report(report(*paths))
    assert value["without_rank"] == ["w"] and value["tensors"][0]["spectra"] is None and value["rank"] is None
    result = run("report", *paths, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["without_rank"] == ["w"]


def test_a_stored_report_whose_shapes_are_of_other_sizes(tmp_path: Path) -> None:
    """A shape with a zero, and changed elements, once gave a division by zero in the page's text."""
    old, new = (tensor("F32", (2, 2), np.array([1, 2, 3, x], "<f4")) for x in (4, 5))
    found = report(*both(tmp_path, {"w": old}, {"w": new}))
    (row,) = found.tensors
    for shape in ((0, 2), (2, 0), (2, 3)):
        forged = Report(**{name: getattr(found, name) for name in Report.__slots__} | {"tensors": (row_of(row, shape),)})
        with pytest.raises(FormatError, match=rf"tensors\[0\]: has 4 elements, but the shape \[{shape[0]}, {shape[1]}\]: do not trust"):
            unpack(forged.to_bytes(), "the report", "target")


def row_of(row: Any, shape: tuple[int, ...]) -> Any:
    return type(row)(**{name: getattr(row, name) for name in row.__slots__} | {"shape": shape})

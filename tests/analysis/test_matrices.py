"""Which matrices a rank is measured for, and how much memory the counts by row and column take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from ckptdiff.analysis.matrices import choose_sample, count_ranked, counted_lines
from ckptdiff.analysis.modules import layer_of, module_of
from ckptdiff.analysis.report_stored import unpack
from ckptdiff.pages.report_page import SAMPLE_COLUMNS, sample_table
from ckptdiff.verbs.report import QUANTILES, report
from tests.support.checkpoints import tensor, write
from tests.support.commands import run
from tests.support.reports import SCHEMA

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def llama(layers: int) -> list[str]:
    """Names of a model's matrices, in its file's order."""
    inner = [f"model.layers.{k}.{kind}.weight" for k in range(layers) for kind in KINDS]
    return ["lm_head.weight", "model.embed_tokens.weight", *inner]


@pytest.mark.parametrize("layers", [12, 16, 22, 24, 28, 30, 32, 36, 40, 48, 64, 80])
def test_a_sample_is_spread_over_modules_and_layers(layers: int) -> None:
    """B15: every n-th matrix was lm_head and 28 times q, of 28 layers."""
    names = llama(layers)
    places = [(module_of(name), layer_of(name)) for name in names]
    chosen = [places[k] for k in choose_sample(places)]
    kinds = Counter(module for module, _ in chosen)
    assert len(chosen) == 32 == len(set(chosen)) and set(kinds) == {"lm_head", "embedding", "q", "k", "v", "o", "gate", "up", "down"}
    assert kinds["lm_head"] == kinds["embedding"] == 1 and {kinds[kind] for kind in ("q", "k", "v", "o", "gate", "up", "down")} == {4, 5}
    reached = {layer for _, layer in chosen if layer is not None}
    assert len(reached) >= 0.75 * min(layers, 30)
    for kind in ("q", "down"):  # evenly: no gap of more than twice the step
        at = [-1, *sorted(layer for module, layer in chosen if module == kind), layers]  # type: ignore[type-var]
        assert max(b - a for a, b in pairwise(at)) <= 2 * layers / kinds[kind] + 1  # type: ignore[operator]
    order = np.random.default_rng(0).permutation(len(places))
    assert {places[order[k]] for k in choose_sample([places[k] for k in order])} == set(chosen)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 5), (32, 32), (33, 32), (5000, 32)])
def test_one_kind_alone(count: int, expected: int) -> None:
    found = choose_sample([("experts", k // 64) for k in range(count)])
    assert len(found) == expected and (count <= 32 or max(np.diff(found)) - min(np.diff(found)) <= 1)


def test_what_has_a_rank() -> None:
    assert (
        count_ranked("norm", "BF16", (4, 4))
        == count_ranked("q", "C64", (4, 4))
        == count_ranked("q", "I8", (4, 4))
        == count_ranked("q", "F4", (4, 4))
        == 0
    )
    assert (count_ranked("q", "BF16", (4,)), count_ranked("q", "BF16", (4, 5)), count_ranked("experts", "F8_E4M3", (3, 2, 4, 5))) == (
        0,
        1,
        6,
    )
    assert count_ranked("q", "F32", (3, 0, 4)) == 0


@pytest.fixture
def sampled(tmp_path: Path) -> tuple[Path, Path]:
    """A model of 28 layers, an element of each matrix changed."""
    names, sides = llama(28), ({}, {})  # type: tuple[list[str], tuple[dict[str, TensorData], dict[str, TensorData]]]
    for name in names:
        units = np.full((6, 4), 0x3F80, "<u2")
        moved = units.copy()
        moved[1, 2] += 1
        for side, part in zip(sides, (units, moved), strict=True):
            side[name] = tensor("BF16", (6, 4), part)
    return write(tmp_path / "base.safetensors", sides[0]), write(tmp_path / "target.safetensors", sides[1])


def test_a_report_says_what_it_took(sampled: tuple[Path, Path], tmp_path: Path) -> None:
    value = json.loads(run("report", *sampled, "--json").stdout)
    jsonschema.validate(value, SCHEMA)
    rows = {row["module"]: row for row in value["sample"]}
    assert {kind: (row["matrices"], row["taken"]) for kind, row in rows.items()} == {
        **dict.fromkeys(("embedding", "lm_head"), (1, 1)),
        **dict.fromkeys(("q", "k"), (28, 5)),
        **dict.fromkeys(("v", "o", "gate", "up", "down"), (28, 4)),
    }
    for row in value["tensors"]:
        assert bool(row["spectra"]) == (row["layer"] is None or row["layer"] in rows[row["module"]]["layers"])
    layers = ", ".join(map(str, rows["q"]["layers"]))
    text = run("report", *sampled).stdout
    assert f"32 of 198 matrices: embedding all 1, q 5 of 28 (layers {layers}), k 5 of 28" in text
    found = report(*sampled)
    table = sample_table(found.to_json())
    assert ["q", "28", "5", layers] in table.rows and table.columns == SAMPLE_COLUMNS
    assert unpack(found.to_bytes(), "the report", "target").sample == found.sample
    for rank in ("none", "all"):
        assert report(*sampled, rank=rank).to_json()["sample"] is None and sample_table(report(*sampled, rank=rank).to_json()).rows == []  # type: ignore[arg-type]
    unchanged = run("report", sampled[0], sampled[0]).stdout
    assert "32 of 198 matrices" in unchanged


def test_older_stored_reports_do_not_say(sampled: tuple[Path, Path]) -> None:
    """What is stated must follow from the tensors."""
    import zstandard

    from ckptdiff.errors import FormatError
    from ckptdiff.format import canonical

    value = canonical.loads(zstandard.ZstdDecompressor().decompress(report(*sampled).to_bytes()), floats=True)

    def stored(changed: dict[str, object]) -> bytes:
        return zstandard.ZstdCompressor(write_content_size=True).compress(canonical.dumps(changed))

    assert unpack(stored(value), "the report", "target").totals.changed == 198
    without = {k: v for k, v in value.items() if k != "sample"}
    value["sample"][1]["taken"] += 1
    for wrong in (value, without):
        with pytest.raises(FormatError, match="its sums do not agree with its tensors"):
            unpack(stored(wrong), "the report", "target")


# --- memory ---


@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3), (1, 9001), (9001, 1), (2, 7, 900), (97, 101)])
@pytest.mark.parametrize("dtype", ["U8", "BF16", "C64"])
def test_rows_and_columns_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: str) -> None:
    """Blocks that hold less than a row, and such that begin within one."""
    monkeypatch.setattr("ckptdiff.analysis.cast_on_read.BLOCK", 1 << 10)
    width = {"U8": 1, "BF16": 2, "C64": 8}[dtype]
    rng = np.random.default_rng(1)
    old = rng.integers(0x10, 0x3F, int(np.prod(shape)) * width, dtype=np.uint8)
    new = old ^ (rng.random(len(old)) < 0.05 / width).astype(np.uint8)
    pair = [write(tmp_path / f"{k}.safetensors", {"w": tensor(dtype, shape, x)}) for k, x in enumerate((old, new))]
    unit = min(width, 4)
    moved = (old != new).reshape(-1, unit).any(1).reshape(-1, shape[-1] * (width // unit))
    row = report(*pair, rank="none").tensors[0]
    assert row.rows == tuple(np.quantile(moved.mean(1), QUANTILES)) and row.columns == tuple(np.quantile(moved.mean(0), QUANTILES))


def test_matrices_of_very_many_rows_or_columns_are_not_counted_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted_lines((1, 1 << 22)) == (1, 1 << 22) and counted_lines((2, 1 << 21, 3)) == (1 << 22, 3)
    assert counted_lines((1, (1 << 22) + 1)) == counted_lines(((1 << 22) + 1, 1)) == counted_lines((5,)) == (0, 0)
    monkeypatch.setattr("ckptdiff.analysis.matrices.MAX_COUNTED_LINES", 100)
    for shape in ((2, 101), (101, 2)):
        old, new = (tensor("U8", shape, np.full(202, x, np.uint8)) for x in (1, 2))
        paths = [write(tmp_path / f"{k}.safetensors", {"w": side}) for k, side in enumerate((old, new))]
        value = json.loads(run("report", *paths, "--json").stdout)
        jsonschema.validate(value, SCHEMA)
        (row,) = value["tensors"]
        assert row["rows"] is None and row["columns"] is None and row["elements"] - row["bit_identical"] == 202


PEAK = """
import resource, sys
import ckptdiff
ckptdiff.report(*sys.argv[1:3], rank=sys.argv[3], threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_depend_on_the_number_of_columns(tmp_path: Path) -> None:
    """B14: as many bytes of a square matrix and of one long row; a count a column was eight bytes, in each block under way."""
    rng, size = np.random.default_rng(0), 1 << 24
    units = rng.integers(0x3C00, 0x3F00, size, dtype=np.uint16)
    moved = units + (rng.random(size) < 0.01)
    peaks = {}
    for shape in ((4096, 4096), (1, size)):
        pair = [write(tmp_path / f"{k}.safetensors", {"w": tensor("BF16", shape, x)}) for k, x in enumerate((units, moved))]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, pair), "none"], capture_output=True, text=True, check=True, timeout=600
        )
        peaks[shape[0]] = int(done.stdout)
    assert peaks[1] < 1.25 * peaks[4096], peaks


# --- the benchmark of the paper's models ---

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "paper_models.py"


def measured(*pair: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), "--pair", f"r1-zero={pair[0]},{pair[1]}", "--within", "100"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_benchmark_names_what_was_not_compared(tmp_path: Path) -> None:
    """B15: it left such tensors out in silence, and divided by zero where that was all."""
    half, other = (tensor(dtype, (2,), np.zeros(2, kind)) for dtype, kind in (("BF16", "<u2"), ("U8", "<u1")))
    paths = {
        name: write(tmp_path / f"{name}.safetensors", side)
        for name, side in {"half": {"w": half, "x": half}, "other": {"w": other, "x": other}, "mixed": {"w": half, "x": other}}.items()
    }
    same = measured(paths["half"], paths["half"])
    assert same.returncode == 0 and "| r1-zero | sparsity at 1e-5 | 86.0 | 100.00 |" in same.stdout and same.stderr == ""
    some = measured(paths["half"], paths["mixed"])
    assert (
        some.returncode == 1 and "r1-zero: not compared: 1 tensors that cannot be compared: x\n" == some.stderr and "100.00" in some.stdout
    )
    none = measured(paths["other"], paths["half"])
    assert none.returncode == 1 and "r1-zero: other.safetensors and half.safetensors have nothing in common" in none.stderr

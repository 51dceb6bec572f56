"""The picture of the peers (``benchmarks/chart.py``) uses its width."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="needs ckptdiff[report]")
pytest.importorskip("vl_convert", reason="needs ckptdiff[report]")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "chart.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the repository")


def chart_module() -> Any:
    spec = spec_from_file_location("chart", SCRIPT)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder: Path, pairs: int) -> Path:
    """What ``peers.py`` might write of some pairs."""
    peers = ("ckptdiff", "pulse3", "zstd-3")
    rows = [
        [{"peer": p, "status": "file", "best": {"bytes": 10**6 * (k + 1) * (j + 1)}} for j, p in enumerate(peers)] for k in range(pairs)
    ]
    path = folder / "peers.json"
    path.write_text(json.dumps({"pairs": [{"name": f"pair {k}", "bytes": 10**8, "rows": row} for k, row in enumerate(rows)]}))
    return path


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (5, 3), (6, 3), (7, 4), (8, 4), (9, 3)])
def test_rows_leave_the_fewest_places_empty(count: int, columns: int) -> None:
    assert chart_module().panels_in_a_row(count) == columns


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_the_longest_bars_reach_the_right_side(pairs: int, tmp_path: Path) -> None:
    out = tmp_path / "peers.svg"
    subprocess.run([sys.executable, SCRIPT, out, results(tmp_path, pairs)], check=True)
    check_width(out.read_text(), pairs)


def check_width(svg: str, panels: int) -> None:
    """Every panel's longest bar ends less than its number's width before the panel's right side, and all have the same length."""
    lengths = [float(x) for x in re.findall(r'<path d="M0,[\d.]+h([\d.]+)v[\d.]+h-[\d.]+Z" fill="#(?:d97706|9db4cc)"', svg)]
    longest = [length for length in lengths if length > max(lengths) * (1 - 1e-9)]
    assert len(longest) == panels
    chart, width = chart_module(), float(re.findall(r'width="(\d+)"', svg)[0])
    room = chart.WIDTH / chart.panels_in_a_row(panels) - chart.NAMES - chart.NUMBERS - chart.BETWEEN
    assert longest[0] >= room - 1 and abs(width - chart.WIDTH) < 60
    assert not re.search(r">\d+\.?\d*e[+-]?\d", svg) and re.search(r">[\d.]+ %<", svg)


def test_the_picture_of_the_readme_is_one_of_these() -> None:
    check_width((BENCHMARKS / "peers.svg").read_text(), 8)

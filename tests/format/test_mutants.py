"""A sample of the faults of ``tests/mutants``, the same each time: the vectors find each, but for known survivors. See its README.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.strategies import examples_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("target", "count"), [("minimal_reader", 40), ("kernels", 20)])
def test_vectors_find_planted_faults(target: str, count: int) -> None:
    count = examples_run(count)
    command = [sys.executable, "-m", "tests.mutants", "--target", target, "--seed", "1", "--count", str(count), "--new"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert json.loads(done.stdout)["mutants"] >= count // 2


def test_each_survivor_has_a_reason() -> None:
    survivors = json.loads((ROOT / "tests/mutants/survivors.json").read_text())
    for target in ("minimal_reader", "kernels"):
        assert survivors[target]
        for key, row in survivors[target].items():
            assert row["reason"].split(":")[0] in ("equivalent", "limit", "open"), key

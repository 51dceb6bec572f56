"""Hostile input is normal: every mutated patch is refused with a CkptdiffError, or gives the exact target."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 2000


@pytest.mark.slow
def test_two_thousand_mutations(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.mutations", str(tmp_path), str(COUNT), "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert sum(found["outcomes"].values()) == COUNT
    assert set(found["outcomes"]) <= {"exact", "format", "unsupported", "integrity", "wrong_base"}
    assert found["outcomes"]["integrity"] > 100 and found["outcomes"]["format"] > 100
    assert found["peak_rss_mb"] < 400

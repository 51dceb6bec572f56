"""Hostile files cost little time and memory: some of ``tests/support/hostile_inputs.py``, small, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "hostile_inputs.py"
FOUND = """
table_of_objects table_nested table_number_of_megabytes table_key_of_megabytes tensors_empty header_of_objects index_of_deep_paths
blocks_read_one_by_one report_of_objects mask_of_huge_tensors mask_shape_of_many_numbers weight_map_of_objects tensors_empty_in_a_chain
""".split()
"""Those that took gigabytes, minutes, or a line of megabytes."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_files_cost_little() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick", "--json", *FOUND], capture_output=True, text=True, timeout=600)
    rows = json.loads(done.stdout)
    assert [row["input"] for row in rows] == FOUND
    for row in rows:
        assert not row["wrong"], row
        assert row["outcome"] in ("handled", "format", "unsupported", "checkpoint"), row

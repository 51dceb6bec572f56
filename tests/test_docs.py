"""The examples of docs/api.md run in order in one folder, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "api.md").read_text()


def test_examples_run(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("safetensors.torch")
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    result = subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("<ckptdiff.Patch: ")


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", TEXT):
        assert (ROOT / "docs" / link).exists(), link

"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.checkpoints import perturb, tree, write
from tests.conftest import tensors

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLES / name), *map(str, arguments)], capture_output=True, text=True)


def test_checkpoint_chain(tmp_path: Path) -> None:
    state, rng = tensors()[0], np.random.default_rng(1)
    steps = []
    for k in range(4):
        write(tmp_path / f"step{k}" / "model.safetensors", state, {"format": "pt"})
        (tmp_path / f"step{k}" / "config.json").write_text(f'{{"step": {k}}}')
        steps.append(tmp_path / f"step{k}")
        state = {name: perturb(rng, value, 0.01) for name, value in state.items()}
    stored = run("checkpoint_chain.py", "store", tmp_path / "chain", *steps)
    assert stored.returncode == 0 and stored.stdout.count("times smaller") == 3, stored.stderr
    for k in (1, 3):
        assert run("checkpoint_chain.py", "restore", tmp_path / "chain", k, tmp_path / f"out{k}").returncode == 0
        assert tree(tmp_path / f"out{k}") == tree(steps[k])
    assert "expected a step from 1 to 3, found 4" in run("checkpoint_chain.py", "restore", tmp_path / "chain", 4, tmp_path / "x").stderr

"""Every example runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckptdiff.subnetwork.mask import Mask
from tests.support.checkpoints import tensor, tree, write

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLES / name), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "trl", "datasets")),
    reason="torch, transformers, trl or datasets is not installed: pip install -r examples/reproduce_paper/requirements.txt",
)
def test_reproduce_paper(tmp_path: Path) -> None:
    """All of it runs part by part, a masked run stays in its mask, and what is done twice gives the same bytes."""
    out, base = tmp_path / "out", tmp_path / "out" / "base" / "small"
    command = [sys.executable, str(EXAMPLES / "reproduce_paper" / "run.py"), "--quick", "--keep", "--out", str(out)]
    part = subprocess.run([*command, "--part", "subnetwork"], capture_output=True, text=True)
    assert part.returncode == 0, part.stderr[-3000:]
    text = (out / "RESULTS.md").read_text()
    assert "### 6. Training within a mask" in text and "### 12. Overlap" not in text and "nan" not in text
    for algorithm in ("dpo-bf16", "dpo-fp32"):
        mask = Mask.from_patch(out / "runs" / f"{algorithm}-add-0" / "patch", base)
        masks = {"sub": mask, "size": mask.random(0, base, by="size"), "random": mask.random(0, by="tensor")}
        for name, chosen in masks.items():
            inside = Mask.from_patch(out / "runs" / f"{algorithm}-add-{name}-0" / "patch", base)
            assert 0 < inside.total and inside.precision(chosen) == 1.0
    again = out / "runs" / "dpo-bf16-add-0"
    before = tree(again / "patch"), json.loads((again / "record.json").read_text())["accuracy"]
    shutil.rmtree(again)
    rest = subprocess.run(command, capture_output=True, text=True)
    assert rest.returncode == 0, rest.stderr[-3000:]
    assert (tree(again / "patch"), json.loads((again / "record.json").read_text())["accuracy"]) == before
    assert "dpo-bf16-add-sub-0," not in rest.stderr and "grpo-bf16-large-size-0," in rest.stderr
    text = (out / "RESULTS.md").read_text()
    assert text.count("### ") == 16 and "nan" not in text and len(list((out / "charts").glob("*.svg"))) == 4
    third = subprocess.run(command, capture_output=True, text=True)
    assert third.returncode == 0 and "] " not in third.stderr and (out / "RESULTS.md").read_text() == text


FOLLOWED = """
import sys
from pathlib import Path
import ckptdiff, torch
from followers import Followers
from policy import make_policy
from safetensors.torch import load_file

work = Path(sys.argv[1])
make_policy(work / "base")
state = load_file(work / "base" / "model.safetensors")
with ckptdiff.Publisher(work / "chain", base=state, threads=1) as publisher, Followers(work / "chain", work / "base", 5) as followers:
    publisher.publish(state, 1)
    for step in range(1, 6):
        for tensor in state.values():
            tensor.view(torch.int16).reshape(-1)[step :: 50] += 1
        publisher.publish(state, step + 1)
        followers.at(step)
    assert list(followers.ends().values()) == [ckptdiff.identity(state)] * 3
"""


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")), reason="torch or transformers is not installed"
)
def test_subscribers_of_the_loop(tmp_path: Path) -> None:
    """The processes of examples/rl_loop that follow a chain: one stays, one is killed and started again, one joins late. The loop itself
    needs vLLM, and is run by hand."""
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWED, str(tmp_path)], cwd=EXAMPLES / "rl_loop", capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("took ") == 3 and "joins after step 3" in done.stdout and "started again after step 2" in done.stdout


def test_the_papers_table(tmp_path: Path) -> None:
    """The script has the rows that the page shows, compares, and says by its exit code when a number is far off."""
    script, page = ROOT / "benchmarks" / "paper_models.py", (ROOT / "benchmarks" / "paper_models.md").read_text()
    listed = subprocess.run([sys.executable, script, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in page.splitlines() if line.count("|") == 8][2:]
    assert [[row[0], row[1], *row[2:]] for row in rows] == [[*line.split()[:3], line.split()[4]] for line in listed]
    rng = np.random.default_rng(0)
    old = rng.normal(0, 1, (100, 100)).astype(np.float32)
    for changed, code in ((1862, 0), (5000, 1)):  # 81.38 % sparse, and not
        new = old.copy()
        new.reshape(-1)[:changed] += 1
        for name, array in (("base", old), ("target", new)):
            write(tmp_path / f"{name}.safetensors", {"w": tensor("F32", array.shape, array)})
        pair = f"tulu-8b-dpo={tmp_path / 'base.safetensors'},{tmp_path / 'target.safetensors'}"
        done = subprocess.run([sys.executable, script, "--pair", pair, "--within", "6"], capture_output=True, text=True)
        assert done.returncode == code and f"{100 - changed / 100:.2f}" in done.stdout, done.stderr

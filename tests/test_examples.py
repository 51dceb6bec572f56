"""Every example runs."""

from __future__ import annotations

import importlib.util
import json
import re
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
    """All of it runs, a masked run stays in its mask, and what is done twice gives the same bytes."""
    out = tmp_path / "out"
    command = [sys.executable, str(EXAMPLES / "reproduce_paper" / "run.py"), "--quick", "--keep", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (out / "tables.md").read_text()
    assert text.count("### ") == 7 and "nan" not in text and len(list((out / "charts").glob("*.svg"))) == 6
    masks = {name: Mask.from_patch(out / "runs" / name / "patch", out / "base") for name in ("dpo-bf16-add-0", "dpo-fp32-add-0")}
    for name, mask in masks.items():
        inside = Mask.from_patch(out / "runs" / f"{name}-sub" / "patch", out / "base")
        assert 0 < inside.total and inside.precision(mask) == 1.0
        other = Mask.from_patch(out / "runs" / f"{name}-random" / "patch", out / "base")
        assert other.total and other.precision(mask.random(seed=0)) == 1.0
    again = out / "runs" / "dpo-bf16-add-0"
    before = tree(again / "patch"), json.loads((again / "record.json").read_text())["accuracy"]
    (out / "measures.json").unlink()
    shutil.rmtree(again)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0 and second.stderr.count("] ") == 1, second.stderr[-3000:]
    assert (tree(again / "patch"), json.loads((again / "record.json").read_text())["accuracy"]) == before


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


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """Rows of cells, by heading."""
    found = {}
    for part in page.split("### ")[1:]:
        title, text = part.split("\n", 1)
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        found[title.split(" (")[0].split(",")[0]] = lines[2:]
    return found


def test_what_came_out_is_what_the_tables_say() -> None:
    """The figures of the text that are worked out from the tables below it, once more."""
    page = (EXAMPLES / "reproduce_paper" / "RESULTS.md").read_text()
    text, tables = " ".join(page.split("## Tables and charts")[0].split()), tables_of(page)
    weights = int(re.search(r"([\d,]+) parameters, ", page)[1].replace(",", ""))

    def first(cell: str) -> float:
        return float(cell.split(" / ")[0])

    within = {}  # how much of what changed did so by at most 1e-5
    for algorithm, kind, what, rate, bits, wide, _ in tables["What sparsity depends on"]:
        if kind == "pure bf16" and (what == "as above" or rate == "1e-06"):
            within[algorithm, rate] = (float(wide) - float(bits)) / (100 - float(bits))
    assert [f"{100 * within[key]:.0f}" for key in (("GRPO", "1e-05"), ("DPO", "2e-06"))] == ["1", "16"]
    low = [100 * share for (_, rate), share in within.items() if rate == "1e-06"]
    assert f"16 % for DPO at 2e-06, {min(low):.0f} to {max(low):.0f} % of it at 1e-6" in text.replace("2e-6,", "2e-06,")
    beyond, coins = {}, {}
    for differ, one, two, bits, _, size, same, *_ in tables["Overlap"]:
        algorithm, kind = one.split(": ")[0].split(", ")
        if differ == "seed" and two.endswith("add-1"):
            beyond[algorithm, kind] = f"{100 * (first(bits) - first(size)) / (100 - first(size)):.0f} %"
        elif differ == "data" and kind == "pure bf16":
            changed = next(100 - float(row[2]) for row in tables["Update sparsity"] if row[:2] == [algorithm, kind])
            both = weights * changed / 100 * first(bits) / 100
            coins[algorithm] = (float(same) - 50) / 50 * both**0.5
    of = {(kind, name): beyond[name, kind] for kind in ("pure bf16", "fp32 masters") for name in ("SFT", "DPO", "GRPO")}
    assert "seeds share {} (SFT), {} (DPO) and {} (GRPO)".format(*(of["pure bf16", name] for name in ("SFT", "DPO", "GRPO"))) in text
    masters = [of["fp32 masters", name].removesuffix(" %") for name in ("SFT", "DPO", "GRPO")]
    assert "which is {}, {} and {} % of what size leaves open".format(*masters) in text
    said = [float(x) for x in re.search(r"\(([\d.]+), ([\d.]+) and ([\d.]+) standard deviations", text).groups()]
    assert np.allclose(said, [coins[name] for name in ("SFT", "DPO", "GRPO")], atol=0.15)
    chance = [196 * (2 * share * (1 - share) / 500) ** 0.5 for share in (0.9, 0.5)]
    assert "up to {:.1f} points around 90 % and up to {:.1f} around 50 %".format(*chance) in text


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

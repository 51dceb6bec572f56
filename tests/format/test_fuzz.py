"""A short campaign of every fuzz target, with the same inputs each time, which follow from a seed. See tests/fuzz/README.md."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckptdiff import codecs
from ckptdiff.format.dtypes import BlockChange, Dtype
from tests.fuzz.engine import Disagreement, Outcome, Target, loop
from tests.fuzz.targets import TARGETS
from tests.support.strategies import examples_run

ROOT = Path(__file__).resolve().parents[2]
SEALED = {"container": 0.25, "table": 0.5, "index": 0.5, "mask": 0.5, "report": 0.5}
"""Least share of inputs that pass all digests, so that the code behind them is tested; of other targets all."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_each_target_survives_a_short_campaign(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = examples_run(TARGETS[name].count)
    tally = loop(TARGETS[name], 1, count)
    with capsys.disabled():
        print(f"\nfuzz {name}: {json.dumps(tally.to_json())}")
    assert tally.executions >= count
    assert tally.sealed >= SEALED.get(name, 1) * tally.executions
    assert tally.results["accepted"] >= 0.02 * tally.executions, "hardly anything is accepted: mutations are too wild to reach far"
    assert tally.executions > tally.results["accepted"] + 0.1 * tally.executions, "hardly anything is refused"


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        target = TARGETS["sparse"]

        def run(data: bytes) -> Outcome:
            seen.append(data)
            return target.run(data)

        loop(Target("sparse", target.seeds, target.mutate, run, 0), seed, 50)
        return seen

    assert inputs(1) == inputs(1) != inputs(2)


@pytest.mark.parametrize("name", ["raw", "sparse", "adaptive", "static"])
def test_a_decoder_that_is_wrong_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit changed more than the coded form says: each target of a decoder must tell."""
    real = codecs.apply_change

    def wrong(change: BlockChange, base: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, int, bytes | None]:
        target, changed, leaf = real(change, base, dtype)
        target = target.copy()
        target[-1] ^= 1
        return target, changed, leaf

    monkeypatch.setattr(codecs, "apply_change", wrong)
    with pytest.raises(Disagreement, match=rf"bytes: .*Again: python -m tests.fuzz {name} /"):
        loop(TARGETS[name], 1, 20)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_runs_a_target(tmp_path: Path) -> None:
    """Whole patches: every reader is instrumented, and every kernel that decodes is compiled as it is."""
    command = [sys.executable, "-m", "tests.fuzz", "container", "--count", "300", "--corpus", str(tmp_path / "corpus")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["executions"] == 300
    assert "cov: " in done.stderr, "nothing guides it"


def test_kernels_as_plain_python_do_the_same(tmp_path: Path) -> None:
    """The corpus of each decoder, decoded by the kernels' source as Python runs it, with every index looked at."""
    code = "from tests.fuzz import plain_kernels\nplain_kernels.install()\nfrom tests.fuzz.targets import TARGETS\n"
    code += (
        "for name in ('raw', 'sparse', 'adaptive', 'static'):\n    for data in TARGETS[name].seeds():\n        TARGETS[name].run(data)\n"
    )
    code += "from ckptdiff.kernels import adaptive\nprint(type(adaptive.decode_changes))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "<class 'function'>\n"

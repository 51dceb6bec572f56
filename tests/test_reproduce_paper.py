"""The page of examples/reproduce_paper says what its measures say, and its sentences name rows that there are."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "reproduce_paper"
PAGE = (EXAMPLE / "RESULTS.md").read_text()
MEASURES = EXAMPLE / "measures.json"
AGREED = 3
"""Where in the measures of a masked run the share of theta_full's changes is."""
STUDENT = {2: 12.7062, 3: 4.30265, 5: 2.77645}
"""0.975 quantiles of Student's t for n runs, from a printed table."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's modules can be imported."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


def results(path: Path) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLE / "results.py"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_page_is_that_of_the_measures() -> None:
    assert results(MEASURES) == PAGE


def test_page_turns_with_the_measures(tmp_path: Path) -> None:
    """Where theta_sub and the mask of the same sizes change places, verdict and sentence do."""
    found = json.loads(MEASURES.read_text())
    for seed in range(5):
        a, b = (found["records"][f"grpo-fp32-add-{mask}-{seed}"] for mask in ("sub", "size"))
        a["measures"], b["measures"] = b["measures"], a["measures"]
    path = tmp_path / "measures.json"
    path.write_text(json.dumps(found))
    start = "- **GRPO with fp32 masters**: of the weights"
    before, after = (next(line for line in page.splitlines() if line.startswith(start)) for page in (PAGE, results(path)))
    assert "theta_sub is nearer by" in before and "theta_sub is farther by" in after


def test_measures_of_another_plan_are_refused(tmp_path: Path) -> None:
    found = json.loads(MEASURES.read_text())
    found["scale"]["steps"] += 1
    path = tmp_path / "measures.json"
    path.write_text(json.dumps(found))
    done = subprocess.run([sys.executable, str(EXAMPLE / "results.py"), str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "was made with another plan than plan.py has now: run run.py with another --out" in done.stderr


def test_runs_of_another_plan_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"steps": 1}')
    done = subprocess.run([sys.executable, str(EXAMPLE / "run.py"), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "has runs of another plan (--quick?): give another --out, or remove it" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_every_sentence_names_rows_that_there_are() -> None:
    numbers = set(re.findall(r"^\| (\d+\.\d+) \|", PAGE, re.MULTILINE))
    prose = PAGE[PAGE.index("## Section 4 decided") : PAGE.index("## What was not covered")]
    bullets = [line for line in prose.splitlines() if line.startswith("- ")]
    claims = [line for line in prose.splitlines() if line.startswith("| ") and not line.startswith(("| paper", "| ---"))]
    assert len(bullets) >= 20 and len(claims) >= 30
    for line in [*bullets, *(line for line in claims if "not covered" not in line)]:
        named = [number for group in re.findall(r"\(rows? ([\d., ]+)\)", line) for number in group.split(", ")]
        assert named and set(named) <= numbers, line


def test_figures_of_a_row_are_those_of_the_runs() -> None:
    """One row by hand: mean and Student's interval over five seeds."""
    records = json.loads(MEASURES.read_text())["records"]
    values = [100 * records[f"grpo-bf16-add-size-{seed}"]["measures"][AGREED] for seed in range(5)]
    half = STUDENT[5] * statistics.stdev(values) / math.sqrt(5)
    shown = f"{statistics.mean(values):.2f} ± {half:.2f}"
    row = next(line for line in PAGE.splitlines() if re.match(r"\| 6\.\d+ \| GRPO \| pure bf16 \| random, of the same sizes", line))
    assert f" {shown} " in row


@pytest.mark.usefixtures("example")
def test_figures() -> None:
    from figures import Figure, difference

    values = (0.5, 0.6, 0.8)
    one = Figure(values)
    assert math.isclose(one.half, STUDENT[3] * statistics.stdev(values) / math.sqrt(3), rel_tol=1e-5)
    assert str(Figure((0.25,))) == "25.00" and Figure((0.25,)).side == 0
    gap = difference(one, Figure((0.1, 0.2, 0.4, 9.0)))
    assert gap.side == 1 and math.isclose(gap.mean, 0.4) and str(gap).startswith("40.00 ± 0.00")
    assert [one.above(x) for x in (0.2, 0.6, 1.1)] == [True, None, False] and [one.below(x) for x in (0.2, 0.6, 1.1)] == [False, None, True]
    assert Figure((0.25,)).above(0.25) and Figure((0.25,)).below(0.25) and Figure((0.25,)).above(0.26) is False
    assert Figure((-0.1, 0.1)).side == 0 and Figure((-0.1, -0.1)).side == -1


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        ((True, True), "reproduced"),
        ((False, False), "contradicted"),
        ((None, False), "not shown"),
        ((None, None), "not shown"),
        ((True, False), "for a only"),
        ((True, None), "for a only"),
    ],
)
def test_verdicts(holds: tuple[bool | None, bool | None], verdict: str) -> None:
    from claims import Case, all_of, claim
    from figures import Figure, Row

    assert all_of(*holds) is (False if False in holds else None if None in holds else True)
    row = Row("1.1", (), (), {})
    cases = [Case(name, Figure((0.1, 0.2)), held, (row,)) for name, held in zip("ab", holds, strict=True)]
    assert claim("table", "says", "criterion", cases).verdict == verdict


@pytest.mark.usefixtures("example")
def test_exercises() -> None:
    """Those for tests and those for training have no prompt in common, and all there are for tests are used."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    import data

    for task in data.TASKS:
        every = data.held_out(task, 100_000)
        tests: set[Any] = {prompt for prompt, _ in every}
        assert len(tests) == len(every) > 1000 and not tests & {prompt for prompt, _ in data.examples(task, 2000)}
        assert len(set(data.held_out(task, 40))) == 40

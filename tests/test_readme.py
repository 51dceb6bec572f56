"""README: its commands and Python code run as they stand, in order, in one folder; its figures are those that the commands print."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import SHARED_DATA, tree
from tests.support.commands import run
from tests.support.documents import ROOT, blocks, commands, prose, text_of
from tests.support.real_pairs import BASE, TARGETS
from tests.support.vectors import VECTORS

README = text_of("README.md")
CHECKED = "10.6 70.4 151 5 1.54 35.0 53.1".split()
"""Figures that ``test_the_real_pair`` compares."""
NAMES = ["2505.11711"]


def test_the_two_commands_are_there() -> None:
    assert "pip install . && ckptdiff demo\n" in blocks("README.md", "sh")
    assert "pip install -e '.[test]' && pytest\n" in blocks("README.md", "sh")


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


@pytest.mark.slow
def test_commands_run(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("altair", reason="altair is not installed: pip install '.[report]'")
    user = request.getfixturevalue("reader")
    asked = commands("README.md")
    assert {arguments[0] for arguments in asked} >= {"demo", "make", "apply", "report", "push", "pull", "overlap", "mask"}
    output = "".join(user.run(*arguments).stdout for arguments in asked)
    printed = [line.strip() for line in output.splitlines()]
    shown = blocks("README.md", "text")[0].splitlines()
    assert len(shown) == 4 and all(line.strip() in printed for line in shown), "README shows another output of make"
    assert tree(user.folder / "rebuilt") == tree(user.folder / "models" / "tuned")
    assert tree(user.folder / "pulled") == tree(user.folder / "my-model")
    assert tree(user.folder / "step-200") == tree(user.folder / "run" / "step-200")


def test_the_python_example_runs() -> None:
    old = {"w": np.arange(6, dtype=np.float32), "b": np.zeros(3, np.float32)}
    new = {"w": np.arange(6, dtype=np.float32) * 1.5, "b": np.zeros(3, np.float32)}
    engine = {name: values.copy() for name, values in old.items()}
    (code,) = blocks("README.md", "python")
    exec(code, {"old": old, "new": new, "engine": engine})
    assert all(engine[name].tobytes() == new[name].tobytes() for name in new)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
def test_the_real_pair(tmp_path: Path) -> None:
    target = SHARED_DATA / TARGETS[0]
    printed = run("make", BASE, target, "-o", tmp_path / "patch").stdout
    found = re.search(r"patch +(\S+ kB) for a target of (\S+ MB): (\S+) times smaller", printed)
    changed = re.search(r"elements changed .*\((\S+ %)\)", printed)
    assert found and changed
    assert f"a {found[2]} checkpoint" in README and f"a {found[1]} patch of its base, {found[3]} times smaller." in README
    run("apply", BASE, tmp_path / "patch", "-o", tmp_path / "rebuilt")
    assert tree(tmp_path / "rebuilt") == tree(target) and f"All {len(tree(target))} files come back" in README
    report = run("report", BASE, tmp_path / "patch", "--rank", "none").stdout
    moves = re.search(r"moved by one ulp +(\S+ %) of the changed\n +by four or more +(\S+ %) of the changed\n", report)
    assert moves is not None
    assert f"Training changed {changed[1]} of the weights: {moves[1]} of these by one *ulp*" in README
    assert f"{moves[2]} by four or more" in README


def test_no_figure_is_unchecked() -> None:
    figures = re.findall(r"(?<![\w.-])\d[\d.,]*(?<![.,])", prose("README.md"))
    assert sorted(figures) == sorted([*CHECKED, *NAMES, str(len(VECTORS))])


def test_stated_numbers_of_vectors() -> None:
    for path in ("README.md", "CHANGELOG.md"):
        assert re.findall(r"(\d+) conformance", text_of(path)) == [str(len(VECTORS))]


def test_nothing_in_the_repository_is_large_or_names_a_place() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    written = (".py", ".md", ".toml", ".css", ".j2", ".html", "")  # by hand, as schemas are
    data = [path for path in files if path.exists() and path.suffix not in written and not path.name.endswith(".schema.json")]
    assert sum(path.stat().st_size for path in data) < 2_000_000
    assert sum(path.stat().st_size for path in files if path.exists()) < 7_000_000
    for path in files:
        if path.suffix in written and path.exists():
            assert "/work/" + "main" not in path.read_text("latin-1"), path

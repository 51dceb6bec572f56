"""README's commands and Python code run as they stand, in order, in one folder, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import CKPTDIFF
from tests.support.vectors import VECTORS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_two_commands_are_there() -> None:
    assert "pip install . && ckptdiff demo\n" in blocks("sh")
    assert "pip install -e '.[test]' && pytest\n" in blocks("sh")


def test_commands_and_code_run(tmp_path: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("ckptdiff ")]
    assert len(commands) >= 6
    output = ""
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        result = subprocess.run([*CKPTDIFF, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, (command, result.stderr)
        output += result.stdout
    shown = blocks("text")[0].splitlines()
    printed = [line.strip() for line in output.splitlines()]
    assert all(line.strip() in printed for line in shown), "README shows another output of make"
    for code in blocks("python"):
        result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "already_target"


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "spec/rationale.md", "spec/ckptdiff-v1.md", "benchmarks/README.md"]
)
def test_links_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text()
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / path).parent.joinpath(link).exists(), link


def test_stated_numbers_of_vectors() -> None:
    for path in ("README.md", "CHANGELOG.md"):
        assert re.findall(r"(\d+) conformance", (ROOT / path).read_text()) == [str(len(VECTORS))]


def test_nothing_in_the_repository_is_large_or_names_a_place() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    written = (".py", ".md", ".toml", "")
    assert sum(path.stat().st_size for path in files if path.exists() and path.suffix not in written) < 2_000_000  # data
    assert sum(path.stat().st_size for path in files if path.exists()) < 4_800_000
    for path in files:
        if path.suffix in written and path.exists():
            assert "/work/" + "main" not in path.read_text("latin-1"), path

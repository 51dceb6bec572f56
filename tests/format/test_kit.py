"""The kit for implementers (spec/README.md): one archive, from which any reader that is a command can be run on the vectors."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.vectors import SPEC, VECTORS

ROOT = SPEC.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unpacked kit."""
    folder = tmp_path_factory.mktemp("kit")
    for name in ("one", "two"):
        subprocess.run([sys.executable, SPEC / "kit.py", folder / f"{name}.tar.gz"], check=True)
    assert (folder / "one.tar.gz").read_bytes() == (folder / "two.tar.gz").read_bytes()
    with tarfile.open(folder / "one.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.glob("ckptdiff-kit-*")
    return found


def run(kit: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", kit / "vectors" / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_kit_is_whole_and_names_nothing_of_the_package(kit: Path) -> None:
    assert re.fullmatch(r"ckptdiff-kit-\d+\.\d+\.\d+", kit.name)
    assert f"- {kit.name.rpartition('-')[2]}: " in (kit / "README.md").read_text(), "the version has no entry in its change log"
    assert {path.name for path in kit.glob("vectors/*.vector")} == {path.name for path in VECTORS}
    for script in kit.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) +(ckptdiff|tests)\b", script.read_text(), re.MULTILINE)
    for named in re.findall(r"`([\w/-]+\.(?:md|py))`", (kit / "README.md").read_text()):
        assert (kit / named).exists() or named in ("rationale.md", "run.py"), named


def test_each_vector_has_a_section_of_the_text(kit: Path) -> None:
    text = (kit / "ckptdiff-v1.md").read_text()
    headings = set(re.findall(r"^#+ (\d[\d.]*?)\.? ", text, re.MULTILINE))
    section_of = runpy.run_path(str(kit / "vectors" / "run.py"))["section_of"]
    assert not {path.stem: section_of(path.stem) for path in VECTORS if section_of(path.stem) not in headings}


def test_without_a_reader_the_minimal_one_is_run(kit: Path) -> None:
    """On some vectors: ``test_vectors.py`` gives it all of them."""
    names = VECTORS[::10]
    done = run(kit, "--every", "10")
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"{len(names)} of {len(names)} vectors pass" in done.stdout
    sections = {int(passed) for passed in re.findall(r"^section +\S+ +(\d+) of", done.stdout, re.MULTILINE)}
    assert sections and 0 not in sections


def test_the_minimal_reader_as_a_command(kit: Path) -> None:
    """A process for each vector, so of few."""
    done = run(kit, "--every", "80", sys.executable, kit / "minimal_reader.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_as_a_command(kit: Path) -> None:
    done = run(kit, "--every", "80", sys.executable, "-m", "tests.support.kit_reader")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "reason"),
    [("raise SystemExit(0)", "the output differs"), ("raise SystemExit('format: x')", "got format"), ("raise ValueError", "got crash"),
     ("import sys; open(sys.argv[-1], 'w'); raise SystemExit('io: x')", "got crash"), ("raise SystemExit('formats')", "got crash")],
)  # fmt: skip
def test_a_reader_that_is_wrong_is_told(script: str, reason: str, kit: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(script)
    done = run(kit, "-k", "all_kinds", sys.executable, tmp_path / "reader.py")
    assert done.returncode == 1 and reason in done.stdout
    assert "0 of 1 vectors pass" in done.stdout


def test_a_rejection_that_leaves_something_is_told(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text("import sys; open(sys.argv[-1], 'w'); raise SystemExit('wrong_base')")
    done = run(kit, "-k", "chain_same_patch_twice", sys.executable, tmp_path / "reader.py")
    assert done.returncode == 1 and "the output differs" in done.stdout

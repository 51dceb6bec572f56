"""Chains as spec/chain-vectors has them, most of them broken on purpose: the package says of each what the vector states."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

from ckptdiff.chain.history import foreign_objects, read_history
from ckptdiff.errors import CkptdiffError
from ckptdiff.io.store import FolderStore
from tests.support.documents import ROOT

FOLDER = ROOT / "spec" / "chain-vectors"
VECTORS = sorted(FOLDER.glob("*.vector"))


def unpack(path: Path, out: Path) -> dict[str, list[str]]:
    """Write a vector's objects; returns the values of its header's lines, by key."""
    text, _, data = path.read_bytes().partition(b"\n\n")
    lines: dict[str, list[str]] = {}
    for line in text.decode().split("\n"):
        key, _, value = line.partition(":")
        lines.setdefault(key, []).append(value.strip())
    for part in lines["part"]:
        key, size = part.rsplit(" ", 1)
        (out / key).parent.mkdir(parents=True, exist_ok=True)
        (out / key).write_bytes(data[: int(size)])
        data = data[int(size) :]
    assert not data
    return lines


def test_there_are_vectors() -> None:
    kinds = [path.read_text("latin-1").split("\n")[0] for path in VECTORS]
    assert kinds.count("expect: success") >= 20 and len(set(kinds)) == 4


@pytest.mark.parametrize("path", VECTORS, ids=[path.stem for path in VECTORS])
def test_the_package_says_what_the_vector_states(path: Path, tmp_path: Path) -> None:
    lines = unpack(path, tmp_path / "chain")
    try:
        history = read_history(FolderStore(tmp_path / "chain"))
    except CkptdiffError as error:
        assert [error.kind] == lines["expect"], error
        return
    assert lines["expect"] == ["success"]
    assert [str(step.number) for step in history.steps] == lines["history"][0].split()
    assert sorted(name.key for name in history.torn) == sorted(lines.get("torn", []))
    assert sorted(name.key for name in history.superseded) == sorted(lines.get("superseded", []))
    assert sorted(foreign_objects(history)) == sorted(lines.get("foreign", []))
    for number, *stated in (plan.split() for plan in lines.get("plan", [])):
        at = history.find(int(number))
        assert at is not None
        plan = history.plan(at)
        assert (["none"] if plan is None else [name.key for name in plan]) == stated


def test_vectors_are_what_the_builder_writes(tmp_path: Path) -> None:
    builder = FOLDER / "build.py"
    assert "import ckptdiff" not in builder.read_text()
    subprocess.run([sys.executable, str(builder), str(tmp_path)], check=True)
    names = [path.name for path in VECTORS]
    assert sorted(path.name for path in tmp_path.glob("*.vector")) == names
    assert filecmp.cmpfiles(FOLDER, tmp_path, names, shallow=False) == (names, [], [])

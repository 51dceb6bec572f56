"""The package and the minimal reader each give the output, or the kind of error, that a vector of ``spec/vectors`` states."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import tree
from tests.support.vectors import SPEC, VECTORS, Outcome, Vector, run_minimal, run_package


def test_there_are_vectors() -> None:
    assert len(VECTORS) > 300
    expected = [path.read_text("latin-1").split("\n")[0] for path in VECTORS]
    assert expected.count("expect: success") >= 20
    for kind in ("format", "unsupported", "integrity", "wrong_base", "already_target"):
        assert f"expect: {kind}" in expected


@pytest.mark.parametrize("reader", [run_package, run_minimal], ids=["package", "minimal"])
@pytest.mark.parametrize("path", VECTORS, ids=[path.stem for path in VECTORS])
def test_each_reader_gives_what_the_vector_states(path: Path, reader: Callable[[Path, list[Path], Path], Outcome], tmp_path: Path) -> None:
    vector = Vector.unpack(path, tmp_path)
    base, patches = vector.inputs(tmp_path)
    before = set(tmp_path.iterdir())
    kind, message = reader(base, patches, tmp_path / "out")
    assert kind in vector.expect, f"expected {' or '.join(vector.expect)}, found {kind}: {message or 'no error'}"
    if vector.expect == ["success"]:
        assert tree(tmp_path / "out") == vector.outputs
    else:
        assert set(tmp_path.iterdir()) == before, "something was left behind"


def test_vectors_are_what_the_builder_writes(tmp_path: Path) -> None:
    """Vectors change only together with the builder, which knows nothing of the package."""
    builder = SPEC / "vectors" / "build.py"
    assert "import ckptdiff" not in builder.read_text() and "minimal_reader" not in builder.read_text().split('"""')[2]
    subprocess.run([sys.executable, str(builder), str(tmp_path)], check=True)
    names = [path.name for path in VECTORS]
    assert sorted(path.name for path in tmp_path.glob("*.vector")) == names
    assert filecmp.cmpfiles(SPEC / "vectors", tmp_path, names, shallow=False) == (names, [], [])


def test_the_minimal_reader_imports_nothing_of_ckptdiff() -> None:
    assert "import ckptdiff" not in (SPEC / "minimal_reader.py").read_text()

"""spec/vectors: the package and the minimal reader each give the output, or the error kind, that the vector states."""

from __future__ import annotations

import filecmp
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import ckptdiff
from tests.support.checkpoints import tree

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = sorted((SPEC / "vectors").glob("*.vector"))


@dataclass
class Vector:
    expect: str
    parts: list[tuple[str, int]]
    outputs: dict[str, str]

    @classmethod
    def unpack(cls, path: Path, folder: Path) -> Vector:
        """Read a vector and write its parts below ``folder``."""
        head, _, body = path.read_bytes().partition(b"\n\n")
        vector = cls("", [], {})
        for line in head.decode().split("\n"):
            key, _, value = line.partition(": ")
            if key == "expect":
                vector.expect = value
            elif key == "part":
                name, _, size = value.rpartition(" ")
                vector.parts.append((name, int(size)))
            elif key == "output":
                name, _, sha256 = value.rpartition(" ")
                vector.outputs[name] = sha256
            else:
                assert key == "comment", line
        position = 0
        for name, size in vector.parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(body[position : position + size])
            position += size
        assert position == len(body)
        return vector

    def inputs(self, folder: Path) -> tuple[Path, list[Path]]:
        """The base, and the patches in order."""
        roots = list(dict.fromkeys(name.split("/")[0] for name, _ in self.parts))
        base = [root for root in roots if root.startswith("base")]
        patches = sorted((root for root in roots if root.startswith("patch")), key=lambda root: (len(root.split(".")[0]), root))
        assert len(base) == 1 and len(base) + len(patches) == len(roots), roots
        return folder / base[0], [folder / root for root in patches]


def minimal_reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_reader", SPEC / "minimal_reader.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["minimal_reader"] = module
    spec.loader.exec_module(module)
    return module


READER = minimal_reader()


Outcome = tuple[str, str]
"""``success`` or the kind of an error, and the error's message."""


def run_package(base: Path, patches: list[Path], out: Path) -> Outcome:
    try:
        ckptdiff.apply(base, patches, out, threads=1)
    except ckptdiff.CkptdiffError as error:
        return error.kind, str(error)
    return "success", ""


def run_minimal(base: Path, patches: list[Path], out: Path) -> Outcome:
    try:
        READER.apply(base, patches, out)
    except READER.PatchError as error:
        return error.kind, error.message
    return "success", ""


def test_there_are_vectors() -> None:
    assert len(VECTORS) > 300
    expected = [path.read_text("latin-1").split("\n")[0] for path in VECTORS]
    assert expected.count("expect: success") >= 20
    for kind in ("format", "unsupported", "integrity", "wrong_base", "already_target"):
        assert f"expect: {kind}" in expected


@pytest.mark.parametrize("reader", [run_package, run_minimal], ids=["package", "minimal"])
@pytest.mark.parametrize("path", VECTORS, ids=[path.stem for path in VECTORS])
def test_vector(path: Path, reader: Callable[[Path, list[Path], Path], Outcome], tmp_path: Path) -> None:
    vector = Vector.unpack(path, tmp_path)
    base, patches = vector.inputs(tmp_path)
    before = set(tmp_path.iterdir())
    kind, message = reader(base, patches, tmp_path / "out")
    assert kind == vector.expect, f"expected {vector.expect}, found {kind}: {message or 'no error'}"
    if vector.expect == "success":
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

"""The vectors of ``spec/vectors``, and the two readers that they are given to: the package and ``spec/minimal_reader.py``."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import ckptdiff

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = sorted((SPEC / "vectors").glob("*.vector"))


def generated(seed: int, count: int, carrier: int, first: int, shift: int, step: int, sign: int) -> bytes:
    """Units that a vector does not hold, but says how to make (README.md of the vectors)."""
    s, units = seed, bytearray()
    for _ in range(count):
        s = (s * 6364136223846793005 + 1442695040888963407) % 2**64
        p = (s >> 48) * (s >> 32 & 65535) >> 16
        unit = first + (p >> shift) * step + (s >> 31 & 1) * sign
        units += (unit % 256**carrier).to_bytes(carrier, "little")
    return bytes(units)


@dataclass
class Vector:
    expect: list[str]
    """``success``, or the kinds of errors of which a reader may give any."""
    parts: list[tuple[str, int]]
    outputs: dict[str, str]

    @classmethod
    def unpack(cls, path: Path, folder: Path) -> Vector:
        """Read a vector and write its parts below ``folder``."""
        head, _, body = path.read_bytes().partition(b"\n\n")
        vector, units = cls([], [], {}), dict[str, bytes]()
        for line in head.decode().split("\n"):
            key, _, value = line.partition(": ")
            if key == "expect":
                vector.expect = value.split(" ")
            elif key == "part":
                name, _, size = value.rpartition(" ")
                vector.parts.append((name, int(size)))
            elif key == "units":
                name, *numbers = value.split(" ")
                units[name] = generated(*map(int, numbers))
            elif key == "output":
                name, _, sha256 = value.rpartition(" ")
                vector.outputs[name] = sha256
            else:
                assert key == "comment", line
        position = 0
        for name, size in vector.parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(body[position : position + size] + units.get(name, b""))
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

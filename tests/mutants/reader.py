"""The minimal reader as a target: every vector is a case."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants.planting import Fault, faults, planted
from tests.support.vectors import SPEC, VECTORS, Vector

FILE = SPEC / "minimal_reader.py"
SOURCE = FILE.read_text()
NOT_RULES = {"main", "PatchError"}
"""What no vector is about: the command line, and how the error is made."""


@dataclass
class Case:
    """A vector, its parts in a folder."""

    name: str
    expect: str
    base: Path
    patches: list[Path]
    outputs: dict[str, str]
    size: int


def all_faults() -> list[Fault]:
    return faults(SOURCE, "minimal_reader", lambda name, node: name not in NOT_RULES and not _is_main(node))


def _is_main(node: Any) -> bool:
    return "__main__" in str(getattr(getattr(getattr(node, "test", None), "comparators", [None])[0], "value", ""))


def cases(folder: Path) -> list[Case]:
    found = []
    for path in VECTORS:
        own = folder / path.stem
        own.mkdir(parents=True)
        vector = Vector.unpack(path, own)
        base, patches = vector.inputs(own)
        size = sum(file.stat().st_size for file in own.rglob("*") if file.is_file())
        found.append(Case(path.stem, vector.expect, base, patches, vector.outputs, size))
    return found


def module(fault: Fault | None) -> types.ModuleType:
    """The reader, with a fault."""
    made = types.ModuleType("minimal_reader")
    sys.modules["minimal_reader"] = made
    code: Any = planted(SOURCE, fault) if fault else SOURCE
    exec(compile(code, str(FILE), "exec"), made.__dict__)
    return made


def outcome(reader: Any, base: Path, patches: list[Path], out: Path) -> tuple[str, dict[str, str]]:
    """What a reader makes of a base and patches: ``success`` and the digests of its files, or the kind of its error."""
    out.parent.mkdir(exist_ok=True)
    try:
        reader.apply(str(base), [str(patch) for patch in patches], str(out))
    except reader.PatchError as error:
        left = [name for name in os.listdir(out.parent) if name]
        return f"{error.kind}, but left {left}" if left else str(error.kind), {}
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    found = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    left = os.listdir(out.parent)
    return f"success, but left {left}" if left else "success", found


def judge(fault: Fault | None, folder: Path) -> Callable[[Case], str]:
    """Tells what is wrong with what the reader makes of a case: "" if nothing."""
    os.fsync = lambda _: None  # type: ignore[assignment]
    reader = module(fault)

    def wrong(case: Case) -> str:
        found = outcome(reader, case.base, case.patches, folder / "out" / "out")
        if found == (case.expect, case.outputs):
            return ""
        return f"expected {case.expect}, found {found[0]}" if found[0] != case.expect else "another output"

    return wrong

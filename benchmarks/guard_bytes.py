"""The bytes that two trees write: patches of the same pairs compared, and each tree's patches applied by both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guard_trees import CHILD, Tree
from peers_measure import StepError, run, same_file, size_of

CODECS = ("auto", "context", "sparse", "raw")


@dataclass(frozen=True)
class Case:
    """A pair and the codec that it is coded with."""

    pair: str
    codec: str
    base: Path
    target: Path

    @property
    def key(self) -> str:
        return f"{self.pair} {self.codec}"

    @property
    def suffix(self) -> str:
        return "" if self.target.is_dir() else ".safetensors"


@dataclass
class Row:
    """What came of one case."""

    case: Case
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the patch, by tree
    differ: list[str] = field(default_factory=list)  # files of the patches that differ, and how
    rebuilt: dict[str, str] = field(default_factory=dict)  # "old by new": the old tree's patch applied by the new one; "exact" or why not
    failed: str = ""

    @property
    def same(self) -> bool:
        return not (self.failed or self.differ)

    @property
    def exact(self) -> bool:
        return not self.failed and all(found == "exact" or found.startswith("not tried") for found in self.rebuilt.values())

    def to_json(self) -> dict[str, Any]:
        facts = {key: value for key, value in asdict(self).items() if key != "case"}
        return {"pair": self.case.pair, "codec": self.case.codec, **facts, "same": self.same, "exact": self.exact}


def listed(path: Path) -> dict[str, Path]:
    """The files of a folder by their paths in it; a file is its own, named ``.``."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {".": path} if path.exists() else {}


def differences(one: Path, two: Path, names: tuple[str, str]) -> list[str]:
    """How two files, or the files of two folders, differ; empty if every byte is the same."""
    found, (a, b) = [], (listed(one), listed(two))
    for name in sorted(a.keys() | b.keys()):
        what = name if name != "." else (one if one.exists() else two).name
        if name not in a or name not in b:
            found.append(f"{what}: only {names[0] if name in a else names[1]}")
        elif not same_file(a[name], b[name]):
            sizes = a[name].stat().st_size, b[name].stat().st_size
            how = f"{sizes[0]:,} and {sizes[1]:,} bytes" if sizes[0] != sizes[1] else f"{sizes[0]:,} bytes in both, other content"
            found.append(f"{what}: {how}")
    return found


def format_version(patch: Path) -> int | None:
    """The version of the format that a patch file or folder states; None where it states none."""
    try:
        if patch.is_dir():
            stated = json.loads((patch / "ckptdiff.json").read_bytes())
        else:
            with open(patch, "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            stated = json.loads(header["__metadata__"]["ckptdiff"])
        return int(stated["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def real(data: Path) -> Iterator[tuple[str, Path, Path]]:
    """Every checkpoint folder beside a NAME-base with the same NAME."""
    for base in sorted(data.glob("*-base")):
        for target in sorted(data.glob(f"{base.name.removesuffix('base')}*")):
            if target.is_dir() and target != base:
                yield target.name, base, target


class Comparison:
    """Cases coded and rebuilt by two trees, in a folder of its own; what is rebuilt is removed again."""

    def __init__(self, old: Tree, new: Tree, folder: Path, limit: float) -> None:
        self.trees, self.folder, self.limit = (old, new), folder, limit
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        folder.mkdir()

    def rows(self, cases: list[Case]) -> list[Row]:
        """What came of some cases, whose patches and rebuilt files lie on the disk at one time."""
        found = {case.key: Row(case) for case in cases}
        for tree in self.trees:
            self.errors(tree, "make", found, self.makes(tree, cases))
        for row in found.values():
            self.compare(row)
        jobs = {tree.name: [job for row in found.values() for job in self.applies(tree, row)] for tree in self.trees}
        for tree in self.trees:
            self.errors(tree, "apply", found, jobs[tree.name])
        for row in found.values():
            self.check(row)
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        return list(found.values())

    def patch(self, tree: Tree, case: Case) -> Path:
        return self.folder / f"patch-{tree.name}-{case.key.replace(' ', '-')}{case.suffix}"

    def out(self, maker: Tree, reader: Tree, case: Case) -> Path:
        return self.folder / f"out-{maker.name}-by-{reader.name}-{case.key.replace(' ', '-')}{case.suffix}"

    def makes(self, tree: Tree, cases: list[Case]) -> list[dict[str, Any]]:
        return [
            {"key": case.key, "base": str(case.base), "target": str(case.target), "patch": str(self.patch(tree, case))}
            | {"codec": None if case.codec == "auto" else case.codec}
            for case in cases
        ]

    def errors(self, tree: Tree, verb: str, rows: dict[str, Row], jobs: list[dict[str, Any]]) -> None:
        """Run jobs in one process of a tree, and note what failed."""
        if not jobs:
            return
        path = self.folder / f"{verb}-{tree.name}.json"
        path.write_text(json.dumps(jobs))
        try:
            errors = run([tree.python, CHILD, verb, str(path)], self.limit, tree.env())[1]["errors"]
        except StepError as error:
            errors = dict.fromkeys((job["key"] for job in jobs), str(error))
        self.note(tree, verb, rows, errors)

    def note(self, tree: Tree, verb: str, rows: dict[str, Row], errors: dict[str, str | None]) -> None:
        """Keep why jobs failed."""
        for key, error in errors.items():
            name, _, maker = key.partition("|")
            if error and maker:
                rows[name].rebuilt[f"{maker} by {tree.name}"] = error
            elif error:
                rows[name].failed = rows[name].failed or f"{verb} by {tree.name}: {error}"

    def compare(self, row: Row) -> None:
        if row.failed:
            return
        old, new = (self.patch(tree, row.case) for tree in self.trees)
        row.sizes = {tree.name: size_of(path) for tree, path in zip(self.trees, (old, new), strict=True)}
        row.differ = differences(old, new, (f"of {self.trees[0].name}", f"of {self.trees[1].name}"))
        versions = format_version(old), format_version(new)
        for maker in self.trees if row.differ else self.trees[:1]:  # of equal patches one is applied
            for reader in self.trees:
                crossed = maker != reader and versions[0] != versions[1]
                row.rebuilt[f"{maker.name} by {reader.name}"] = f"not tried: formats {versions[0]} and {versions[1]}" if crossed else ""

    def applies(self, reader: Tree, row: Row) -> list[dict[str, Any]]:
        jobs = []
        for maker in self.trees:
            if not row.failed and row.rebuilt.get(f"{maker.name} by {reader.name}") == "":
                paths = {"base": row.case.base, "patch": self.patch(maker, row.case), "out": self.out(maker, reader, row.case)}
                jobs.append({"key": f"{row.case.key}|{maker.name}", **{key: str(path) for key, path in paths.items()}})
        return jobs

    def check(self, row: Row) -> None:
        """Compare what was rebuilt with the target, byte by byte."""
        for maker in self.trees:
            for reader in self.trees:
                name = f"{maker.name} by {reader.name}"
                if row.rebuilt.get(name) == "":
                    wrong = differences(row.case.target, self.out(maker, reader, row.case), ("in the target", "rebuilt"))
                    row.rebuilt[name] = "; ".join(wrong) or "exact"


def demo(trees: tuple[Tree, Tree], work: Path, limit: float) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """``ckptdiff demo`` of both trees, which compiles their kernels too: the older one's pair, and how the files of the two differ."""
    folders = [work / f"demo-{tree.name}" for tree in trees]
    for tree, folder in zip(trees, folders, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        run([tree.program, "demo", str(folder)], limit, tree.env())
    old = folders[0]
    return [("demo", old / "base", old / "tuned")], differences(*folders, (f"of {trees[0].name}", f"of {trees[1].name}"))

"""The trees that ``guard.py`` compares: each a copy of its files, installed into a virtual environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHILD = str(Path(__file__).with_name("guard_child.py"))
BESIDES = ["ml_dtypes"]
"""What the environments hold besides ckptdiff and what it asks for: bfloat16 for NumPy, as tensors in memory."""


class TreeError(Exception):
    """A tree cannot be found or installed."""


@dataclass(frozen=True)
class Tree:
    """An installed ckptdiff."""

    name: str
    folder: Path
    what: str  # commit and subject, or what the working tree is

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    @property
    def program(self) -> str:
        return str(self.folder / "venv" / "bin" / "ckptdiff")

    def env(self, cache: Path | None = None) -> dict[str, str]:
        """The environment of its processes: nothing of the caller's Python, no Hub, its own caches or the empty folder ``cache``."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "NUMBA_", "HF_", "CKPTDIFF_"))}
        env |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "XDG_CACHE_HOME": str(cache or self.folder / "cache")}
        return env | dict.fromkeys(("NUMBA_CACHE_DIR", "CKPTDIFF_CACHE_DIR"), str(cache)) if cache else env


def output(command: list[str], what: str, **options: Any) -> str:
    """What a command prints; TreeError with the end of what it complained of."""
    found = subprocess.run(command, capture_output=True, text=True, **options)
    if found.returncode:
        raise TreeError(f"{what}: {(found.stderr.strip() or found.stdout.strip())[-1000:]}")
    return found.stdout


def git(*arguments: str) -> str:
    return output(["git", "-C", str(ROOT), *arguments], f"git {arguments[0]}")


def resolved(commit: str) -> tuple[str, str]:
    """Full hash of a commit, and its short one with the subject."""
    full = git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").strip()
    return full, git("log", "-1", "--format=%h %s", full).strip()


def export(commit: str, folder: Path) -> None:
    """The files of a commit."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    git("archive", "--format=tar", f"--output={archive}", commit)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def working_files() -> list[str]:
    """The files of the working tree that git tracks or would."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({name for name in listed if name and (ROOT / name).is_file()})


def copy_working(folder: Path) -> None:
    for name in working_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def described() -> str:
    """What the working tree is: its commit, and a digest of the package's files where they differ from it."""
    changed = [line[3:] for line in git("status", "--porcelain", "--untracked-files=all", "--", "ckptdiff", "pyproject.toml").splitlines()]
    head = resolved("HEAD")[1]
    if not changed:
        return f"working tree, the package as in {head}"
    digest = hashlib.sha256()
    for name in working_files():
        if name.startswith("ckptdiff/") or name == "pyproject.toml":
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return f"working tree, {head} and {len(changed)} changed files of the package ({digest.hexdigest()[:12]})"


def install(tree: Tree) -> None:
    """A virtual environment with the tree's package; pip's own cache keeps what it downloads."""
    venv = tree.folder / "venv"
    output([sys.executable, "-m", "venv", str(venv)], f"{tree.name}: venv")
    pip = [tree.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(tree.folder / "source"), *BESIDES]
    output(pip, f"{tree.name}: pip install", env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, cwd=tree.folder)


def facts(tree: Tree) -> dict[str, Any]:
    """Versions of all that is installed; raises TreeError if what runs is not the tree's own package."""
    found: dict[str, Any] = json.loads(output([tree.python, CHILD, "facts"], f"{tree.name}: import", env=tree.env(), cwd=tree.folder))
    place = found.pop("package")
    if not Path(place).is_relative_to(tree.folder / "venv"):
        raise TreeError(f"{tree.name}: imports ckptdiff from {place}, expected its own in {tree.folder / 'venv'}")
    return found


def build(name: str, work: Path, commit: str | None) -> Tree:
    """Install a commit, or None: the working tree. One of a commit that lies in ``work`` from an earlier run is taken."""
    full, what = resolved(commit) if commit else ("", described())
    tree = Tree(name, work / (f"{name}-{full[:12]}" if commit else name), what)
    done = tree.folder / "installed"
    if not (commit and done.exists()):
        shutil.rmtree(tree.folder, ignore_errors=True)
        export(full, tree.folder / "source") if commit else copy_working(tree.folder / "source")
        install(tree)
        done.touch()
    return tree

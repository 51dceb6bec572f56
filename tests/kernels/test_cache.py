"""Compiled kernels on disk: shared between users, read from folders that cannot be written, and never the wrong ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core import config

import ckptdiff
from ckptdiff.kernels import cache, mask_ops
from ckptdiff.kernels.jit import jit
from tests.support.processes import AS_NOBODY, NOBODY, needs_root, result_of, start

PACKAGE = Path(ckptdiff.__file__).parent
KEEP = """
import json, sys
import numpy as np
from ckptdiff.kernels import cache, mask_ops
units = np.arange(8, dtype=sys.argv[1])
mask_ops.zero_unmasked(units, np.array([0b10110010], np.uint8))
assert units.tolist() == [0, 1, 0, 0, 4, 5, 0, 7], units
names = {"read": "read_files", "compiled": "compiled_kernels", "unkept": "save_failures"}
print(json.dumps({key: len(getattr(cache, name)) for key, name in names.items()} | {"why": cache.save_failures}))
"""
READ, COMPILED = {"read": 1, "compiled": 0, "unkept": 0, "why": []}, {"read": 0, "compiled": 1, "unkept": 0, "why": []}


def clone(folder: Path) -> Path:
    """A copy of the package, all of whose files have another time; returns the folder to import it from."""
    shutil.copytree(PACKAGE, folder / "ckptdiff", ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def change(path: Path) -> None:
    """Add a comment to a source file, which must be there."""
    path.write_text(path.read_text() + "# changed\n")


def keep(kind: str = "u1", **options: Any) -> dict[str, Any]:
    """Run one kernel in a process of its own: how many kernels it read, compiled, and could not keep."""
    return result_of(start(KEEP, kind, **options))


def keep_as_nobody(kind: str = "u1", **options: Any) -> dict[str, Any]:
    """As :func:`keep`, as another user without a home."""
    return result_of(start(KEEP, kind, before=AS_NOBODY, **options))


def keep_here(kind: str = "u1") -> str:
    """As :func:`keep`, in this process: which of the three happened."""
    cache.folders.cache_clear()
    before = [len(items) for items in (cache.read_files, cache.compiled_kernels, cache.save_failures)]
    units = np.arange(8, dtype=kind)
    jit(mask_ops.zero_unmasked.py_func)(units, np.array([0b10110010], np.uint8))
    assert units.tolist() == [0, 1, 0, 0, 4, 5, 0, 7]
    after = [len(items) for items in (cache.read_files, cache.compiled_kernels, cache.save_failures)]
    return {(1, 0, 0): "read", (0, 1, 0): "compiled", (0, 1, 1): "unkept"}[tuple(b - a for a, b in zip(before, after, strict=True))]


def test_clones_of_one_source_share_their_kernels(kernel_folder: Path, tmp_path: Path) -> None:
    """Neither the path nor the times of sources matter; one other byte of what is compiled does."""
    other = clone(tmp_path)
    for path in (other / "ckptdiff").rglob("*.py"):
        os.utime(path, (1, 1))
    assert keep_here() == "compiled"
    kept = set(kernel_folder.iterdir())
    assert keep(site=other, cache=kernel_folder) == READ
    change(other / "ckptdiff" / "format" / "dtypes.py")  # which the kernel's module imports
    assert keep(site=other, cache=kernel_folder) == COMPILED
    assert len(kept) == 1 and kept < set(kernel_folder.iterdir()) and keep_here() == "read", "other versions use the folder beside it"
    change(other / "ckptdiff" / "cli" / "main.py")
    assert keep(site=other, cache=kernel_folder) == READ


def test_beside_the_package_kernels_of_older_sources_go(tmp_path: Path) -> None:
    site = clone(tmp_path)
    assert keep(site=site) == COMPILED
    (old,) = (site / "ckptdiff" / "__pycache__" / "kernels").iterdir()
    (abandoned := old.with_name(f"{old.name}.x.part")).touch()
    os.utime(abandoned, (1, 1))
    change(site / "ckptdiff" / "kernels" / "mask_ops.py")
    assert keep(site=site) == COMPILED
    (new,) = old.parent.iterdir()
    assert new != old


def test_what_changes_the_code_is_in_the_name(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_here() == "compiled"
    for name, value in (("BOUNDSCHECK", 1), ("OPT", config._OptLevel(1)), ("COLOR_SCHEME", "dark_bg")):
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value)
            assert keep_here() == ("read" if name == "COLOR_SCHEME" else "compiled"), name
    for name in ("numba", "np", "llvmlite"):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(cache, name), "__version__", "1")
            assert keep_here() == "compiled", name
    assert keep_here() == "read"
    assert keep(cache=kernel_folder, env={"NUMBA_CPU_NAME": "generic"}) == COMPILED
    assert len(os.listdir(kernel_folder)) == 7


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    """Another kernel under this one's name."""
    assert keep_here("u2") == "compiled"
    (other,) = set(path.parent.iterdir()) - {path}
    os.replace(other, path)


def no_pickle(path: Path) -> None:
    data = path.read_bytes()
    begin, payload = len(cache.FILE_MAGIC) + 32, b"no pickle"
    path.write_bytes(data[:begin] + cache.xxh128(payload) + payload)


@pytest.mark.parametrize("damage", [cut, flip, swap, no_pickle, lambda path: path.write_bytes(b"")])
def test_a_damaged_kernel_is_compiled_and_written_anew(damage: Callable[[Path], None], kernel_folder: Path) -> None:
    assert keep_here() == "compiled"
    (path,) = kernel_folder.iterdir()
    damage(path)
    assert [keep_here(), keep_here()] == ["compiled", "read"]
    assert list(kernel_folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(kernel_folder: Path) -> None:
    """Where nothing can be kept, the process has what it compiled."""
    kernel_folder.write_text("a file")
    (kernel_folder.parent / "own").write_text("a file")
    assert (
        keep_here() == "unkept"
        and cache.save_failures[-1] == f"{kernel_folder.parent / 'own' / 'ckptdiff'}: {kernel_folder.parent / 'own'} is not a folder"
    )


def test_a_user_without_a_home_has_no_folder_of_their_own(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that is called ``~`` either."""
    kernel_folder.write_text("a file")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    cache.folders.cache_clear()
    assert cache.folders() == [kernel_folder] and keep_here() == "unkept"


def test_processes_that_write_at_once(kernel_folder: Path) -> None:
    results = [result_of(process) for process in [start(KEEP, kind, cache=kernel_folder) for kind in ("u1", "u2") * 2]]
    assert all(result in (READ, COMPILED) for result in results)
    assert len(os.listdir(kernel_folder)) == 2 and keep_here("u1") == keep_here("u2") == "read"


@needs_root
def test_another_user_reads_what_root_warmed(kernel_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home and a folder to write; whatever root's umask is. What is missing is compiled for the process alone."""
    cache, own = open_folder / "shared" / "kernels", open_folder / "own"
    monkeypatch.setenv("CKPTDIFF_CACHE_DIR", str(cache))
    before = os.umask(0o077)
    try:
        assert keep_here() == "compiled"
    finally:
        os.umask(before)
    (kept,) = cache.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (cache.parent, cache, kept)] == [0o755, 0o755, 0o644]
    assert keep_as_nobody(cache=cache) == READ
    missing = keep_as_nobody(kind="u2", cache=cache)
    assert (missing["read"], missing["compiled"], missing["unkept"]) == (0, 1, 1) and missing["why"][0].endswith("cannot be written")
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    options: dict[str, Any] = {"cache": cache, "env": {"HOME": str(own)}}
    assert [keep_as_nobody(kind="u2", **options) for _ in range(2)] == [COMPILED, READ]
    assert len(os.listdir(own / ".cache" / "ckptdiff")) == len(os.listdir(cache)) == 1
    assert [path.stat().st_mode & 0o777 for path in (own / ".cache", own / ".cache" / "ckptdiff")] == [0o700, 0o700]


@needs_root
def test_an_install_that_cannot_be_written(open_folder: Path) -> None:
    site = clone(open_folder / "site")
    assert keep(site=site) == COMPILED
    for path in [site / "ckptdiff", *(site / "ckptdiff").rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    assert keep_as_nobody(site=site) == READ


@needs_root
def test_kernels_that_others_could_have_written_are_not_read(kernel_folder: Path) -> None:
    """A kernel is code: neither from a folder, nor from a file, that somebody else than root and the user may write."""
    own = kernel_folder.parent / "own" / "ckptdiff"
    assert keep_here() == "compiled"
    (path,) = kernel_folder.iterdir()
    for owner, mode in ((-1, 0o777), (-1, 0o775), (12345, 0o755)):
        os.chown(kernel_folder, owner, -1)
        kernel_folder.chmod(mode)
        assert keep_here() == "compiled" and len(os.listdir(own)) == 1
        shutil.rmtree(own)
    os.chown(kernel_folder, 0, -1)
    for owner, mode in ((-1, 0o664), (-1, 0o646), (12345, 0o644)):
        os.chown(path, owner, -1)
        path.chmod(mode)
        assert [keep_here(), keep_here()] == ["compiled", "read"], "written anew"


def test_a_package_without_its_sources_compiles_for_the_process_alone(tmp_path: Path) -> None:
    site = clone(tmp_path / "site")
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(site)], check=True)
    for path in (site / "ckptdiff").rglob("*.py"):
        path.unlink()
    result = keep(site=site, cache=tmp_path / "cache")
    assert (result["read"], result["compiled"], result["unkept"]) == (0, 1, 1) and result["why"][0].endswith("No such file or directory")

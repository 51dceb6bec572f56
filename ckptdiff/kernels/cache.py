"""Compiled kernels on the disk: where they are kept, whose are read, and what they depend on.

They are kept in one folder, the first of these that this process may write:

- the folder that ``CKPTDIFF_CACHE_DIR`` names, or else ``__pycache__/kernels`` in the package's own folder;
- the user's own: ``ckptdiff`` in ``NUMBA_CACHE_DIR``, in ``XDG_CACHE_HOME``, or in ``~/.cache``.

A first folder that cannot be written is still read, so that an image, a read-only install or a shared folder needs to be warmed once,
by whoever may write it. Where no folder can be written, kernels are compiled for the process alone.

A file holds one kernel for one signature. Its name is a digest of all that the machine code depends on: the text of the kernel's module and
of every module of ours that this imports (neither path nor time), Python, NumPy, Numba and llvmlite, the processor, and those settings of
Numba that change code. So clones of one source share a folder, other versions use it beside them, and processes that write the same
file at once write the same thing. A file that is cut short or damaged is as good as none, and is written anew.

Reading a kernel runs it, and unpickles what describes it. So a folder or a file is read only if nobody can write it but root, the user
and the owner of the package's own files, whose code runs anyway.

Numba's own cache serves for none of this: it knows sources by their paths (before 0.68 by their times too), passes over a folder that it
cannot write, trusts what it reads, and lets two processes that write at once give a signature another's code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps as pickled

from ckptdiff.format.digests import xxh128

PACKAGE = Path(__file__).parents[1]
BESIDE = PACKAGE / "__pycache__" / "kernels"
VARIABLE = "CKPTDIFF_CACHE_DIR"
HEAD = b"ckptdiff kernel 1\n"
IMPORTS = re.compile(r"^from ckptdiff([.\w]*) import (\([^)]*\)|.*)", re.MULTILINE)
rebuild: Any = CompileResult._rebuild
dumps: Any = pickled  # which, as the above, has no types
SETTINGS = (
    *("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML", "ENABLE_AVX", "LLVM_REFPRUNE_FLAGS", "LLVM_REFPRUNE_PASS"),
    *("LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE", "USING_SVML"),
)
"""Settings of Numba that change the machine code."""
ABANDONED = 3600
"""Seconds after which a file that some process was writing is taken for what a killed one left."""

read: list[Path] = []
"""Files that this process has read kernels from."""
compiled: list[str] = []
"""Kernels that it has compiled, by function and signature."""
unkept: list[str] = []
"""Where some of these could not be kept, and why."""


@functools.cache
def folders() -> list[Path]:
    """The folders that kernels are read from, the last of which is the one to write."""
    first = _absolute(os.environ.get(VARIABLE)) or BESIDE
    own = _absolute(os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return [first] if own is None or why_not(first) is None else [first, own / "ckptdiff"]


def _absolute(path: str | None) -> Path | None:
    path = os.path.expanduser(path or "")
    return Path(os.path.abspath(path)) if path and not path.startswith("~") else None  # a user without a home


def why_not(folder: Path) -> str | None:
    """Why kernels cannot be kept in a folder, or None where they can."""
    there = folder
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    if not os.path.isdir(there):
        return f"{there} is not a folder"
    if there == folder and not _trusted(os.stat(there)):
        return f"other users than this one and root may write {folder}: change its owner, or take the right away (chmod go-w)"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


def _trusted(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid(), _owner()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _owner() -> int:
    """The owner of the package, or root for one in an archive."""
    return PACKAGE.stat().st_uid if PACKAGE.is_dir() else 0


@functools.cache
def sources(path: Path) -> list[Path]:
    """A module's file, and those of all modules of the package that it imports when it is loaded, in order of their names."""
    found, left = {path}, [path]
    while left:
        for start, names in IMPORTS.findall(left.pop().read_text(encoding="utf-8")):
            for name in (start, *(f"{start}.{name}" for name in re.findall(r"\w+", names))):
                module = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
                if name and module not in found and module.is_file():
                    found.add(module)
                    left.append(module)
    return sorted(found)


@functools.cache
def stamp(path: Path) -> str:
    """Digest of the text that a module's kernels are compiled from."""
    parts = [f"{source.relative_to(PACKAGE)}\n".encode() + hashlib.sha256(source.read_bytes()).digest() for source in sources(path)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _environment(codegen: Any) -> str:
    versions = (sys.implementation.cache_tag, sys.version, np.__version__, numba.__version__, llvmlite.__version__)
    return repr((*versions, codegen.magic_tuple(), [f"{name}={getattr(config, name, None)!r}" for name in SETTINGS]))


class KernelCache(_Cache):
    """What Numba asks for a kernel's machine code before it compiles, and hands that to afterwards."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._path = Path(function.__globals__["__file__"]).with_suffix(".py")
        self._name = f"{function.__module__.removeprefix('ckptdiff.')}.{function.__name__}"

    @property
    def cache_path(self) -> str:
        return str(folders()[-1])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel for a signature, or None where it has to be compiled."""
        target_context.refresh()
        for folder in folders():
            try:
                name, key = self._file(sig, target_context.codegen())
                result = rebuild(target_context, *pickle.loads(_read(folder, name, key)))
            except Exception:  # missing, damaged, or whole and yet not what this Numba writes: compile it
                continue
            read.append(folder / name)
            return result
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel that was just compiled; where that fails, the process has it all the same."""
        compiled.append(f"{self._name} {sig}")
        if data.library.has_dynamic_globals:  # addresses of this process
            unkept.append(f"{self._name}: holds addresses")
            return
        folder = folders()[-1]
        try:
            _write(folder, *self._file(sig, data.codegen), dumps(data._reduce()))
            _tidy(folder, self._name, stamp(self._path))
        except OSError as error:
            unkept.append(f"{folder}: {error.strerror}")

    def enable(self) -> None:
        """Numba's, and never off."""

    def disable(self) -> None:
        """Numba's, and never off."""

    def flush(self) -> None:
        """Numba's, to have kernels compiled again: they are, when their source changes."""

    def _file(self, sig: Any, codegen: Any) -> tuple[str, bytes]:
        """A file's name, and the whole digest, which the file holds: a kernel that is renamed is not taken for another."""
        source = stamp(self._path)
        key = hashlib.sha256(repr((self._name, source, sig, _environment(codegen))).encode()).digest()
        return f"{self._name}.{source}.{key.hex()[:32]}", key


def _read(folder: Path, name: str, key: bytes) -> bytes:
    """What a file holds; raises OSError and ValueError."""
    with open(folder / name, "rb") as file:
        if not (_trusted(folder.stat()) and _trusted(os.fstat(file.fileno()))):
            raise ValueError("not to be trusted")
        data = file.read()
    begin = len(HEAD) + len(key) + 16
    if data[:begin] != HEAD + key + xxh128(data[begin:]):
        raise ValueError("damaged")
    return data[begin:]


def _write(folder: Path, name: str, key: bytes, payload: bytes) -> None:
    """Write a file that everybody may read, whole or not at all; new folders of the user's own are closed to others. Raises OSError."""
    if why := why_not(folder):
        raise OSError(None, why)
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755 if folder == folders()[0] else 0o700)
    handle, temporary = tempfile.mkstemp(prefix=f"{name}.", suffix=".part", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(HEAD + key + xxh128(payload) + payload)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _tidy(folder: Path, name: str, source: str) -> None:
    """Remove what killed processes left of a kernel, and beside the package, where there is one source, also what older ones gave."""
    for path in folder.glob(f"{name}.*"):
        with contextlib.suppress(OSError):
            abandoned = path.suffix == ".part" and time.time() - path.stat().st_mtime > ABANDONED
            if abandoned or (folder == BESIDE and not path.name.startswith(f"{name}.{source}.")):
                path.unlink()

"""Compiled kernels on the disk: where they are kept, which files are trusted, and what machine code depends on.

Kernels are kept in one folder, the first of these that this process may write:

- the folder that ``CKPTDIFF_CACHE_DIR`` names, or else ``__pycache__/kernels`` in the package's own folder;
- the user's own: ``ckptdiff`` in ``NUMBA_CACHE_DIR``, in ``XDG_CACHE_HOME``, or in ``~/.cache``.

A first folder that cannot be written is still read, so that an image, a read-only install or a shared folder needs to be filled only
once, by somebody who may write it. Where no folder can be written, kernels are compiled for the process alone.

A file holds one kernel for one signature. Its name has a digest of all that the machine code depends on: the text of the kernel's
module and of every module of ckptdiff that it imports (not their paths or times), the versions of Python, NumPy, Numba and llvmlite, the
processor, and those settings of Numba that change code. So clones of one source share a folder, other versions can use it too, and
processes that write the same file at once write the same bytes. A file that is cut short or damaged counts as missing, and is written
again.

Reading a kernel unpickles its description, and runs its code. So a folder or a file is read only if nobody can write it but root, the user
and the owner of the package's own files, whose code runs anyway.

Numba's own cache does none of this: it identifies sources by their paths (before 0.68 by their times too), ignores a folder that it
cannot write, trusts what it reads, and if two processes write at once a signature may get the code of another.
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
from ckptdiff.kernels import compiling

PACKAGE = Path(__file__).parents[1]
BESIDE_PACKAGE = PACKAGE / "__pycache__" / "kernels"
ENVIRONMENT_VARIABLE = "CKPTDIFF_CACHE_DIR"
FILE_MAGIC = b"ckptdiff kernel 1\n"
"""The first bytes of a file. The digest of its name, the XXH3-128 of the rest, and the pickled kernel follow."""
IMPORTS = re.compile(r"^from ckptdiff([.\w]*) import (\([^)]*\)|.*)", re.MULTILINE)
# Functions of Numba that have no types:
rebuild: Any = CompileResult._rebuild
dumps: Any = pickled
SETTINGS = (
    *("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML", "ENABLE_AVX", "LLVM_REFPRUNE_FLAGS", "LLVM_REFPRUNE_PASS"),
    *("LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE", "USING_SVML"),
)
"""Settings of Numba that change the machine code."""
ABANDONED = 3600
"""Seconds after which an unfinished file is taken for one that a killed process left."""

read_files: list[Path] = []
"""Files that this process has read kernels from."""
compiled_kernels: list[str] = []
"""Kernels that this process has compiled, by function and signature."""
save_failures: list[str] = []
"""Where compiled kernels could not be kept, and why."""


@functools.cache
def folders() -> list[Path]:
    """The folders that kernels are read from; they are written to the last."""
    first = _absolute(os.environ.get(ENVIRONMENT_VARIABLE)) or BESIDE_PACKAGE
    own = _absolute(os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return [first] if own is None or why_unusable(first) is None else [first, own / "ckptdiff"]


def _absolute(path: str | None) -> Path | None:
    """A path that may begin with ``~``; None if there is none, or the user has no home."""
    path = os.path.expanduser(path or "")
    return Path(os.path.abspath(path)) if path and not path.startswith("~") else None


def why_unusable(folder: Path) -> str | None:
    """Why kernels cannot be kept in a folder; None if they can."""
    existing = folder
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        return f"{existing} is not a folder"
    if existing == folder and not _trusted(os.stat(existing)):
        return f"other users than this one and root may write {folder}: change its owner, or take the right away (chmod go-w)"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written"


def _trusted(status: os.stat_result) -> bool:
    """Whether only root, this user and the package's owner can write a file or folder."""
    return status.st_uid in (0, os.geteuid(), _owner()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _owner() -> int:
    """The owner of the package's files; root if it is in an archive."""
    return PACKAGE.stat().st_uid if PACKAGE.is_dir() else 0


@functools.cache
def sources(path: Path) -> list[Path]:
    """The files of a module and of all modules of the package that it imports when it is loaded, sorted."""
    files, left = {path}, [path]
    while left:
        for start, names in IMPORTS.findall(left.pop().read_text(encoding="utf-8")):
            for name in (start, *(f"{start}.{name}" for name in re.findall(r"\w+", names))):
                module = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
                if name and module not in files and module.is_file():
                    files.add(module)
                    left.append(module)
    return sorted(files)


@functools.cache
def source_digest(path: Path) -> str:
    """Digest of the sources that a module's kernels are compiled from."""
    parts = [f"{source.relative_to(PACKAGE)}\n".encode() + hashlib.sha256(source.read_bytes()).digest() for source in sources(path)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _environment(codegen: Any) -> str:
    """What machine code depends on beside the sources."""
    versions = (sys.implementation.cache_tag, sys.version, np.__version__, numba.__version__, llvmlite.__version__)
    return repr((*versions, codegen.magic_tuple(), [f"{name}={getattr(config, name, None)!r}" for name in SETTINGS]))


class KernelCache(_Cache):
    """The cache of one kernel, as Numba wants it: asked for machine code before the kernel is compiled, and given that afterwards."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._path = Path(function.__globals__["__file__"]).with_suffix(".py")
        self._name = f"{function.__module__.removeprefix('ckptdiff.')}.{function.__name__}"

    @property
    def cache_path(self) -> str:
        return str(folders()[-1])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel for a signature; None if it has to be compiled.

        Numba's own cache first registers all functions that kernels may call, which takes 0.2 s and 34 MB. Machine code that is there
        already calls none of them; the compiler registers them itself before it compiles.
        """
        for folder in folders():
            try:
                name, key = self._file(sig, target_context.codegen())
                result = rebuild(target_context, *pickle.loads(_read(folder, name, key)))
            except Exception:  # missing, damaged, or not what this version of Numba writes
                continue
            read_files.append(folder / name)
            return result
        compiling.begin(why_unusable(folders()[-1]))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel that was just compiled. If that fails, the process still has the kernel."""
        compiled_kernels.append(f"{self._name} {sig}")
        try:
            self._keep(sig, data)
        finally:
            compiling.end()

    def _keep(self, sig: Any, data: Any) -> None:
        if data.library.has_dynamic_globals:  # addresses in this process
            save_failures.append(f"{self._name}: its code holds addresses of this process")
            return
        folder = folders()[-1]
        try:
            _write(folder, *self._file(sig, data.codegen), dumps(data._reduce()))
            _tidy(folder, self._name, source_digest(self._path))
        except OSError as error:
            save_failures.append(f"{folder}: {error.strerror}")

    def enable(self) -> None:
        """Part of Numba's interface; this cache is always on."""

    def disable(self) -> None:
        """Part of Numba's interface; this cache is always on."""

    def flush(self) -> None:
        """Part of Numba's interface, to have kernels compiled again; here they are when their sources change."""

    def _file(self, sig: Any, codegen: Any) -> tuple[str, bytes]:
        """The name of a kernel's file, and the whole digest, which the file holds: renamed, it is not taken for another kernel."""
        source = source_digest(self._path)
        key = hashlib.sha256(repr((self._name, source, sig, _environment(codegen))).encode()).digest()
        return f"{self._name}.{source}.{key.hex()[:32]}", key


def _read(folder: Path, name: str, key: bytes) -> bytes:
    """The pickled kernel in a file; raises OSError, or ValueError if the file is damaged or not to be trusted."""
    with open(folder / name, "rb") as file:
        if not (_trusted(folder.stat()) and _trusted(os.fstat(file.fileno()))):
            raise ValueError("somebody else may write it")
        data = file.read()
    begin = len(FILE_MAGIC) + len(key) + 16
    if data[:begin] != FILE_MAGIC + key + xxh128(data[begin:]):
        raise ValueError("damaged")
    return data[begin:]


def _write(folder: Path, name: str, key: bytes, payload: bytes) -> None:
    """Write a file that everybody may read, as a whole or not at all; others cannot read new folders of the user's own. Raises OSError."""
    if why := why_unusable(folder):
        raise OSError(None, why)
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755 if folder == folders()[0] else 0o700)
    handle, temporary = tempfile.mkstemp(prefix=f"{name}.", suffix=".part", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(FILE_MAGIC + key + xxh128(payload) + payload)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _tidy(folder: Path, name: str, source: str) -> None:
    """Remove unfinished files of a kernel that killed processes left, and in the package's own folder those of older sources too."""
    for path in folder.glob(f"{name}.*"):
        with contextlib.suppress(OSError):
            abandoned = path.suffix == ".part" and time.time() - path.stat().st_mtime > ABANDONED
            if abandoned or (folder == BESIDE_PACKAGE and not path.name.startswith(f"{name}.{source}.")):
                path.unlink()

"""Never a wrong file: build beside the output, make durable, rename (design rule 3; spec 10, step 6)."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import xxhash

from ckptdiff.errors import OutputError
from ckptdiff.machine import machine_error

OLD = "old"
FRESH = 60.0
"""Seconds in which a folder without a lock may still be one that a running process is about to lock."""

MARKS = ("config.json", "model_index.json")
"""Files that, beside weights, show that a folder is a checkpoint."""


def check_output(out: Path, inputs: Iterable[Path], *, folder: bool, overwrite: bool) -> None:
    """Refuse, before any work is done, an output that cannot be written; put an old folder back if a crash left it aside.

    Raises:
        OutputError: ``out`` exists (unless ``overwrite``), is or holds or lies in an input, or has no folder to lie in.
    """
    out = Path(os.path.abspath(out))
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    with writing(out):
        _put_back(out)
        _refuse_inputs(out, inputs)
        _refuse_existing(out, folder, overwrite)


def check_beside(out: Path, inputs: Iterable[str | os.PathLike[str]], *, folder: bool, overwrite: bool) -> None:
    """Refuse, before any work is done, an output such as a page of charts that cannot be written, or would replace what is read.

    Raises:
        OutputError: ``out`` exists (unless ``overwrite``), is or holds or lies in an input, is one by a link, or has no folder to lie in.
    """
    there = [Path(path) for path in inputs if os.path.exists(path)]  # others are on the Hub
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.absolute().parent} to write it in")
    with writing(out):
        _refuse_inputs(out, [*there, *(file for path in there if out.is_file() for file in path.rglob("*") if file.is_file())])
        if os.path.lexists(out):
            if not overwrite:
                raise OutputError(f"{out}: exists; choose another output, or give --overwrite")
            _refuse_kind(out, folder)


@contextmanager
def build_beside(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path in a new folder beside ``out``; the file or folder there at the end takes the place of ``out``.

    Files are synced, then renamed in one step. After an error the new folder is removed and ``out`` is as it was. Folders
    that killed runs left behind are removed: a running one holds a lock on its own.
    """
    out = Path(os.path.abspath(out))
    prefix = _prefix(out)
    with writing(out):
        _remove_stale(out.parent, prefix)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        lock = os.open(work, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield work / "result"
            _finish(work / "result", out, overwrite)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)


def _remove_stale(parent: Path, prefix: str) -> None:
    for path in parent.iterdir():
        if path.name.startswith(prefix) and path.name != prefix + OLD and path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # locked, so its run is alive; or gone meanwhile
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    if time.time() - path.stat().st_mtime < FRESH:
        return
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn the OSErrors of writing into one OutputError that says what to do; those of this machine become a ResourceError."""
    try:
        yield
    except OSError as error:
        lacking = machine_error(error)
        if lacking is not None:
            raise lacking from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{out}: the disk is full; free some space, or write elsewhere. Nothing was left behind") from None
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError unless the disk of ``out`` has ``needed`` bytes free."""
    with writing(out):
        free = shutil.disk_usage(Path(os.path.abspath(out)).parent).free
    if free < needed:
        raise OutputError(f"{out}: {needed:,} bytes are needed, {free:,} are free; free some space, or write elsewhere")


def _prefix(out: Path) -> str:
    """What the names of folders beside an output begin with; long names would not fit, so their hash stands for them."""
    name = os.fsencode(out.name)
    return f".{out.name if len(name) <= 100 else xxhash.xxh3_64_hexdigest(name)}.ckptdiff-"


def _aside(out: Path) -> Path:
    return out.with_name(_prefix(out) + OLD)


def _put_back(out: Path) -> None:
    """After a crash between the two renames of an overwrite, the old folder stands aside: put it back."""
    if not os.path.lexists(out) and _aside(out).is_dir():
        os.rename(_aside(out), out)


def _refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    for path in inputs:
        if out.exists() and path.exists() and os.path.samefile(out, path):
            raise OutputError(f"{out}: the output is the input {path}; choose another output")
        for here, other in product(_names(out), _names(path)):
            if here == other:
                raise OutputError(f"{out}: the output is the input {path}; choose another output")
            if other in here.parents:
                raise OutputError(f"{out}: the output lies in the input {path}; choose another output")
            if here in other.parents:
                raise OutputError(f"{out}: the output holds the input {path}; choose another output")


def _names(path: Path) -> set[Path]:
    """What a path is, with links followed and without."""
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


def _refuse_kind(out: Path, folder: bool) -> None:
    if out.is_symlink() or not (out.is_dir() or out.is_file()):
        raise OutputError(f"{out}: is {'a link' if out.is_symlink() else 'not a regular file'}, which --overwrite does not replace")
    if out.is_dir() != folder:
        raise OutputError(f"{out}: a {'folder' if folder else 'file'} cannot take its place; choose another output")


def _refuse_existing(out: Path, folder: bool, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists; choose another output, or give --overwrite")
    _refuse_kind(out, folder)
    if folder and any(out.iterdir()) and not _is_ours(out):
        raise OutputError(f"{out}: is neither a checkpoint nor a patch, and --overwrite replaces nothing else; choose another output")
    if out in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(f"{out}: holds the current folder, so --overwrite does not replace it; choose another output")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a patch, or holds weights at its root, or below it beside a configuration."""
    if (folder / "ckptdiff.json").exists() or any(folder.glob("*.safetensors")):
        return True
    return any((folder / name).exists() for name in MARKS) and any(folder.rglob("*.safetensors"))


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _finish(built: Path, out: Path, overwrite: bool) -> None:
    for root, _, names in os.walk(built):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
    if built.is_file():
        sync(built)
    if built.is_dir() and out.is_dir() and overwrite:
        _swap(built, out)
    elif built.is_dir() or overwrite:
        os.rename(built, out)  # a folder never replaces a file, nor a folder that holds something
    else:
        _rename_new(built, out)
    sync(out.parent)


def _rename_new(built: Path, out: Path) -> None:
    """Rename a file, but never over another that came into being meanwhile."""
    try:
        os.link(built, out)
    except FileExistsError:
        raise OutputError(f"{out}: came into being while the output was built, and was left as it is; run again") from None
    except OSError:  # a file system without hard links
        os.rename(built, out)


def _swap(built: Path, out: Path) -> None:
    """Folders cannot be replaced in one rename: move the old one aside first."""
    aside = _aside(out)
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(out, aside)
    try:
        os.rename(built, out)
    except BaseException:
        os.rename(aside, out)
        raise
    sync(out.parent)
    shutil.rmtree(aside, ignore_errors=True)
    if aside.exists():
        raise OutputError(f"{out}: is written, but the old folder could not be removed from {aside}: remove it")

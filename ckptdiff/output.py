"""Never a wrong file: build beside the output, make durable, rename (design rule 3; spec 10, step 6)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdiff.errors import OutputError


def check_output(out: Path, inputs: Iterable[Path], *, folder: bool, overwrite: bool) -> None:
    """Refuse, before any work is done, an output that cannot be written; put an old folder back if a crash left it aside.

    Raises:
        OutputError: ``out`` exists (unless ``overwrite``), is or holds or lies in an input, or has no folder to lie in.
    """
    out = Path(os.path.abspath(out))
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    _put_back(out)
    _refuse_inputs(out, inputs)
    _refuse_existing(out, folder, overwrite)


@contextmanager
def build_beside(out: Path) -> Iterator[Path]:
    """Give a path in a new folder beside ``out``; the file or folder there at the end takes the place of ``out``.

    Files are synced, then renamed in one step. After an error the new folder is removed and ``out`` is as it was.
    """
    out = Path(os.path.abspath(out))
    with writing(out):
        work = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.ckptdiff-", dir=out.parent))
        try:
            yield work / out.name
            _finish(work / out.name, out)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn the OSErrors of writing into one OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or str(out)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{out}: the disk is full; free some space, or write elsewhere. Nothing was left behind") from None
        raise OutputError(f"{where}: cannot be written: {error.strerror}") from None


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError unless the disk of ``out`` has ``needed`` bytes free."""
    with writing(out):
        free = shutil.disk_usage(Path(os.path.abspath(out)).parent).free
    if free < needed:
        raise OutputError(f"{out}: {needed:,} bytes are needed, {free:,} are free; free some space, or write elsewhere")


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.ckptdiff-old")


def _put_back(out: Path) -> None:
    """After a crash between the two renames of an overwrite, the old folder stands aside: put it back."""
    if not os.path.lexists(out) and _aside(out).is_dir():
        with writing(out):
            os.rename(_aside(out), out)


def _refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    real = Path(os.path.realpath(out))
    for path in inputs:
        other = Path(os.path.realpath(path))
        if real == other or (out.exists() and other.exists() and os.path.samefile(out, other)):
            raise OutputError(f"{out}: the output is the input {path}; choose another output")
        if other in real.parents:
            raise OutputError(f"{out}: the output lies in the input {path}; choose another output")
        if real in other.parents:
            raise OutputError(f"{out}: the output holds the input {path}; choose another output")


def _refuse_existing(out: Path, folder: bool, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists; choose another output, or give --overwrite")
    if out.is_dir() != folder:
        raise OutputError(f"{out}: a {'folder' if folder else 'file'} cannot take its place; choose another output")
    if folder and any(out.iterdir()) and not any(out.rglob("*.safetensors")) and not (out / "ckptdiff.json").exists():
        raise OutputError(f"{out}: is a folder without weights, which --overwrite does not replace; choose another output")


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _finish(built: Path, out: Path) -> None:
    for root, _, names in os.walk(built):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
    if built.is_file():
        sync(built)
    if built.is_dir() and out.is_dir():
        _swap(built, out)
    else:
        os.replace(built, out)
        sync(out.parent)


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
    shutil.rmtree(aside)

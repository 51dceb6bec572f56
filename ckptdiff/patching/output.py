"""Never a wrong file: build beside the output, make durable, move into place in one step (design rule 3; spec 10, step 6)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from ckptdiff.errors import OutputError
from ckptdiff.io.durable import move_new, replace_folder, sync, sync_tree
from ckptdiff.io.leftovers import OLD, RESULT, work_prefix
from ckptdiff.io.signals import held
from ckptdiff.io.work_folder import Work, clean_up, work_folder
from ckptdiff.machine import machine_error
from ckptdiff.patching.overwrite import refuse_existing, refuse_kind


def check_output(out: Path, inputs: Iterable[Path], *, folder: bool, overwrite: bool, files: Collection[str] = ()) -> None:
    """Refuse, before any work is done, an output that cannot be written; mend what a killed run left of an earlier one.

    Args:
        files: of a folder, the paths of those that it will have, relative to it.

    Raises:
        OutputError: ``out`` exists (unless ``overwrite``), is or holds or lies in an input, has no folder to lie in, or holds files that
            ``overwrite`` would lose.
    """
    out = Path(os.path.abspath(out))
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    with writing(out):
        clean_up(out.parent, work_prefix(out), out)
        _refuse_inputs(out, inputs)
        refuse_existing(out, folder, overwrite, files)


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
            refuse_kind(out, folder)


@contextmanager
def build_beside(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path in a new folder beside ``out``; the file or folder there at the end takes the place of ``out``.

    Files are synced first. A new output is there at once and whole. An old one is exchanged with it in one step, or on file systems
    that cannot, a folder in two renames: what a run that is killed between them leaves, the next run that writes ``out`` mends. After
    an error or an interrupt ``out`` is as it was, or, if its message says so, the new output. The new folder is removed.

    Raises:
        OutputError: it cannot be written, or may not replace what is there.
    """
    out = Path(os.path.abspath(out))
    with writing(out), work_folder(out.parent, work_prefix(out), out) as work:
        yield work.path / RESULT
        sync_tree(work.path / RESULT)
        _put(work, out, overwrite)


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
        if error.errno == errno.EXDEV:
            raise OutputError(f"{out}: is of a lower layer of this file system, which cannot be replaced; choose another output") from None
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError unless the disk of ``out`` has ``needed`` bytes free."""
    with writing(out):
        free = shutil.disk_usage(Path(os.path.abspath(out)).parent).free
    if free < needed:
        raise OutputError(f"{out}: {needed:,} bytes are needed, {free:,} are free; free some space, or write elsewhere")


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


def _put(work: Work, out: Path, overwrite: bool) -> None:
    """Move what was built to its place, and make that durable."""
    built, old = work.path / RESULT, work.path / OLD
    replaced = overwrite and os.path.lexists(out)
    if replaced:  # once more, as it may have changed while the new output was built
        files = [file.relative_to(built).as_posix() for file in built.rglob("*") if not file.is_dir()]
        refuse_existing(out, built.is_dir(), overwrite, files)
    with held():
        if not replaced:
            _move_new(built, out)
        elif built.is_dir():
            replace_folder(built, out, old)
        else:
            os.replace(built, out)
        work.done = f"{out} is written, and whole"
        try:
            sync(out.parent)
        except OSError as error:
            raise OutputError(
                f"{work.done}, but {out.parent} could not be flushed to the disk ({error.strerror}), so that it may be gone after a power "
                "cut: check the disk"
            ) from None


def _move_new(built: Path, out: Path) -> None:
    try:
        move_new(built, out)
    except FileExistsError:
        raise OutputError(f"{out}: came into being while the output was built, and was left as it is; run again") from None

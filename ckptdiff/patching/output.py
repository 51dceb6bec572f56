"""No output is ever half written: it is built beside its place, made durable and moved there in one step (spec 10, step 6)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

from ckptdiff.errors import OutputError
from ckptdiff.io.durable import move_new, replace_folder, sync, sync_tree
from ckptdiff.io.in_place import check_whole
from ckptdiff.io.leftovers import OLD, RESULT, work_prefix
from ckptdiff.io.places import Place
from ckptdiff.io.signals import held
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.io.work_folder import Work, clean_up, kept_of, spare_unfinished, unfinished_bytes, work_folder
from ckptdiff.machine import machine_error
from ckptdiff.patching.overwrite import refuse_existing, refuse_kind


def check_output(
    out: Path, inputs: Iterable[Path], *, folder: bool, overwrite: bool, files: Collection[str] = (), mend: bool = True
) -> None:
    """Check, before any work is done, that an output can be written. What a killed run left of an earlier one is mended first.

    Unfinished work stays: it may be gone on with.

    Args:
        out: the checkpoint or patch to write.
        inputs: what is read.
        folder: whether ``out`` will be a folder.
        overwrite: whether an old output may be replaced.
        files: the paths of the files that a folder will have, relative to it.
        mend: whether to mend what a killed run left; a dry run changes nothing.

    Raises:
        OutputError: ``out`` exists (unless ``overwrite``), is an input, holds one or lies in one; its parent folder does not exist; or
            ``overwrite`` would delete files that are in neither the new output nor the old one.
        CheckpointError: ``out`` is a checkpoint that ``apply --in-place`` has not finished.
    """
    out = Path(os.path.abspath(out))
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    check_whole(out)
    with explain_write_errors(out):
        if mend:
            clean_up(out.parent, work_prefix(out), out, spare_unfinished)
        _refuse_inputs(out, inputs)
        refuse_existing(out, folder, overwrite, files)


def check_plain_output(out: Path, inputs: Iterable[str | os.PathLike[str]], *, folder: bool, overwrite: bool) -> None:
    """Check, before any work is done, that an output that is no checkpoint or patch, such as a page of charts, can be written.

    Raises:
        OutputError: ``out`` exists (unless ``overwrite``); is an input, by a link too, holds one or lies in one; or its parent folder does
            not exist.
    """
    local = [Path(path) for path in inputs if os.path.exists(path)]  # others are on the Hub
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.absolute().parent} to write it in")
    with explain_write_errors(out):
        _refuse_inputs(out, [*local, *(file for path in local if out.is_file() for file in path.rglob("*") if file.is_file())])
        if os.path.lexists(out):
            if not overwrite:
                raise OutputError(f"{out}: exists; choose another output, or give --overwrite")
            refuse_kind(out, folder)


@contextmanager
def build_beside(out: Path, *, overwrite: bool = False, log: UnitLog | None = None) -> Iterator[Path]:
    """Give a path in a new folder beside ``out``; the file or folder at that path is moved to ``out`` at the end.

    Files are synced first, so that ``out`` is whole as soon as it exists. An old output is exchanged for the new one in one step. Where a
    file system cannot exchange folders, two renames do it; if a run is killed between them, the next run that writes ``out`` mends that.
    After an error or an interrupt ``out`` is as it was, or, if its message says so, the new output. The new folder is removed; but if the
    block writes a ``log``, it stays after an interrupt or a kill, and the next call with a log of the same key gives it again as it is.

    Raises:
        OutputError: ``out`` cannot be written, or may not be replaced.
    """
    out = Path(os.path.abspath(out))
    with explain_write_errors(out), work_folder(out.parent, work_prefix(out), out, log) as work:
        yield work.path / RESULT
        sync_tree(work.path / RESULT)
        _move_into_place(work, out, overwrite)


@contextmanager
def explain_write_errors(out: Place) -> Iterator[None]:
    """Turn an OSError of writing ``out`` into an OutputError that says what to do, or a lack of the machine into a ResourceError."""
    try:
        yield
    except OSError as error:
        lacking = machine_error(error)
        if lacking is not None:
            raise lacking from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{out}: the disk is full; free some space, or write elsewhere. Nothing was left behind") from None
        if error.errno == errno.EXDEV:
            raise OutputError(f"{out}: lies in a lower layer of this file system: it cannot be replaced; choose another output") from None
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None


@contextmanager
def told_of_unfinished(out: Place) -> Iterator[None]:
    """Have an interrupt, if it says nothing else, say that unfinished work of an earlier run that wrote ``out`` is still there."""
    try:
        yield
    except KeyboardInterrupt as error:
        kept = ""
        if isinstance(out, Path) and not str(error):
            place = Path(os.path.abspath(out))
            with suppress(OSError, OutputError):
                kept = kept_of(place.parent, work_prefix(place), place)
        if kept:
            raise KeyboardInterrupt(kept) from None
        raise


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError unless ``needed`` bytes are free on the disk of ``out``, or taken by unfinished work of it."""
    with explain_write_errors(out):
        place = Path(os.path.abspath(out))
        free = shutil.disk_usage(place.parent).free + unfinished_bytes(place.parent, work_prefix(place), place)
    if free < needed:
        raise OutputError(f"{out}: {needed:,} bytes are needed, {free:,} are free; free some space, or write elsewhere")


def _refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError if the output is an input, holds one or lies in one."""
    for path in inputs:
        if out.exists() and path.exists() and os.path.samefile(out, path):
            raise OutputError(f"{out}: the output is the input {path}; choose another output")
        for own, other in product(_path_and_target(out), _path_and_target(path)):
            if own == other:
                raise OutputError(f"{out}: the output is the input {path}; choose another output")
            if other in own.parents:
                raise OutputError(f"{out}: the output lies in the input {path}; choose another output")
            if own in other.parents:
                raise OutputError(f"{out}: the output holds the input {path}; choose another output")


def _path_and_target(path: Path) -> set[Path]:
    """An absolute path, and the path of what it leads to if links are followed."""
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


def _move_into_place(work: Work, out: Path, overwrite: bool) -> None:
    """Move the built output to its place, and flush that to the disk."""
    built, old = work.path / RESULT, work.path / OLD
    replaced = overwrite and os.path.lexists(out)
    if replaced:  # checked again, as the old output may have changed while the new one was built
        files = [file.relative_to(built).as_posix() for file in built.rglob("*") if not file.is_dir()]
        refuse_existing(out, built.is_dir(), overwrite, files)
    if work.log is not None:
        work.log.remove()  # from here on ``built`` may be the old output
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
        raise OutputError(f"{out}: was created while the output was built, and was left as it is; run again") from None

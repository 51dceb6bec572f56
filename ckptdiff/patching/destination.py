"""Where a checkpoint or patch is written: beside its place on this machine, or straight into a store, where its last object ends it.

A store cannot rename. A folder there has the object ``.ckptdiff-unfinished``, which lists the objects that a run may write, from before the
first is written until after the last; ckptdiff reads no folder that has it. What a killed run left is what that object lists.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ckptdiff.errors import CkptdiffError, OutputError, cut
from ckptdiff.io.places import Place
from ckptdiff.io.signals import held
from ckptdiff.io.store import read_object
from ckptdiff.io.store_path import UNFINISHED, StorePath
from ckptdiff.io.store_spool import StoreSpool
from ckptdiff.io.store_upload import abort_uploads
from ckptdiff.io.store_urls import FsspecStore, Stored, no_check
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.io.work_folder import work_folder
from ckptdiff.patching.output import build_beside, check_output, check_space
from ckptdiff.patching.spool import open_spool

SPOOL = ".ckptdiff-spool"
"""Below this name lie the objects of a temporary file; of an object alone they lie beside it, with this behind its name."""
MAX_LISTED = 1 << 25
"""Bytes of the object that lists what a run writes."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What a command writes, checked before any work is done: see :func:`check_destination`."""

    out: Place
    folder: bool
    """Whether it is a folder."""
    files: tuple[str, ...]
    """The paths of the files that a folder will have."""
    overwrite: bool
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    """What tells this run from others in a store."""
    goes_after: bool = False
    """Whether a run before this one, which was killed, has marked a folder in a store as unfinished."""

    def check_space(self, needed: int) -> None:
        """Raise OutputError unless so many bytes are free; what a store has room for is not known."""
        if isinstance(self.out, Path):
            check_space(self.out, needed)

    @contextmanager
    def building(self, log: UnitLog | None = None) -> Iterator[Building]:
        """Give the place to write to. At the end the output is whole and in its place; after an error nothing of it is left.

        ``log``: as of :func:`~ckptdiff.patching.output.build_beside`, for an output on this machine.
        """
        if isinstance(self.out, Path):
            with build_beside(self.out, overwrite=self.overwrite, log=log) as built:
                yield Building(built, built.parent, self)
            return
        with work_folder(Path(tempfile.gettempdir()), "ckptdiff-store-") as work, _writing(self.out, self):
            yield Building(self.out, work.path, self)


@dataclass(frozen=True, slots=True)
class Building:
    """An output that is built."""

    place: Place
    """Where its files are written."""
    work: Path
    """A folder of this machine for what is needed on the way."""
    destination: Destination

    @contextmanager
    def spool(self) -> Iterator[BinaryIO | StoreSpool]:
        """A temporary file: on this machine for an output that is there, else in the store."""
        if isinstance(self.place, Path):
            with open_spool(self.work / "spool") as file:
                yield file
            return
        with closing(StoreSpool(_spool_of(self.place, self.destination.folder) / self.destination.run)) as spool:
            yield spool


def check_destination(
    out: Place, inputs: Iterable[Place], *, folder: bool, overwrite: bool = False, files: Collection[str] = (), mend: bool = True
) -> Destination:
    """Check, before any work is done, that an output can be written. What a killed run left of an earlier one is removed first.

    ``mend``: whether it is; a dry run changes nothing.

    Raises:
        OutputError: as of :func:`~ckptdiff.patching.output.check_output`; or there are objects at or below the URL, or ``overwrite`` is
            asked for there. StoreError: the store cannot be read.
    """
    destination = Destination(out, folder, tuple(files), overwrite)
    if isinstance(out, Path):
        check_output(out, [path for path in inputs if isinstance(path, Path)], folder=folder, overwrite=overwrite, files=files, mend=mend)
        return destination
    for path in inputs:
        if isinstance(path, StorePath) and (out.holds(path) or path.holds(out)):
            raise OutputError(f"{out}: is the input {path}, or one lies in the other; choose another output")
    if overwrite:
        raise OutputError(f"{out}: --overwrite replaces nothing in a store; choose another output, or delete what is there")
    found = _leftovers(destination)
    if mend:
        _clean_up(destination, found)
    return replace(destination, goes_after=UNFINISHED in found)


def _leftovers(destination: Destination) -> dict[str, Stored]:
    """What a killed run left; raises OutputError if anything else is there."""
    out = destination.out
    assert isinstance(out, StorePath)
    found = _below(out)
    listed = set(_listed(out)) if UNFINISHED in found else set[str]()
    foreign = [name for name in found if name != UNFINISHED and name not in listed and not name.startswith(f"{SPOOL}/")]
    if foreign:
        what = f"has {cut(foreign[0])}" if foreign[0] else "exists"
        raise OutputError(f"{out}: {what}, and nothing in a store is replaced; choose another output, or delete what is there")
    return found


def _clean_up(destination: Destination, found: Iterable[str]) -> None:
    """Remove what a killed run left."""
    out = destination.out
    assert isinstance(out, StorePath)
    abort_uploads(out)
    _delete(out, (name for name in found if name != UNFINISHED))
    if not destination.folder:
        spool = _spool_of(out, False)
        _delete(spool, _below(spool))


def _below(out: StorePath) -> dict[str, Stored]:
    """The objects below a name, by their names relative to it; ``""`` is the object of that name itself."""
    prefix = f"{out.key}/" if out.key else ""
    found = out.store.listing(out.key)
    return {
        key.removeprefix(prefix) if key != out.key else "": row for key, row in found.items() if key == out.key or key.startswith(prefix)
    }


def _delete(out: StorePath, names: Iterable[str]) -> None:
    for name in names:
        out.store.delete((out / name).key if name else out.key)


def _listed(out: StorePath) -> list[str]:
    """The names that a killed run said it would write."""
    try:
        value = json.loads(read_object(out.store, (out / UNFINISHED).key, MAX_LISTED) or b"")
        names = value["files"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise OutputError(f"{out}: its {UNFINISHED} is not one that ckptdiff wrote; delete what is there, or choose another output")


@contextmanager
def _writing(out: StorePath, destination: Destination) -> Iterator[None]:
    """Mark a folder as unfinished until the block has ended; after an error remove all that was written."""
    out.store.made.clear()
    try:
        if not destination.folder:
            yield
            return
        mark = _mark(out, destination)
        out.store.before_making = partial(_check_mark, out, mark)
        yield
        _check_all_ours(out, mark)
        out.store.delete((out / UNFINISHED).key)
    except BaseException as error:
        with held():
            left = _removed(out, destination)
        if left and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(left) from None
        if left and isinstance(error, CkptdiffError):
            raise type(error)(f"{error}; {left}") from error
        raise
    finally:
        out.store.before_making = no_check


def _mark(out: StorePath, destination: Destination) -> Stored:
    """Mark a folder as unfinished, by this run alone; what the store says of the mark, which changes if another run sets its own.

    Raises:
        OutputError: another command writes there, or has just ended. StoreError: the store cannot be written.
    """
    marker, content = out / UNFINISHED, _mark_of(destination)
    if destination.goes_after:
        out.store.replace(marker.key, content)
    elif not out.store.put(marker.key, content):
        raise _two_commands(out)
    mark = marker.stat()
    if mark is None or not _is_marked_by(destination):
        raise _two_commands(out)
    if any(name != UNFINISHED and not name.startswith(f"{SPOOL}/") for name in _below(out)):
        if not destination.goes_after:  # what is there is whole
            out.store.delete(marker.key)
        raise _two_commands(out)
    return mark


def _mark_of(destination: Destination) -> bytes:
    return json.dumps({"files": destination.files, "run": destination.run}).encode()


def _is_marked_by(destination: Destination) -> bool:
    """Whether a folder has the mark of this run; raises StoreError."""
    assert isinstance(destination.out, StorePath)
    return read_object(destination.out.store, (destination.out / UNFINISHED).key, MAX_LISTED) == _mark_of(destination)


def _check_mark(out: StorePath, mark: Stored) -> None:
    """Raise OutputError if the mark is another run's, or gone."""
    if (out / UNFINISHED).stat() != mark:
        raise _two_commands(out)


def _check_all_ours(out: StorePath, mark: Stored) -> None:
    """Raise OutputError unless a folder holds just what this run wrote, as it wrote it, and the mark of this run."""
    found = {name: row for name, row in _below(out).items() if not name.startswith(f"{SPOOL}/")}
    versions = {(out / name).key: row.version for name, row in found.items() if name != UNFINISHED}
    if found.get(UNFINISHED) != mark or versions != out.store.made:
        raise _two_commands(out)


def _two_commands(out: StorePath) -> OutputError:
    return OutputError(
        f"{out}: another command writes there too: its output would be a mixture of both; have all of them end, and run one again"
    )


def _removed(out: StorePath, destination: Destination) -> str:
    """Remove what was written, unless it may be another run's; returns words that say what could not be, and what to do."""
    try:
        if destination.folder and not _is_marked_by(destination):
            return f"what is in {out} was left to the other command" if out.store.made else ""
        abort_uploads(out)
        for key, version in out.store.made.items():
            if destination.folder or not version or ((found := out.store.stat(key)) is not None and found.version == version):
                out.store.delete(key)
        if destination.folder and _below(out).keys() <= {UNFINISHED}:
            out.store.delete((out / UNFINISHED).key)
    except CkptdiffError:
        return f"what was written to {out} is unfinished, and could not be removed: the same command removes it and starts over"
    return ""


def _spool_of(out: StorePath, folder: bool) -> StorePath:
    return out / SPOOL if folder else StorePath(FsspecStore(f"{out.url}{SPOOL}"))

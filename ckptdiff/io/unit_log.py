"""The log of unfinished work: which units of an output are finished, so that a run of the same command goes on after them.

A unit is :data:`UNIT_BYTES` of the target, counted in the order of the jobs. The log lies in the work folder of the output. Each of its
lines is a record of JSON behind the XXH3-64 of that, so that it ends, whatever a power cut or a fault of the disk did to it, where a line
is not whole. The first record says what the work is of; ``begin`` says that a job of a unit was handed out, and ``done``, which is flushed
to the disk after the data, that all of a unit is there, with what the command needs to check and to use it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import xxhash

from ckptdiff import __version__
from ckptdiff.io.durable import sync
from ckptdiff.io.job import Job
from ckptdiff.io.leftovers import LOG
from ckptdiff.units import byte_size

UNIT_BYTES = 1 << 26
"""Bytes of the target that are one unit."""
SUM_DIGITS = 16
"""Length of the checksum before a record."""

J = TypeVar("J", bound=Job)


class Record(NamedTuple):
    """A record of a log, and where it is."""

    start: int
    end: int
    """Offsets of its line in bytes."""
    content: dict[str, Any]


def in_units(jobs: Iterable[J]) -> Iterator[tuple[int, list[J]]]:
    """The number and the jobs of each unit, in order."""
    position, unit, some = 0, 0, list[J]()
    for job in jobs:
        if position // UNIT_BYTES != unit and some:
            yield unit, some
            some = []
        unit = position // UNIT_BYTES
        some.append(job)
        position += job.nbytes
    if some:
        yield unit, some


def read_records(file: BinaryIO, start: int = 0) -> Iterator[Record]:
    """The records of a log from an offset on, up to the first line that is not whole."""
    position = start
    while True:
        file.seek(position)
        record = parse_record(file.readline(), position)
        if record is None:
            return
        yield record
        position = record.end


def parse_record(line: bytes, start: int) -> Record | None:
    """The record of a line that begins at an offset; None if it is not whole."""
    text = line[SUM_DIGITS + 1 : -1]
    if line != _line(text):
        return None
    return Record(start, start + len(line), json.loads(text))


def frame(content: Mapping[str, Any]) -> bytes:
    """The line of a record."""
    return _line(json.dumps(content, separators=(",", ":")).encode())


def _line(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


class UnitLog:
    """The log of one output, in the work folder of this run.

    Args:
        key: what the work is of: the command, its inputs and the options that the result depends on, each as values of JSON. Another key
            is other work, which is removed.
        fresh: whether to start over.
        noted: takes a line for people.
    """

    def __init__(self, key: Mapping[str, Any], *, fresh: bool = False, noted: Callable[[str], None] = lambda text: None) -> None:
        self._key = json.loads(json.dumps({"ckptdiff": __version__, **key}))
        self._fresh, self._noted = fresh, noted
        self.folder, self.units, self._begun = Path(), 0, -1
        self._file: BinaryIO | None = None

    def is_work_of(self, folder: Path) -> bool:
        """Whether a work folder, which nobody else uses, has finished units of the same work; says why if it is removed."""
        try:
            with open(folder / LOG, "rb") as file:
                records = read_records(file)
                first = next(records, None)
                if first is None or not any("done" in record.content for record in records):
                    return False
        except FileNotFoundError:
            return False
        known = first.content
        other = [name for name in {**self._key, **known} if self._key.get(name) != known.get(name)]
        if other and not self._fresh:
            self._noted(f"unfinished work of an earlier run was removed, as it is of another {other[0]}: starting over")
        return not other and not self._fresh

    def start(self, folder: Path) -> None:
        """Begin the log in a work folder, or go on with the one that is there."""
        self.folder = folder
        fresh = not (folder / LOG).exists()
        self._file = open(folder / LOG, "a+b")  # closed at the end of the run
        if fresh:
            self._append(self._key)
            return
        end = 0
        for record in read_records(self._file):
            end = record.end
            if "done" in record.content:
                self.units, self._begun = self.units + 1, record.content["done"]
        self._file.truncate(end)

    def finished(self) -> Iterator[Record]:
        """The records of finished units, in the order in which they were finished."""
        return (record for record in self.records() if "done" in record.content)

    def at(self, start: int) -> Record:
        """The record at an offset."""
        assert self._file is not None
        return next(read_records(self._file, start))

    def cut(self, record: Record) -> None:
        """Forget a record and all that follow: what they say is not there, or damaged."""
        assert self._file is not None
        self._file.truncate(record.start)
        units = [left.content["done"] for left in self.finished()]
        self.units, self._begun = len(units), max(units, default=-1)
        self._noted("some of the unfinished work of an earlier run is damaged, and is done again")

    def begin(self, unit: int) -> None:
        """Note that the first job of a unit is handed out."""
        if unit > self._begun:
            self._begun = unit
            self._append({"begin": unit})

    def done(self, unit: int, facts: Mapping[str, Any]) -> None:
        """Note that a unit is finished, whose data is on the disk; raises OSError."""
        self.note({"done": unit, **facts})
        if not self.units:
            sync(self.folder)
            sync(self.folder.parent)
        self.units += 1

    def note(self, content: Mapping[str, Any]) -> None:
        """Append another record, and flush it to the disk; raises OSError."""
        assert self._file is not None
        self._append(content)
        os.fsync(self._file.fileno())

    def records(self) -> Iterator[Record]:
        """All records."""
        assert self._file is not None
        return read_records(self._file)

    def note_resumed(self, nbytes: int) -> None:
        """Say that the run goes on from so many bytes of the target, if these are any."""
        if nbytes:
            self._noted(f"going on after the {byte_size(nbytes)} that an earlier run had finished (--fresh starts over)")

    def kept(self) -> str:
        """What is said where the work stays, to go on with; empty if no unit is finished."""
        if not self.units:
            return ""
        return f"about {byte_size(self.units * UNIT_BYTES)} are finished and kept: {_ways_on(self.folder)}"

    def remove(self) -> None:
        """Remove the log: the output is finished. Raises OSError."""
        self.close()
        (self.folder / LOG).unlink(missing_ok=True)
        self.units = 0

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, content: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(frame(content))
        self._file.flush()


def kept_in(folder: Path) -> str:
    """What is said of the work of an earlier run in a folder."""
    return f"what an earlier run has finished is kept: {_ways_on(folder)}"


def _ways_on(folder: Path) -> str:
    return f"run the same command again to go on, with --fresh to start over; to drop it: rm -r {shlex.quote(str(folder))}"


def is_unfinished(folder: Path) -> bool:
    """Whether a work folder has a log of units."""
    return os.path.lexists(folder / LOG)

"""The journal of ``apply --in-place``: what of a checkpoint was, what of it will be, and which blocks change.

``plan`` says how each file changes, and keeps the base's headers, so that a run can go on when the base has none any more. ``ranges`` has a
record of each unit: the ranges that change, and their leaves (spec 3.2) before and after. ``log`` (:mod:`ckptdiff.io.unit_log`) says what
is finished. ``staged`` has new files, and ``redo-N`` the new bytes of unit N, which are on the disk before an old byte is overwritten.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff import __version__
from ckptdiff.checkpoint.contents import Checkpoint, WeightFile
from ckptdiff.errors import CheckpointError, IntegrityError
from ckptdiff.format.safetensors import parse_header
from ckptdiff.io.durable import sync
from ckptdiff.io.source import LocalFile
from ckptdiff.io.unit_log import frame, read_records
from ckptdiff.patching.in_place_plan import Moves
from ckptdiff.patching.recipes import RebuildJob

PLAN, RANGES, STAGED = "plan", "ranges", "staged"


class ChangingFile(LocalFile):
    """A file that this run changes while it reads others of its ranges."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.name, self.size = path, str(path), size

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises CheckpointError if the file is not there, or ends before."""
        view = memoryview(out)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(offset)
                while len(view):
                    count = file.readinto(view)
                    if not count:
                        raise CheckpointError(f"{self.name}: ends too soon: it was changed by another program")
                    view = view[count:]
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read: {error.strerror}") from None

    def check_unchanged(self) -> None:
        """Nothing: it changes."""

    def close(self) -> None:
        """Nothing: it is open only while it is read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change while a checkpoint is changed, as values of JSON."""

    patch: list[str]
    """Digests of the patch's files."""
    patch_path: str
    is_file: bool
    base: list[list[Any]]
    """Path, scope, size and header of each weight file of the base."""
    changed: list[str]
    """Paths of the weight files of which only blocks change."""
    moves: list[list[Any]]
    """Path of each rebuilt file, in order, and the base's files that it is built from."""
    gone: list[str]
    """Paths of the base's weight files that go."""
    others: list[str]
    """Paths of the staged files without weights."""
    removed: list[str]
    """Paths of the base's files without weights that go."""
    version: str = field(default=__version__)

    @property
    def as_moves(self) -> Moves:
        return Moves(tuple(path for path, _ in self.moves), tuple(self.gone), {path: frozenset(reads) for path, reads in self.moves})

    def open_base(self, path: Path) -> Checkpoint:
        """The base as it was before: its headers, and its files as far as they are still there."""
        weights = []
        for name, scope, size, raw in self.base:
            header = parse_header(base64.b64decode(raw), size - 8 - len(base64.b64decode(raw)))
            weights.append(WeightFile(name, scope, ChangingFile(path if self.is_file else path / name, size), header))
        return Checkpoint(path, self.is_file, weights, {})

    def write(self, journal: Path) -> None:
        """Write it into a journal."""
        (journal / PLAN).write_bytes(frame(asdict(self)))

    @classmethod
    def read(cls, journal: Path, path: Path) -> Plan:
        """The plan in a journal, of the checkpoint at ``path``.

        Raises:
            IntegrityError: it is damaged, or of another version of ckptdiff.
        """
        try:
            with open(journal / PLAN, "rb") as file:
                record = next(read_records(file), None)
        except OSError as error:
            raise IntegrityError(f"{journal / PLAN}: cannot be read: {error.strerror}: {path} cannot be gone on with") from None
        if record is None:
            raise IntegrityError(f"{journal / PLAN}: is damaged, so that {path} cannot be gone on with: take the checkpoint from elsewhere")
        if record.content["version"] != __version__:
            raise IntegrityError(f"{path}: was begun with ckptdiff {record.content['version']}, this is {__version__}: go on with that one")
        return cls(**record.content)


def base_rows(base: Checkpoint) -> list[list[Any]]:
    """:attr:`Plan.base` of an open base."""
    return [[file.path, file.scope, file.file.size, base64.b64encode(file.header.raw).decode()] for file in base.weights]


@dataclass(slots=True)
class ChangedRange:
    """A range of a tensor that changes; a job of the second pass."""

    tensor: int
    """Number of the tensor among those of all outputs."""
    start: int
    stop: int
    """The range, in bytes of the tensor."""
    old: list[bytes] | None
    """Its leaves before; None where nothing of the base is needed."""
    new: list[bytes]
    """Its leaves after."""
    unit: int = 0
    at: int = 0
    """Where in the redo file of its unit its new bytes begin."""

    @property
    def nbytes(self) -> int:
        """Size of the range."""
        return self.stop - self.start

    @property
    def job(self) -> RebuildJob:
        """The job that reads or builds it."""
        return RebuildJob(self.tensor, self.start, self.stop, False)

    def to_json(self) -> list[Any]:
        """As values of JSON."""
        old = None if self.old is None else [leaf.hex() for leaf in self.old]
        return [self.tensor, self.start, self.stop, old, [leaf.hex() for leaf in self.new]]

    @classmethod
    def from_json(cls, row: list[Any], unit: int, at: int) -> ChangedRange:
        """The range that :meth:`to_json` gave."""
        old = None if row[3] is None else [bytes.fromhex(leaf) for leaf in row[3]]
        return cls(row[0], row[1], row[2], old, [bytes.fromhex(leaf) for leaf in row[4]], unit, at)


class RangesWriter:
    """Writes the ``ranges`` of a journal unit by unit."""

    def __init__(self, journal: Path) -> None:
        self._file = open(journal / RANGES, "xb")
        self.units = 0

    def add(self, ranges: Sequence[ChangedRange]) -> None:
        """Write the ranges of the next unit."""
        self._file.write(frame({"unit": self.units, "ranges": [one.to_json() for one in ranges]}))
        self.units += 1

    def close(self) -> None:
        """Write how many units there are, and close the file."""
        self._file.write(frame({"units": self.units}))
        self._file.close()


def read_units(journal: Path) -> Iterator[tuple[int, list[ChangedRange]]]:
    """The units of a journal, in order.

    Raises:
        IntegrityError: the file that lists them is damaged.
    """
    count = 0
    with open(journal / RANGES, "rb") as file:
        for record in read_records(file):
            if "units" in record.content:
                return
            ranges, at = list[ChangedRange](), 0
            for row in record.content["ranges"]:
                ranges.append(ChangedRange.from_json(row, count, at))
                at += ranges[-1].nbytes
            yield count, ranges
            count += 1
    raise IntegrityError(f"{journal / RANGES}: is damaged behind unit {count}: take the checkpoint from elsewhere")


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file, flushed to the disk with its folder."""
    path.write_bytes(data)
    sync(path)
    sync(path.parent)

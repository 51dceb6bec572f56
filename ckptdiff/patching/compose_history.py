"""What the patches of a chain do to each tensor, told from their tables alone (spec section 10.1)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ckptdiff.errors import BaseMismatchError, cut
from ckptdiff.format.digests import block_count
from ckptdiff.format.entry import CODEC_NAMES, Entry, Piece
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import scope_before, units_needed

Key = tuple[str, str]
"""Scope and name of a tensor that counts."""


class PayloadFile:
    """The payloads of a patch file, of which nothing else is kept; it may be closed between reads."""

    def __init__(self, file: PatchFile) -> None:
        self.source, self.name = file.source, file.source.name
        sizes = [next(iter(file.offsets.values()), 0), *(size for entry in file.table.entries for size in entry.blocks)]
        self._begins = np.cumsum(sizes, dtype=np.int64)

    def place(self, first: int, last: int) -> tuple[int, int]:
        """Where the coded forms of blocks ``first`` to ``last`` - 1 of all its entries begin and end in the file."""
        return int(self._begins[first]), int(self._begins[last])

    def sizes(self, first: int, last: int) -> tuple[int, ...]:
        """The size of each of these coded forms in bytes."""
        return tuple(np.diff(self._begins[first : last + 1]).tolist())


class Step(NamedTuple):
    """An entry with a payload that had its part in a tensor."""

    file: int
    """Number of the patch file, in :attr:`Histories.files`."""
    codec: str
    first: int
    """Number of its first block, of all blocks of that file."""
    changed: int
    """As the entry has it; 0 for a new tensor."""


class Steps:
    """A list of :class:`Step`, in 24 bytes each: there may be thousands of each tensor."""

    def __init__(self, row: array[int] | None = None) -> None:
        self._row = row if row is not None else array("q")

    def add(self, step: Step) -> None:
        """Append a step."""
        self._row.extend((step.file * len(CODEC_NAMES) + CODEC_NAMES.index(step.codec), step.first, step.changed))

    def __len__(self) -> int:
        return len(self._row) // 3

    def __iter__(self) -> Iterator[Step]:
        for k in range(0, len(self._row), 3):
            file, codec = divmod(self._row[k], len(CODEC_NAMES))
            yield Step(file, CODEC_NAMES[codec], self._row[k + 1], self._row[k + 2])


@dataclass(frozen=True, slots=True)
class Origin:
    """The adapted base that the chain's first patch has for a tensor."""

    name: str
    """Of the first patch's entry."""
    dtype: str
    """Of the base tensors."""
    pieces: tuple[Piece, ...]
    """As the entry has them."""
    digest: bytes


@dataclass(slots=True)
class History:
    """Where a tensor comes from, and what was done to it."""

    origin: Origin | None
    """None: a patch has all of it."""
    steps: Steps = field(default_factory=Steps)
    """The entries that the content follows from: beginning with the last that is coded by ``raw``, if one is."""
    entries: int = 0
    """How many entries had a part in it, those before a ``raw`` one included."""
    needs_base: str = ""
    """What was done to it that only the base can tell the result of: patch file, tensor and reason; empty if nothing was."""

    @property
    def is_known(self) -> bool:
        """Whether its content follows from the payloads alone."""
        return next((step.codec == "raw" for step in self.steps), False)

    def add(self, step: Step) -> None:
        """Take an entry. One that is coded by ``raw`` has the whole content, whatever was done before."""
        if step.codec == "raw":
            self.steps, self.needs_base = Steps(), ""
        if not self.needs_base:
            self.steps.add(step)
        self.entries += 1


class Given(NamedTuple):
    """A tensor as a patch of the chain gives it."""

    dtype: str
    units: int
    digest: bytes
    history: History


class Histories:
    """What a chain does to each tensor, patch by patch.

    Attributes:
        files: the payloads of all patch files.
        given: what the last patch gives, for each of its files and their entries.
        base_scopes: the base scope of each target scope; None if there is none.
    """

    def __init__(self) -> None:
        self.files: list[PayloadFile] = []
        self.given: list[list[Given]] = []
        self.base_scopes: dict[str, str | None] = {}
        self._tensors: dict[Key, Given] = {}
        self._before = ""  # the path of the last patch

    def add(self, patch: OpenPatch) -> None:
        """Go on by a patch, which follows the one before.

        Raises:
            BaseMismatchError: the patch before does not give what it needs.
        """
        scopes = frozenset(scope for scope, _ in self._tensors)
        befores = [scope_before(scopes, file) if self._before else file.metadata.base_scope or "" for file in patch.files]
        uses = Counter((scope, name) for scope, file in zip(befores, patch.files, strict=True) for name in _taken(file))
        given = [
            list(self._of_file(patch, file, before, uses if self._before else None))
            for file, before in zip(patch.files, befores, strict=True)
        ]
        rows = zip(patch.files, given, strict=True)
        named = ((file.metadata.target_scope, pair) for file, row in rows for pair in zip(file.table.entries, row, strict=True))
        self._tensors = {(scope, entry.name): tensor for scope, (entry, tensor) in named if entry.counts}
        self.base_scopes = {
            file.metadata.target_scope: self.base_scopes.get(before)
            if self._before and file.metadata.base_scope is not None
            else file.metadata.base_scope
            for file, before in zip(patch.files, befores, strict=True)
        }
        self.given, self._before = given, str(patch.path)

    def _of_file(self, patch: OpenPatch, file: PatchFile, before: str, uses: Counter[Key] | None) -> Iterator[Given]:
        """The tensors that a patch file gives; ``uses`` is None in the first patch."""
        number, first = len(self.files), 0
        self.files.append(PayloadFile(file))
        for entry in file.table.entries:
            where, digest = f"{file.source.name}: tensor {cut(entry.name)}", entry.digest
            if entry.kind == "copy":
                digest = patch.entries[file.metadata.target_scope, entry.of or ""][1].digest
                history = History(None, needs_base=f"{where}: is a copy of {cut(entry.of)}")
            elif entry.kind == "new":
                history = History(None)
            elif uses is None:
                history = History(Origin(entry.name, entry.base_dtype or "", entry.pieces, entry.base_digest))
            else:
                history = self._of_before(patch, before, entry, uses, where)
            if entry.has_payload:
                history.add(Step(number, entry.codec or "", first, entry.changed))
                first += block_count(entry.nbytes)
            yield Given(entry.dtype, entry.units, digest, history)

    def _of_before(self, patch: OpenPatch, scope: str, entry: Entry, uses: Counter[Key], where: str) -> History:
        """What was done to the adapted base of an entry, which the patch before gives."""
        found = dict[str, Given]()
        for name, needed in units_needed(entry).items():
            source = self._tensors.get((scope, name))
            if source is None or source.dtype != entry.base_dtype or source.units < needed:
                raise BaseMismatchError(f"{patch.path}: needs the tensor {cut(name)}, which {self._before} does not give in that form")
            found[name] = source
        name, source = next(iter(found.items()))
        why = _why_other(entry, source)
        if why:
            return History(None, needs_base=f"{where}: {why}")
        if source.digest != entry.base_digest:
            raise BaseMismatchError(f"{patch.path}: tensor {cut(name)} is not the one that {self._before} gives")
        history = source.history
        if uses[scope, name] > 1 and not (name == entry.name and entry.counts):
            if history.entries or history.needs_base:
                return History(None, needs_base=f"{where}: is one of several that are made from {cut(name)}")
            return History(history.origin)
        return history


def _taken(file: PatchFile) -> Iterator[str]:
    """The base tensors of a patch file's entries, as often as they are used."""
    return (name for entry in file.table.entries for name in entry.base_names)


def _why_other(entry: Entry, source: Given) -> str:
    """Why an entry's adapted base is not simply the tensor that the patch before gives; empty if it is."""
    if entry.base_dtype != entry.dtype:
        return f"is cast from {entry.base_dtype}"
    if len(entry.pieces) > 1 or any(piece.first or piece.name is None for piece in entry.pieces):
        return "is put together from pieces"
    if source.units != entry.units or any(piece.units != entry.units for piece in entry.pieces):
        return f"has {entry.units:,} units, of which its base has {source.units:,}"
    return ""

"""What the patches of a chain do to each tensor, told from their tables alone (spec section 10.1)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ckptdiff.errors import BaseMismatchError, cut
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
        sizes = [file.payloads.start, *(size for entry in file.table.entries for size in entry.blocks)]
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

    def __init__(self) -> None:
        self._row, self.nbytes = array("q"), 0

    def add(self, step: Step, size: int) -> None:
        """Append a step, whose payload has so many bytes."""
        self._row.extend((step.file * len(CODEC_NAMES) + CODEC_NAMES.index(step.codec), step.first, step.changed))
        self.nbytes += size + STEP_BYTES

    def copy(self) -> Steps:
        """A list of the same steps."""
        other = Steps()
        other._row, other.nbytes = self._row[:], self.nbytes
        return other

    def __len__(self) -> int:
        return len(self._row) // 3

    def __iter__(self) -> Iterator[Step]:
        for k in range(0, len(self._row), 3):
            file, codec = divmod(self._row[k], len(CODEC_NAMES))
            yield Step(file, CODEC_NAMES[codec], self._row[k + 1], self._row[k + 2])


STEP_BYTES = 24


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

    @classmethod
    def unknown(cls, why: str, origin: Origin | None = None) -> History:
        """That of a tensor that something was done to that only the base can tell the result of."""
        return cls(origin, entries=1, needs_base=why)

    @property
    def is_known(self) -> bool:
        """Whether its content follows from the payloads alone."""
        return next((step.codec == "raw" for step in self.steps), False)

    def add(self, step: Step, size: int) -> None:
        """Take an entry, whose payload has so many bytes. One that is coded by ``raw`` has the whole content, whatever was before."""
        if step.codec == "raw":
            self.steps, self.needs_base = Steps(), ""
        if not self.needs_base:
            self.steps.add(step, size)
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
        self._spare = 0  # bytes that may be read twice, since the patches have had so many: this keeps time linear

    def add(self, patch: OpenPatch) -> None:
        """Go on by a patch, which follows the one before.

        Raises:
            BaseMismatchError: the patch before does not give what it needs.
        """
        self._spare += patch.stored_size
        scopes = frozenset(scope for scope, _ in self._tensors)
        befores = [scope_before(scopes, file) if self._before else file.metadata.base_scope or "" for file in patch.files]
        uses = Counter((scope, name) for scope, file in zip(befores, patch.files, strict=True) for name in _taken(file))
        own = [self._own(patch, file, before, uses) for file, before in zip(patch.files, befores, strict=True)]
        counting = {
            (file.metadata.target_scope, entry.name): given
            for file, row in zip(patch.files, own, strict=True)
            for entry, given in zip(file.table.entries, row, strict=True)
            if entry.counts and given is not None
        }
        self.given = []
        for file, row, before in zip(patch.files, own, befores, strict=True):
            scope, found = file.metadata.target_scope, list[Given]()
            for entry, given in zip(file.table.entries, row, strict=True):
                found.append(given or self._copy(entry, counting[scope, entry.of or ""], self._tensors.get((before, entry.name)), file))
            self.given.append(found)
        for file, found in zip(patch.files, self.given, strict=True):
            counting |= {(file.metadata.target_scope, e.name): row for e, row in zip(file.table.entries, found, strict=True) if e.counts}
        paired = zip(patch.files, befores, strict=True)
        self.base_scopes = {file.metadata.target_scope: self._base_scope(file, before) for file, before in paired}
        self._tensors, self._before = counting, str(patch.path)

    def _base_scope(self, file: PatchFile, before: str) -> str | None:
        """The base scope of a patch file's target scope."""
        stated = file.metadata.base_scope
        return self.base_scopes.get(before) if self._before and stated is not None else stated

    def _own(self, patch: OpenPatch, file: PatchFile, before: str, uses: Counter[Key]) -> list[Given | None]:
        """The tensors that a patch file gives; None for those that are copies of others."""
        number, first, found = len(self.files), 0, list[Given | None]()
        self.files.append(PayloadFile(file))
        for entry in file.table.entries:
            if entry.kind == "copy":
                found.append(None)
                continue
            if entry.kind == "new":
                history = History(None)
            elif self._before:
                history = self._of_before(patch, before, entry, uses, f"{file.source.name}: tensor {cut(entry.name)}")
            else:
                history = History(Origin(entry.name, entry.base_dtype or "", entry.pieces, entry.base_digest))
            if entry.has_payload:
                history.add(Step(number, entry.codec or "", first, entry.changed), entry.payload_size)
                first += len(entry.blocks)
            found.append(Given(entry.dtype, entry.units, entry.digest, history))
        return found

    def _copy(self, entry: Entry, of: Given, before: Given | None, file: PatchFile) -> Given:
        """A tensor that is a copy of another: what was done to that was done to it, if both had the same content in the base."""
        origin = _own_origin(of, before)
        if origin is not None or of.history.is_known:
            history = self._shared(of.history, origin)
            if history is not None:
                return of._replace(history=history)
        why = f"{file.source.name}: tensor {cut(entry.name)}: is a copy of {cut(entry.of)}"
        return of._replace(history=History.unknown(why, before.history.origin if before is not None else None))

    def _shared(self, history: History, origin: Origin | None) -> History | None:
        """The same history of another tensor; None if it cannot be told, or too much would be read more than once."""
        if history.needs_base or history.steps.nbytes > self._spare:
            return None
        self._spare -= history.steps.nbytes
        return History(origin, history.steps.copy(), history.entries)

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
            return History.unknown(f"{where}: {why}")
        if source.digest != entry.base_digest:
            raise BaseMismatchError(f"{patch.path}: tensor {cut(name)} is not the one that {self._before} gives")
        history = source.history
        if name == entry.name and entry.counts:
            return history
        origin = _own_origin(source, self._tensors.get((scope, entry.name))) or history.origin
        if uses[scope, name] > 1:
            shared = self._shared(history, origin)
            return shared or History.unknown(history.needs_base or f"{where}: is one of many that are made from {cut(name)}")
        history.origin = origin
        return history


def _taken(file: PatchFile) -> Iterator[str]:
    """The base tensors of a patch file's entries, as often as they are used."""
    return (name for entry in file.table.entries for name in entry.base_names)


def _own_origin(source: Given, own: Given | None) -> Origin | None:
    """The origin of a tensor, ``own``, if in the base it had the content, dtype and length of another one, ``source``."""
    if own is None or (own.dtype, own.units) != (source.dtype, source.units):
        return None
    mine, other = own.history.origin, source.history.origin
    return mine if mine is not None and other is not None and mine.digest == other.digest else None


def _why_other(entry: Entry, source: Given) -> str:
    """Why an entry's adapted base is not simply the tensor that the patch before gives; empty if it is."""
    if entry.base_dtype != entry.dtype:
        return f"is cast from {entry.base_dtype}"
    if len(entry.pieces) > 1 or any(piece.first or piece.name is None for piece in entry.pieces):
        return "is put together from pieces"
    if source.units != entry.units or any(piece.units != entry.units for piece in entry.pieces):
        return f"has {entry.units:,} units, of which its base has {source.units:,}"
    return ""

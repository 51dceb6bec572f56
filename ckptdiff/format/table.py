"""The table of a patch file (spec section 6): its entries, the names of removed tensors, and their digests, in one zstd frame.

Reading is strict: every fault is one FormatError or UnsupportedError that says where it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ckptdiff.errors import CheckpointError, FormatError
from ckptdiff.format import canonical, zstd_frame
from ckptdiff.format.canonical import quoted
from ckptdiff.format.columns import Columns
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import MAX_FILE
from ckptdiff.format.entry import Entry, Totals, as_name
from ckptdiff.format.entry_scan import plain_entries
from ckptdiff.format.fields import load_divided
from ckptdiff.format.tensor_type import MAX_TENSORS

MAX_TABLE = 1 << 25
"""Limit of a decoded table in bytes."""
MAX_PIECES = 1 << 20
"""Limit of the pieces of all bases of a table."""
MAX_ENTRY_NODES = 128
"""Limit of the braces, brackets and commas of an entry but for its blocks and pieces: its shape and ten members need no more than 48."""
PIECE_NODES = 4
"""Brackets and commas of a piece."""
MAX_ENTRY_DEPTH = 6
"""How deep a table nests: a piece in the array in the base of an entry in the array of the table."""


def check_sorted(names: Iterable[str], where: str) -> None:
    """Raise FormatError unless names increase strictly by their UTF-8 bytes."""
    for a, b in itertools.pairwise(names):
        if a.encode() >= b.encode():
            raise FormatError(f"{where}: {quoted(b)} is out of order or repeated")


@dataclass(frozen=True)
class Table:
    """The table of a patch file (spec 6). Its entries are made when they are first looked at."""

    columns: Columns
    """The tensors of the target file, in the order of their data."""
    removed: tuple[str, ...] = ()
    """Names of the scope's base tensors that no target tensor comes from, sorted."""

    @classmethod
    def of(cls, entries: Sequence[Entry], removed: tuple[str, ...] = ()) -> Table:
        """The table of these entries."""
        return cls(Columns.of(entries), removed)

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self.columns.names)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The tensors of the target file, in the order of their data."""
        return tuple(self.columns.make_entries())

    @cached_property
    def pieces(self) -> int:
        """How many pieces the bases of all entries have."""
        return 0 if self.columns.are_plain else sum(len(entry.pieces) for entry in self.entries)

    @cached_property
    def totals(self) -> Totals:
        """The sums that the metadata states too."""
        return self.columns.totals(len(self.removed))

    def to_bytes(self) -> bytes:
        """The stored table.

        Raises:
            CheckpointError: it would be larger than a reader takes.
        """
        if self.pieces > MAX_PIECES:
            raise CheckpointError(f"its bases have more than {MAX_PIECES} pieces: save the checkpoint in more and smaller files")
        text = canonical.dumps({"removed": list(self.removed), "tensors": [entry.to_json() for entry in self.entries]})
        content = len(text).to_bytes(4, "little") + text + b"".join(entry.digests() for entry in self.entries)
        if len(content) > MAX_TABLE or len(self.removed) > MAX_TENSORS:
            raise CheckpointError(
                f"its {len(self.entries)} tensors and {len(self.removed)} removed names make a table of {len(content)} bytes, "
                f"expected at most {MAX_TABLE}, and {MAX_TENSORS} names: save the checkpoint in more and smaller files"
            )
        return zstd_frame.compress(content)

    @classmethod
    def from_bytes(cls, stored: bytes, where: str, target_size: int = MAX_FILE) -> Table:
        """Read a stored table.

        Args:
            stored: its bytes in the patch file.
            where: its path, for messages.
            target_size: bytes of the target file, as the metadata states them: they limit how many blocks an entry can have.

        Raises:
            FormatError, UnsupportedError: for the first rule that is broken.
        """
        content = zstd_frame.decompress(stored, MAX_TABLE, where)
        length = int.from_bytes(content[:4], "little")
        if len(content) < 4 + length or len(content) < 4:
            raise FormatError(f"{where}: its JSON would have {length} bytes, but it has {len(content)} in all")
        text, blocks = content[4 : 4 + length], min(target_size, MAX_FILE) // BLOCK
        plain = plain_entries(text, blocks)
        if plain is not None:
            _check_names(plain.names, where)
            _check_end(4 + length, 4 + length + plain.digest_size, len(content), where)
            return cls(plain.columns(content, 4 + length))
        f = load_divided(
            text,
            where,
            "removed tensors",
            {"removed": as_name, "tensors": Entry.read},
            most=MAX_TENSORS,
            depth=MAX_ENTRY_DEPTH,
            nodes=MAX_ENTRY_NODES + blocks + PIECE_NODES * min(target_size, MAX_PIECES),
        )
        entries, removed = f.items("tensors"), f.items("removed")
        check_sorted(removed, f"{where}.removed")
        _check_names([entry.name for entry in entries], where)
        if sum(len(entry.pieces) for entry in entries) > MAX_PIECES:
            raise FormatError(f"{where}: its bases have more than {MAX_PIECES} pieces")
        return cls.of(_with_digests(entries, content, 4 + length, where), tuple(removed))


def _check_names(names: Sequence[str], where: str) -> None:
    """Raise FormatError if two entries have one name."""
    if len(set(names)) != len(names):
        raise FormatError(f"{where}: a tensor name is repeated")


def _check_end(start: int, needed: int, end: int, where: str) -> None:
    """Raise FormatError unless the digests, which begin at ``start``, end where the table does."""
    if needed > end:
        raise FormatError(f"{where}: its digests end too soon")
    if needed < end:
        raise FormatError(f"{where}: {end - start} bytes of digests are more than its entries need")


def _with_digests(entries: Iterable[Entry], content: bytes, start: int, where: str) -> tuple[Entry, ...]:
    """Entries with their digests, which stand in ``content`` from ``start`` on."""
    complete, at = [], start

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return content[at - size : at]

    for entry in entries:
        digest = take(16) if entry.kind != "copy" else b""
        base = take(16) if entry.kind == "delta" else digest if entry.kind == "same" else b""
        complete.append(entry.with_digests(digest, base, take(8) if entry.has_payload else b""))
    _check_end(start, at, len(content), where)
    return tuple(complete)

"""The log of a run of ``make``: which groups of blocks lie in the spool, so that a later run takes them from there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import xxhash

from ckptdiff.checkpoint.contents import TensorKey
from ckptdiff.io import unit_log
from ckptdiff.io.unit_log import Record, UnitLog
from ckptdiff.patching.spool import Spool, SpoolRange, StoredGroup, StoredGroups

RECORDS_KEPT = 8
"""Records of the log that are kept in memory while tensors are restored: those of one tensor lie in few."""


class EncodeLog:
    """Logs what is encoded, unit by unit, and gives back what an earlier run has encoded, if it still lies in the spool as it was."""

    def __init__(self, log: UnitLog, spool: Spool) -> None:
        self._log, self._spool = log, spool
        self._stored = list[StoredGroups]()  # since the last flush
        self._handed = self._done = 0  # bytes of the target that were handed out, and that are encoded
        self._records: dict[TensorKey, list[int]] = {}  # offsets of the records that a tensor is in
        self._record = lru_cache(RECORDS_KEPT)(log.at)
        spool.cut(self._check())
        log.note_resumed(log.units * unit_log.UNIT_BYTES)

    def _check(self) -> int:
        """Find the records whose groups are in the spool, and forget those from the first on of which one is not; returns their end."""
        end = 0
        for record in self._log.finished():
            stored = list(_stored_in(record))
            places = [(group.place, digest) for groups, digests in stored for group, digest in zip(groups.groups, digests, strict=True)]
            if not all(place is None or self._holds(place, digest) for place, digest in places):
                self._log.cut(record)
                break
            for groups, _ in stored:
                offsets = self._records.setdefault(groups.target, [])
                if record.start not in offsets[-1:]:
                    offsets.append(record.start)
            end = max([end, *(place.start + place.size for place, _ in places if place is not None)])
        return end

    def _holds(self, place: SpoolRange, digest: str) -> bool:
        try:
            return self._digest(place) == digest
        except OSError:  # the spool is shorter
            return False

    def _digest(self, place: SpoolRange) -> str:
        hasher = xxhash.xxh3_128()
        for piece in self._spool.read([place]):
            hasher.update(piece)
        return hasher.hexdigest()

    def restored(self, target: TensorKey) -> Iterator[StoredGroups]:
        """What an earlier run has stored of a tensor, in order."""
        for offset in self._records.get(target, ()):
            yield from (groups for groups, _ in _stored_in(self._record(offset)) if groups.target == target)

    def skipped(self, nbytes: int) -> None:
        """Count a job that an earlier run has done."""
        self._handed += nbytes
        self._done += nbytes

    def handed(self, nbytes: int) -> None:
        """Count a job that is handed out."""
        self._log.begin(self._handed // unit_log.UNIT_BYTES)
        self._handed += nbytes

    def stored(self, groups: StoredGroups) -> None:
        """Note groups that were stored."""
        self._stored.append(groups)

    def encoded(self, nbytes: int) -> None:
        """Count a job that is done; at the end of a unit flush the spool, and log what is new in it. Raises OSError."""
        unit = self._done // unit_log.UNIT_BYTES
        self._done += nbytes
        if self._done // unit_log.UNIT_BYTES > unit:
            self._spool.flush()
            self._log.done(unit, {"stored": [self._to_json(groups) for groups in self._stored]})
            self._stored.clear()

    def _to_json(self, groups: StoredGroups) -> list[Any]:
        return [[*groups.target], groups.codec, groups.stands_alone, [self._group_to_json(group) for group in groups.groups]]

    def _group_to_json(self, group: StoredGroup) -> list[Any]:
        place = None if group.place is None else [group.place.start, group.place.size, self._digest(group.place)]
        leaves, base_leaves = ([leaf.hex() for leaf in some] for some in (group.leaves, group.base_leaves))
        return [group.first, group.stop, place, group.sizes, leaves, base_leaves, group.changed]


def _stored_in(record: Record) -> Iterator[tuple[StoredGroups, list[str]]]:
    """What a record says was stored, and the digest of each group's blocks."""
    for target, codec, stands_alone, rows in record.content["stored"]:
        groups = [
            StoredGroup(
                first,
                stop,
                None if place is None else SpoolRange(*place[:2]),
                sizes,
                [bytes.fromhex(leaf) for leaf in leaves],
                [bytes.fromhex(leaf) for leaf in base_leaves],
                changed,
            )
            for first, stop, place, sizes, leaves, base_leaves, changed in rows
        ]
        yield StoredGroups(TensorKey(*target), codec, stands_alone, groups), [place[2] if place else "" for _, _, place, *_ in rows]

"""A target tensor of which some groups are encoded, until its table entry is known; and the temporary file that holds their blocks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import xxhash

from ckptdiff.checkpoint.adapt import default_pieces
from ckptdiff.format.digests import tensor_digest
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import READ_BYTES
from ckptdiff.io.store_spool import StoreSpool
from ckptdiff.patching.encode import EncodedGroup, choose_codec, is_independent, smallest
from ckptdiff.patching.encode_plan import EncodeJob, TensorPlan


@dataclass(frozen=True, slots=True)
class SpoolRange:
    """Bytes of a spool."""

    start: int
    size: int


class Spool:
    """A temporary file of encoded blocks, and where its end is. What is in the file stays before them."""

    def __init__(self, file: BinaryIO | StoreSpool) -> None:
        self._file, self._end = file, file.seek(0, os.SEEK_END)

    def append(self, blocks: Sequence[bytes]) -> SpoolRange:
        """Write blocks behind all others."""
        start = self._end
        for block in blocks:
            self._file.write(block)
            self._end += len(block)
        return SpoolRange(start, self._end - start)

    def drop_last(self, size: int) -> None:
        """Forget the last bytes."""
        if size:
            self._end -= size
            self._file.seek(self._end)
            self._file.truncate()

    def read(self, ranges: Sequence[SpoolRange]) -> Iterator[bytes]:
        """The bytes of some ranges, piece by piece."""
        for part in ranges:
            self._file.seek(part.start)
            left = part.size
            while left:
                piece = self._file.read(min(left, READ_BYTES))
                if not piece:
                    raise OSError(errno.EIO, "the temporary file of payloads ends too soon")
                left -= len(piece)
                yield piece
        self._file.seek(self._end)


@dataclass(slots=True)
class _StoredGroup:
    """A group whose blocks are in the spool."""

    stop: int
    """The first unit behind it."""
    place: SpoolRange
    sizes: list[int]
    """Size of each encoded block in bytes."""
    leaves: list[bytes]
    base_leaves: list[bytes]


class PendingTensor:
    """Collects the groups of a tensor, in the order of its plan: those that were tried first, then all others."""

    def __init__(self, plan: TensorPlan, spool: Spool) -> None:
        self.plan, self.codec, self._spool = plan, plan.codec, spool
        self._tried: list[tuple[EncodeJob, EncodedGroup]] = []
        self._groups: dict[int, _StoredGroup] = {}
        self._changed = self._covered = self._hashed = 0  # units: changed, stored, and those whose payload is hashed
        self._payload = xxhash.xxh3_64()
        base, target = plan.base, plan.target
        self._is_own = base is not None and base.base_dtype == target.dtype and {p.name for p in base.pieces} <= {target.name}
        self._stands_alone = base is None

    @property
    def complete(self) -> bool:
        """Whether all groups are there."""
        return self._covered >= max(self.plan.units, 1)

    def add(self, job: EncodeJob, group: EncodedGroup) -> None:
        """Take a group. Where several codecs were tried, it is stored once the codec of the tensor is known."""
        if self.codec is not None:
            self._store(job, group, self.codec)
            return
        self._tried.append((job, group))
        if len(self._tried) < len(self.plan.tried):
            return
        groups = [group for _, group in self._tried]
        self.codec = choose_codec(groups, min(self.plan.block, self.plan.units)) if self.plan.tried else smallest(group)
        if not self._is_own and is_independent(groups, self.codec):
            self.codec, self._stands_alone = "raw", True
        for tried in self._tried:
            self._store(*tried, self.codec)
        self._tried.clear()

    def _store(self, job: EncodeJob, group: EncodedGroup, codec: str) -> None:
        """Append a group's blocks to the spool, and hash the payload as far as it is there."""
        blocks = group.blocks[codec]
        place = self._spool.append(blocks)
        self._groups[job.first] = _StoredGroup(job.stop, place, list(map(len, blocks)), group.leaves, group.base_leaves)
        self._changed += group.changed
        self._covered += job.stop - job.first
        if job.first == self._hashed:
            for block in blocks:
                self._payload.update(block)
            self._hashed = job.stop
            while (later := self._groups.get(self._hashed)) is not None:  # groups that were tried come before those between them
                for piece in self._spool.read([later.place]):
                    self._payload.update(piece)
                self._hashed = later.stop

    @property
    def _must_say_pieces(self) -> bool:
        """Whether the pieces are not those that an entry has if it names none."""
        base, target = self.plan.base, self.plan.target
        assert base is not None
        own = base.tensors.get(target.name)
        return base.pieces != (default_pieces(target.name, own.units, target.units) if own is not None else ())

    def finish(self) -> tuple[Entry, list[SpoolRange]]:
        """The table entry, and where in the spool its payload is. An unchanged tensor leaves nothing there."""
        groups, plan = [self._groups[first] for first in sorted(self._groups)], self.plan
        base, target, sizes = plan.base, plan.target, tuple(size for group in groups for size in group.sizes)
        digest = tensor_digest(leaf for group in groups for leaf in group.leaves)
        members: dict[str, Any] = {"name": target.name, "dtype": target.dtype, "shape": target.shape}
        members |= {"counts": target.counts, "digest": digest}
        if base is not None and not self._stands_alone:
            base_digest = tensor_digest(leaf for group in groups for leaf in group.base_leaves)
            members |= {"base_dtype": base.base_dtype, "pieces": base.pieces if self._must_say_pieces else ()}
            members |= {"base_digest": base_digest, "changed": self._changed}
            if not self._changed:
                self._spool.drop_last(sum(sizes))  # only raw, which is never tried on such a tensor, takes bytes: they lie together
                return Entry(kind="same", **members), []
        members |= {"codec": self.codec, "blocks": sizes, "payload_digest": self._payload.digest()}
        return Entry(kind="new" if self._stands_alone else "delta", **members), _merged(group.place for group in groups)


def _merged(ranges: Iterable[SpoolRange]) -> list[SpoolRange]:
    """The same bytes in as few ranges as possible."""
    merged = list[SpoolRange]()
    for part in ranges:
        if merged and merged[-1].start + merged[-1].size == part.start:
            merged[-1] = SpoolRange(merged[-1].start, merged[-1].size + part.size)
        else:
            merged.append(part)
    return merged

"""A target tensor of which some groups are encoded, until its table entry is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import xxhash

from ckptdiff.checkpoint.adapt import default_pieces
from ckptdiff.format.digests import tensor_digest
from ckptdiff.format.entry import Entry, Kind
from ckptdiff.patching.encode import choose_codec, is_independent, smallest
from ckptdiff.patching.encode_group import EncodedGroup
from ckptdiff.patching.encode_plan import EncodeJob, TensorPlan
from ckptdiff.patching.spool import Spool, SpoolRange, StoredGroup, StoredGroups, merged


class PendingTensor:
    """Collects the groups of a tensor, in the order of its plan: those that were tried first, then all others.

    ``stored``: is told what is stored, if there is one who logs it.
    """

    def __init__(self, plan: TensorPlan, spool: Spool, stored: Callable[[StoredGroups], None] | None = None) -> None:
        self.plan, self.codec, self._spool, self._stored = plan, plan.codec, spool, stored
        self._expected = max(plan.target.units, 1)  # a tensor without units has a job too
        self._tried: list[tuple[EncodeJob, EncodedGroup]] = []
        self._groups: dict[int, StoredGroup] = {}
        self._changed = self._covered = self._hashed = 0  # units: changed, stored, and those whose payload is hashed
        self._payload = xxhash.xxh3_64()
        base, target = plan.base, plan.target
        self._is_own = base is not None and base.base_dtype == target.dtype and {p.name for p in base.pieces} <= {target.name}
        self._stands_alone = base is None

    @property
    def complete(self) -> bool:
        """Whether all groups are there."""
        return self._covered >= self._expected

    def has(self, job: EncodeJob) -> bool:
        """Whether the group of a job is stored."""
        return job.first in self._groups

    def add(self, job: EncodeJob, group: EncodedGroup) -> None:
        """Take a group. Where several codecs were tried, it is stored once the codec of the tensor is known."""
        if self.codec is not None:
            self._store([(job, group)], self.codec)
            return
        self._tried.append((job, group))
        if len(self._tried) < len(self.plan.tried):
            return
        groups = [group for _, group in self._tried]
        self.codec = choose_codec(groups, min(self.plan.block, self.plan.units)) if self.plan.tried else smallest(group)
        if not self._is_own and is_independent(groups, self.codec):
            self.codec, self._stands_alone = "raw", True
        self._store(self._tried, self.codec)
        self._tried.clear()

    def restore(self, stored: StoredGroups) -> None:
        """Take groups whose blocks are in the spool already."""
        self.codec, self._stands_alone = stored.codec, stored.stands_alone
        for group in stored.groups:
            self._take(group)
            self._hash()

    def _store(self, tried: Iterable[tuple[EncodeJob, EncodedGroup]], codec: str) -> None:
        """Append the blocks of groups to the spool, and hash the payload as far as it is there."""
        stored = list[StoredGroup]()
        for job, group in tried:
            blocks = group.blocks[codec]
            place = self._spool.append(blocks)
            stored.append(StoredGroup(job.first, job.stop, place, list(map(len, blocks)), group.leaves, group.base_leaves, group.changed))
            self._take(stored[-1])
            if job.first == self._hashed:
                for block in blocks:
                    self._payload.update(block)
                self._hashed = job.stop
                self._hash()
        if self._stored is not None:
            self._stored(StoredGroups(self.plan.target.key, codec, self._stands_alone, stored))

    def _take(self, group: StoredGroup) -> None:
        self._groups[group.first] = group
        self._changed += group.changed
        self._covered += group.stop - group.first

    def _hash(self) -> None:
        """Hash the payload from the spool as far as it is there: groups that were tried come before those between them."""
        while (group := self._groups.get(self._hashed)) is not None:
            for piece in self._spool.read([group.place] if group.place is not None else []):
                self._payload.update(piece)
            self._hashed = group.stop

    @property
    def _must_say_pieces(self) -> bool:
        """Whether the pieces are not those that an entry has if it names none."""
        base, target = self.plan.base, self.plan.target
        assert base is not None
        if base.whole is not None and base.whole.name == target.name:
            return False
        own = base.tensors.get(target.name)
        return base.pieces != (default_pieces(target.name, own.units, target.units) if own is not None else ())

    def finish(self) -> tuple[Entry, list[SpoolRange]]:
        """The table entry, and where in the spool its payload is. An unchanged tensor leaves nothing there."""
        groups = [self._groups[first] for first in sorted(self._groups)]
        sizes = tuple([size for group in groups for size in group.sizes])
        if not self._stands_alone and not self._changed:
            if self._spool.drop_last(sum(sizes)):  # only raw, which is never tried on such a tensor, takes bytes: they lie together
                for group in groups:
                    group.place = None
            return self._entry("same", groups), []
        entry = self._entry("new" if self._stands_alone else "delta", groups, self.codec, sizes, self._payload.digest())
        places = [group.place for group in groups if group.place is not None]
        return entry, merged(places) if len(places) > 1 else places

    def _entry(
        self, kind: Kind, groups: Sequence[StoredGroup], codec: str | None = None, sizes: tuple[int, ...] = (), payload: bytes = b""
    ) -> Entry:
        base, target = self.plan.base, self.plan.target
        based = base is not None and kind != "new"
        return Entry(
            target.name,
            target.dtype,
            target.shape,
            kind,
            base.base_dtype if base is not None and based else None,
            base.pieces if base is not None and based and self._must_say_pieces else (),
            codec,
            self._changed if based else 0,
            sizes,
            None,
            target.counts,
            tensor_digest([leaf for group in groups for leaf in group.leaves]),
            tensor_digest([leaf for group in groups for leaf in group.base_leaves]) if based else b"",
            payload,
        )

"""The table entries and payloads of a composed patch (spec section 10.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from ckptdiff.checkpoint.contents import TensorKey
from ckptdiff.errors import FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format.digests import block_count, tensor_digest
from ckptdiff.format.entry import Entry, Piece
from ckptdiff.io.parallel import READ_BYTES, Executor, Progress, run_plan
from ckptdiff.io.source import read_bytes
from ckptdiff.patching.compose_blocks import BlockComposer, ComposedBlock, SummedTensor, jobs
from ckptdiff.patching.compose_history import Given, PayloadFile
from ckptdiff.patching.spool import Spool, SpoolRange

WAY_ON = "give the base (--base), or make the patches with --codec sparse"


@dataclass(frozen=True, slots=True, eq=False)
class TargetTensor:
    """A tensor of the last patch's target, and what the chain did to it."""

    key: TensorKey
    where: str
    """The last patch's file, and the tensor, for messages."""
    entry: Entry
    """The last patch's."""
    given: Given

    @property
    def content(self) -> tuple[str, bytes, str, tuple[int, ...]]:
        """Scope, digest, dtype and shape."""
        return self.key.scope, self.given.digest, self.entry.dtype, self.entry.shape

    @property
    def becomes_whole(self) -> bool:
        """Whether the result has its whole content: where that is known, and is not just what one entry with a base has."""
        history = self.given.history
        return history.is_known and (history.origin is None or history.entries > 1)

    def needs_base(self, files: Sequence[PayloadFile]) -> str:
        """Why only the base can tell what it becomes; empty if the patches can."""
        history = self.given.history
        if history.needs_base or self.becomes_whole:
            return history.needs_base
        origin = history.origin
        if origin is not None and origin.name != self.entry.name and not origin.pieces:
            return f"{self.where}: was {cut(origin.name)} in the first patch, which does not say how long the base's tensor is"
        other = next((step for step in history.steps if step.codec != "sparse"), None)
        if other is not None and history.entries > 1:
            name = files[other.file].name
            return f"{name}: tensor {cut(self.entry.name)}: is coded by {other.codec}, and is changed by other patches too"
        return ""


def check_composable(tensors: Sequence[TargetTensor], files: Sequence[PayloadFile]) -> list[TargetTensor]:
    """The tensors that can only be copies of others, since the patches do not tell their changes.

    Raises:
        UnsupportedError: there is no other tensor of such a content.
    """
    reasons = {tensor: tensor.needs_base(files) for tensor in tensors}
    contents = {tensor.content for tensor, reason in reasons.items() if tensor.entry.counts and not reason}
    for tensor, reason in reasons.items():
        if reason and tensor.content not in contents:
            raise UnsupportedError(f"{reason}: only the base can tell what it becomes: {WAY_ON}")
    return [tensor for tensor, reason in reasons.items() if reason]


def copy_of(tensor: TargetTensor, entries: Mapping[TensorKey, Entry]) -> Entry:
    """The entry of a tensor that is a copy of another of its scope."""
    content = tensor.content[1:]
    of = next(e.name for e in entries.values() if e.counts and e.kind != "copy" and (e.digest, e.dtype, e.shape) == content)
    return Entry(**_members(tensor), kind="copy", of=of)


def _members(tensor: TargetTensor) -> dict[str, Any]:
    """What every entry of a tensor has."""
    entry = tensor.entry
    return {"name": entry.name, "dtype": entry.dtype, "shape": entry.shape, "counts": entry.counts, "digest": tensor.given.digest}


class TensorComposer:
    """Composes tensors into a spool.

    Attributes:
        entries: their table entries, by key.
        payloads: where in the spool their payloads are.
    """

    def __init__(self, files: Sequence[PayloadFile], spool: Spool, execute: Executor, progress: Progress) -> None:
        self.files, self.spool, self.execute, self.progress = files, spool, execute, progress
        self.entries = dict[TensorKey, Entry]()
        self.payloads = dict[TensorKey, list[SpoolRange]]()

    def compose(self, tensors: Sequence[TargetTensor]) -> None:
        """Compose tensors.

        Raises:
            FormatError, IntegrityError: a block cannot be decoded, or a patch does not give what it states.
        """
        several = [tensor for tensor in tensors if tensor.given.history.entries > 1]
        for tensor in tensors:
            if tensor.given.history.entries <= 1:
                self._take_over(tensor)
        summed = [SummedTensor(t.entry, t.given.history.steps, t.becomes_whole) for t in several]
        done, total = 0, sum(tensor.entry.nbytes for tensor in several)
        pending: _Pending | None = None
        with closing(run_plan(self.execute, BlockComposer(self.files, summed), jobs(summed))) as results:
            for job, block in results:
                pending = pending or _Pending(several[job.tensor], self.spool)
                pending.add(block)
                if job.block + 1 == block_count(pending.tensor.entry.nbytes):
                    self._store(pending.tensor, pending.finish(self.files), pending.place)
                    pending = None
                done += job.nbytes
                self.progress("composing", done, total)

    def _store(self, tensor: TargetTensor, entry: Entry, place: SpoolRange) -> None:
        self.entries[tensor.key] = entry
        if entry.has_payload:
            self.payloads[tensor.key] = [place]

    def _take_over(self, tensor: TargetTensor) -> None:
        """The entry of a tensor that at most one patch changed: its payload is copied."""
        history, (step, *_) = tensor.given.history, (*tensor.given.history.steps, None)
        if step is None:
            self._store(tensor, _unchanged(tensor), SpoolRange(0, 0))
            return
        file, last = self.files[step.file], step.first + block_count(tensor.entry.nbytes)
        begin, end = file.place(step.first, last)
        hasher, place = xxhash.xxh3_64(), SpoolRange(self.spool.append([]).start, end - begin)
        for at in range(begin, end, READ_BYTES):
            piece = read_bytes(file.source, at, min(READ_BYTES, end - at))
            hasher.update(piece)
            self.spool.append([piece])
        coded: dict[str, Any] = {"codec": step.codec, "blocks": file.sizes(step.first, last), "payload_digest": hasher.digest()}
        if history.origin is None:
            entry = Entry(**_members(tensor), kind="new", **coded)
        else:
            entry = Entry(**_members(tensor), **_base_members(tensor), kind="delta", changed=step.changed, **coded)
        self._store(tensor, entry, place)


class _Pending:
    """A tensor of which some blocks are composed."""

    def __init__(self, tensor: TargetTensor, spool: Spool) -> None:
        self.tensor, self._spool = tensor, spool
        self._start = spool.append([]).start
        self._sizes, self._leaves, self._changed = list[int](), list[bytes](), 0
        self._counts = np.zeros(len(tensor.given.history.steps), np.int64)
        self._payload = xxhash.xxh3_64()

    @property
    def place(self) -> SpoolRange:
        """Where its blocks are."""
        return SpoolRange(self._start, sum(self._sizes))

    def add(self, block: ComposedBlock) -> None:
        """Take the next block."""
        self._spool.append([block.coded])
        self._payload.update(block.coded)
        self._sizes.append(len(block.coded))
        self._leaves.append(block.leaf)
        self._changed += block.changed
        self._counts += block.counts

    def finish(self, files: Sequence[PayloadFile]) -> Entry:
        """The table entry.

        Raises:
            FormatError: an entry changes another number of units than it says.
            IntegrityError: the patches do not give what they state.
        """
        tensor, history = self.tensor, self.tensor.given.history
        for step, count in zip(history.steps, self._counts.tolist(), strict=True):
            if step.codec != "raw" and count != step.changed:
                where = f"{files[step.file].name}: tensor {cut(tensor.entry.name)}"
                raise FormatError(f"{where}: its blocks change {count} units, expected {step.changed}")
        coded: dict[str, Any] = {"blocks": tuple(self._sizes), "payload_digest": self._payload.digest()}
        if tensor.becomes_whole:
            digest = tensor_digest(self._leaves)
            if digest != tensor.given.digest:
                raise IntegrityError(f"{tensor.where}: built with the digest {digest.hex()}, expected {tensor.given.digest.hex()}: {AGAIN}")
            return Entry(**_members(tensor), kind="new", codec="raw", **coded)
        assert history.origin is not None
        if (self._changed == 0) is not (history.origin.digest == tensor.given.digest):
            raise IntegrityError(
                f"{tensor.where}: its changes sum to {self._changed} units that differ from the base, whose digest is "
                f"{history.origin.digest.hex()}, but the target's is {tensor.given.digest.hex()}: {AGAIN}"
            )
        if not self._changed:
            return _unchanged(tensor)
        return Entry(**_members(tensor), **_base_members(tensor), kind="delta", codec="sparse", changed=self._changed, **coded)


AGAIN = "make the patches again"


def _unchanged(tensor: TargetTensor) -> Entry:
    return Entry(**_members(tensor), **_base_members(tensor), kind="same")


def _base_members(tensor: TargetTensor) -> dict[str, Any]:
    """What an entry says of the tensor's adapted base, which is the first patch's."""
    origin, entry = tensor.given.history.origin, tensor.entry
    assert origin is not None
    pieces = () if origin.pieces == (Piece(entry.name, 0, entry.units),) else origin.pieces
    return {"base_dtype": origin.dtype, "pieces": pieces, "base_digest": origin.digest}

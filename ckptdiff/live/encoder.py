"""Patches of states that follow each other, made tensor by tensor against a copy of the last one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import adapt
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey, WeightFile
from ckptdiff.checkpoint.pairing import Counterpart, Pairing
from ckptdiff.errors import CheckpointError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, identity, tensor_digest
from ckptdiff.format.dtypes import DTYPES, Changes, Dtype, ManyChanges
from ckptdiff.format.entry import CODEC_NAMES, Entry
from ckptdiff.io.collector import paused_collector
from ckptdiff.io.parallel import default_threads, no_progress
from ckptdiff.live.encode_rows import encode_rows
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.live.patch import Patch, written
from ckptdiff.live.state_copy import THE_STATE, Place, StateCopy, cast, check_complete, check_tied, copied
from ckptdiff.live.updates import merge_blocks
from ckptdiff.patching.compose import StatedFile
from ckptdiff.patching.encode_in_memory import PartInMemory, by_parts
from ckptdiff.patching.encode_options import on_threads
from ckptdiff.patching.encode_pair import EncodedPair, PairedScope, encode_pair
from ckptdiff.patching.memory import MEMORY_FILE_NAME, MEMORY_SCOPE, Row, open_rows, state_of
from ckptdiff.patching.provenance import recorded_facts
from ckptdiff.patching.spool import Spool, SpoolRange
from ckptdiff.patching.torch_dtypes import Array, dtype_of, flat_bytes
from ckptdiff.patching.write import PatchContents

THE_REFERENCE = "the copy of the last state"
"""How messages call it."""
BYTES_AT_ONCE = 1 << 27
"""Bytes of tensors, about, that are cast and encoded together."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a patch is that an encoder has finished."""

    base_identity: str
    target_identity: str
    changed: int
    units: int
    """Units that differ, of how many (spec section 4)."""


class _Moves(NamedTuple):
    """How units of the encoder's copy move when it becomes the next state."""

    dtype: Dtype
    runs: Any
    """As :func:`ckptdiff.kernels.moves.move_at` takes them."""
    kept: Any
    """What holds the changes, of which a run has only the address."""


class _Runs(NamedTuple):
    """All moves of one dtype, while they are done."""

    dtype: Dtype
    runs: Any
    moved: Any
    """uint8, one for each run: 1 once it is moved."""


class Encoder:
    """Makes patches from one state of a model to the next, tensor by tensor.

    It has a copy of the last state on the host, and, between the first :meth:`add` and :meth:`commit` or :meth:`rollback`, what changed and
    the encoded form of it; never more than two whole models beside what the caller has. All states have the tensors of the base, with the
    same names, dtypes and shapes: for others use :func:`ckptdiff.diff`.

    Args:
        base: a state dict or a module of torch or numpy tensors, or a checkpoint's path. It is copied.
        dtype: the dtype that is served (``torch.bfloat16`` or ``"bfloat16"``): floats of the base and of what is added are cast to it, to
            nearest even, before they are compared. ``"base"``: what is added is cast to the dtypes that the base has. None: nothing is.
        codec: as of :func:`ckptdiff.diff`.
        threads: how many to use; the bytes do not depend on it.

    Raises:
        CheckpointError, UnsupportedError: the base is no such thing, or a tensor cannot be read in place.
    """

    def __init__(self, base: Any, *, dtype: Any = None, codec: str | None = "sparse", threads: int | None = None) -> None:
        if codec is not None and codec not in CODEC_NAMES:
            raise CheckpointError(f"unknown codec {codec!r}: expected one of {', '.join(CODEC_NAMES)}")
        self.reference = base if isinstance(base, StateCopy) else copied(base, dtype)
        self.codec, self.threads = codec, threads or default_threads()
        self._base, self.layout = self.reference.open(THE_REFERENCE), self.reference.layout
        (file,) = self._base.weights
        self._tensors = self._base.scopes.get(MEMORY_SCOPE, {})
        source = StatedFile(THE_STATE, file.header.data_start + file.header.data_size)
        weights = [WeightFile(MEMORY_FILE_NAME, MEMORY_SCOPE, source, file.header)]
        self._target = Checkpoint(source.path, True, weights, {}, in_memory=True, tied=dict(self.layout.tied))
        self._counterparts = {name: Counterpart(adapt(tensor, tensor), "name") for name, tensor in self._tensors.items()}
        self._identity: bytes | None = None
        self._digests = dict[str, bytes]()  # of the last state that was committed, by name
        self._finished: bytes | None = None
        self._clear()

    def _clear(self) -> None:
        self._spool, self._finished = io.BytesIO(), None
        self._entries = dict[TensorKey, Entry]()
        self._payloads = dict[TensorKey, list[SpoolRange]]()
        self._moves = list[_Moves]()
        self._tied = dict[str, bytes]()

    @property
    def identity(self) -> str:
        """Identity (:func:`ckptdiff.identity`) of the last state that was committed, in hexadecimal."""
        if self._identity is None:
            tensors = list(self._base.scopes.get(MEMORY_SCOPE, {}).values())
            leaves = leaves_in_memory([memory for tensor in tensors if (memory := tensor.memory) is not None], self.threads)
            rows = zip(tensors, map(tensor_digest, leaves), strict=True)
            self._identity = identity((t.scope, t.name, t.dtype, t.shape, digest) for t, digest in rows)
        return self._identity.hex()

    def add(self, name: str, tensor: Array) -> None:
        """Encode a tensor of the next state, which may be freed or changed afterwards.

        Raises:
            CheckpointError: the base has no tensor of this name, or another shape or dtype; or it was added already.
            UnsupportedError: it cannot be read in place.
        """
        (array,) = state_of({name: tensor}, THE_STATE).values()
        kept = self.layout.tied.get(name)
        if kept is None:
            self._add([(name, array)])
            return
        place = self.layout.check(name, array)
        flat = flat_bytes(served(array, place), f"{THE_STATE}: {name}")
        self._tied[name] = tensor_digest(leaves_in_memory([flat], 1)[0]) if place.size else tensor_digest([])

    def add_all(self, state: Any) -> None:
        """:meth:`add` for all tensors of a state dict or a module, which is faster than one by one."""
        arrays = state_of(state, THE_STATE)
        for name in arrays:
            self.layout.place(name)
        check_complete(self.layout, arrays)
        check_tied(self.layout, arrays)
        batch, size = list[tuple[str, Array]](), 0
        for name, array in arrays.items():
            if name in self.layout.tied:
                continue
            batch.append((name, array))
            size += self.layout.places[name].size
            if size >= BYTES_AT_ONCE:
                self._add(batch)
                batch, size = [], 0
        self._add(batch)

    def add_copy(self, state: StateCopy) -> None:
        """:meth:`add_all` of a state that was copied into the encoder's own layout."""
        self._encode(list(state.rows.values()))

    def _add(self, arrays: Iterable[tuple[str, Array]]) -> None:
        rows = list[Row]()
        for name, array in arrays:
            place = self.layout.check(name, array)
            rows.append(Row(name, place.dtype, place.shape, flat_bytes(served(array, place), f"{THE_STATE}: {name}")))
        self._encode(rows)

    def _encode(self, rows: list[Row]) -> None:
        if self._finished is not None:
            raise CheckpointError(f"{THE_STATE}: the patch is finished: commit it or roll it back first")
        again = next((row.name for row in rows if TensorKey(MEMORY_SCOPE, row.name) in self._entries), None)
        if again is not None:
            raise CheckpointError(f"{THE_STATE}: tensor {cut(again)} was added already")
        if not rows:
            return
        noted = len(self._moves)
        try:
            with paused_collector():
                self._encode_new(sorted(rows, key=lambda row: (row.dtype, row.name)))  # those of one dtype are encoded together
        except BaseException:  # what was noted of tensors that were not added would be written with them once they are
            del self._moves[noted:]
            raise

    def _encode_new(self, rows: list[Row]) -> None:
        """Encode tensors of which none was added: by ``sparse`` where they lie, if all are in the host's memory."""
        pairs = [(self.reference.rows[row.name].flat, row.flat) for row in rows]
        on_host = [(old, new) for old, new in pairs if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and len(new)]
        if self.codec == "sparse" and len(on_host) == len(pairs):
            tensors, spool = [self._tensors[row.name] for row in rows], Spool(self._spool)
            encoded = encode_rows(tensors, on_host, self._note_parts, self.threads)
            places = {tensor.key: [spool.append([payload])] if payload else [] for tensor, _, payload in encoded}
            self._entries |= {tensor.key: entry for tensor, entry, _ in encoded}
        else:
            pair = self._encode_pair(rows)
            places = pair.payloads
            self._entries |= pair.scopes[MEMORY_SCOPE].entries
        self._payloads |= places

    def _encode_pair(self, rows: list[Row]) -> EncodedPair:
        """Encode tensors as those of any other checkpoint in memory."""
        names, target = [row.name for row in rows], open_rows(rows, THE_STATE)
        base = self._base if len(names) == len(self.layout.places) else self.reference.open(THE_REFERENCE, names)
        pairing = Pairing({MEMORY_SCOPE: MEMORY_SCOPE}, {TensorKey(MEMORY_SCOPE, name): self._counterparts[name] for name in names})
        options = replace(on_threads(base, target, self.codec, self.threads, None), noted=self._note)
        return encode_pair(base, target, pairing, options, self._spool, no_progress)

    def _note_parts(self, parts: Sequence[PartInMemory], changes: ManyChanges) -> None:
        """Keep what changes in parts of tensors of one dtype, in the form in which it is written to memory."""
        if 4 * len(changes.positions) > sum(len(part.new) for part in parts):  # positions would take more than every unit's zigzag
            by_parts(self._note)(parts, changes)
            return
        dtype, kept = DTYPES[parts[0].target.dtype], (changes.positions.copy(), changes.zigzags.copy())
        ends = np.array(changes.ends, np.uint64)
        runs = kernels.moves.runs_at(*kernels.leaves.blocks_of([part.old for part in parts]), kept, ends[:-1], np.diff(ends))
        self._moves.append(_Moves(dtype, runs, kept))

    def _note(self, target: Tensor, first: int, changes: Sequence[Changes]) -> None:
        """As :meth:`_note_parts`, of some blocks of a tensor."""
        dtype, flat = DTYPES[target.dtype], self.reference.rows[target.name].flat
        assert isinstance(flat, np.ndarray)
        for k in range(0, len(changes), UPDATED_AT_ONCE):
            start, blocks = first * dtype.carrier + k * BLOCK, changes[k : k + UPDATED_AT_ONCE]
            update = merge_blocks(start, min(start + len(blocks) * BLOCK, target.nbytes), blocks, dtype)
            if update is not None:
                move = kernels.moves.Move(flat[update.start : update.stop], update.positions, update.zigzags)
                self._moves.append(_Moves(dtype, kernels.moves.checked_runs([move], dtype), move))

    def finish(self) -> Patch:
        """The patch from the last state to the one whose tensors were added.

        It is that of :func:`ckptdiff.diff`, but that no tensor is stored as a copy of another one.

        Raises:
            CheckpointError: a tensor of the base was not added, or further names of one had another content.
            IntegrityError: the encoder's own copy was written to.
        """
        check_complete(self.layout, (key.name for key in self._entries))
        by_name = {key.name: entry for key, entry in self._entries.items()}
        for name, digest in self._tied.items():
            kept = self.layout.tied[name]
            if by_name[kept].digest != digest:
                raise CheckpointError(
                    f"{THE_STATE}: {cut(name)} and {cut(kept)} are one tensor in the base, but have different contents: begin another "
                    "chain, from a base with both"
                )
        before = self._identity
        if before is None or any(self._digests.get(name) != entry.base_digest for name, entry in by_name.items()):
            before = identity((MEMORY_SCOPE, e.name, e.dtype, e.shape, e.base_digest) for e in by_name.values())
        after = identity((MEMORY_SCOPE, e.name, e.dtype, e.shape, e.digest) for e in by_name.values())
        if self._identity is not None and before != self._identity:
            raise IntegrityError(
                f"{THE_REFERENCE}: has the identity {before.hex()}, expected {self._identity.hex()}: something wrote to it"
            )
        with paused_collector():
            patch = written(self._contents(before, after))
        self._identity, self._finished = before, after
        return patch

    @property
    def finished(self) -> Finished:
        """What the finished patch is, without a look into its bytes; raises CheckpointError if none is finished."""
        if self._finished is None or self._identity is None:
            raise CheckpointError(f"{THE_STATE}: no patch of it is finished: call finish() first")
        changed, units = sum(e.changed for e in self._entries.values()), sum(e.units for e in self._entries.values())
        return Finished(self._identity.hex(), self._finished.hex(), changed, units)

    def _contents(self, before: bytes, after: bytes) -> PatchContents:
        scope = PairedScope(MEMORY_SCOPE, self.layout.places.keys(), self._entries)
        pair = EncodedPair(
            self._base,
            self._target,
            {MEMORY_SCOPE: scope},
            before,
            after,
            {},
            Spool(self._spool),
            self._payloads,
            Pairing({MEMORY_SCOPE: None}),
        )
        return PatchContents(pair, recorded_facts(pair, None, None), None, copies=False)

    def commit(self) -> None:
        """Let the encoder's copy be the state of the finished patch: the next one starts from there. After Ctrl-C it is as it was.

        Raises:
            CheckpointError: no patch is finished.
        """
        after = self.finished.target_identity
        steps = list[_Runs]()
        try:
            for dtype in dict.fromkeys(part.dtype for part in self._moves):
                runs = np.concatenate([part.runs for part in self._moves if part.dtype == dtype])
                steps.append(_Runs(dtype, runs, np.zeros(len(runs), np.uint8)))
                kernels.moves.move_at(runs, dtype, False, False, steps[-1].moved)
        except BaseException:  # Ctrl-C comes out of a kernel only once that is done
            for step in steps:
                kernels.moves.move_at(step.runs[step.moved == 1], step.dtype, True, False)
            raise
        self._identity = bytes.fromhex(after)
        self._digests = {entry.name: entry.digest for entry in self._entries.values()}
        self._clear()

    def rollback(self) -> None:
        """Forget what was added since the last commit."""
        self._clear()


def served(array: Array, place: Place) -> Array:
    """A tensor, cast to the dtype that is served."""
    return array if dtype_of(array, place.name) == place.dtype else cast(array, place.dtype, place.name)


UPDATED_AT_ONCE = 8
"""Blocks of an update, of which positions are counted by 32 bits."""

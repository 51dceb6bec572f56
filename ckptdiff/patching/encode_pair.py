"""Every tensor of a target encoded against its base: pairs, codecs, digests, and the encoded blocks in a spool file (spec 3, 7 and 8)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import BinaryIO

from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.pairing import Rename, pair_scopes, pair_tied
from ckptdiff.format.digests import BLOCK, identity, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import FileHasher, Progress, run_ordered
from ckptdiff.patching.adapt import read_range, units_per_group
from ckptdiff.patching.encode import EncodedBlocks, PendingTensor, TensorEncoder, choose_codec, encode_trials

EncodingStep = tuple[PendingTensor, int, int, bool]
"""A tensor, the first unit to encode and the one behind the last, and whether the tensor is complete after them."""


@dataclass(slots=True)
class PairedScope:
    """A scope of the target, and the scope of the base that it is paired with."""

    base_id: str | None
    """Id of the base scope; None if the target scope has no counterpart."""
    base: dict[str, Tensor]
    """The base scope's tensors by name; empty without a counterpart."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """Table entries of the target tensors encoded so far, by name."""


class PairEncoder:
    """Encodes all tensors of a target. After :meth:`encode` the entries, digests and identities are complete.

    Attributes:
        scopes: the target's scopes by id.
        base_digests: tensor digests of the base by scope and name.
        offsets: where each target tensor's payload begins in the spool, in bytes, by scope and name.
        hashers: SHA-256 of the weight files of both sides, by ``id`` of their source; none for tensors in memory.
        spool: encoded blocks, in the order in which the tensors were encoded.
    """

    def __init__(
        self,
        base: Checkpoint,
        target: Checkpoint,
        codec: str | None,
        threads: int,
        renames: Sequence[Rename],
        spool: BinaryIO,
        progress: Progress,
        encoder: TensorEncoder,
        groups: int,
    ) -> None:
        self.base, self.target, self.codec, self.threads, self.renames = base, target, codec, threads, renames
        self.spool, self.progress, self.encoder, self.groups = spool, progress, encoder, groups
        self.offsets: dict[tuple[str, str], int] = {}
        files = (file.file for side in (base, target) if not side.in_memory for file in side.weights)
        self.hashers = {id(file): FileHasher(file) for file in files}
        self.scopes = {
            scope: PairedScope(base_id, base.scopes[base_id] if base_id is not None else {})
            for scope, base_id in pair_scopes(base, target).items()
        }
        self.base_digests: dict[tuple[str, str], bytes] = {}
        self.done, self.total = 0, sum(file.header.data_size for file in target.weights)

    def encode(self) -> None:
        """Fill the scopes' entries, the base digests and the spool."""
        matched: list[tuple[Tensor | None, Tensor]] = []
        unmatched: list[Tensor] = []
        for scope_id, scope in self.scopes.items():
            tensors = [tensor for file in self.target.weights if file.scope == scope_id for tensor in file.tensors]
            pairs = pair_tied(scope.base, self.base.tied, tensors, self.target.tied, self.renames)
            matched += [(pairs[tensor.name], tensor) for tensor in tensors if tensor.name in pairs]
            unmatched += [tensor for tensor in tensors if tensor.name not in pairs]
        self._encode_all(matched)
        rest = [t for tensors in self.base_scopes.values() for t in tensors.values() if (t.scope, t.name) not in self.base_digests]
        self.base_digests |= self._hash_all(rest)
        self._encode_all([(None, tensor) for tensor in self._pair_by_content(unmatched)])

    def use_copies(self) -> None:
        """Replace each encoded tensor that repeats another tensor of its scope by a reference to it."""
        for scope in self.scopes.values():
            _use_copies(scope.entries)

    @property
    def base_scopes(self) -> dict[str, dict[str, Tensor]]:
        """The base's scopes that its identity covers: all of them, or for a patch file only the paired one (spec 5.1)."""
        if not self.target.is_file:
            return self.base.scopes
        paired = {scope.base_id for scope in self.scopes.values()}
        return {scope_id: tensors for scope_id, tensors in self.base.scopes.items() if scope_id in paired}

    @cached_property
    def base_identity(self) -> bytes:
        """Identity of the base (spec 3.2)."""
        tensors = (t for scope in self.base_scopes.values() for t in scope.values())
        return identity((t.scope, t.name, t.dtype, t.shape, self.base_digests[t.scope, t.name]) for t in tensors)

    @cached_property
    def target_identity(self) -> bytes:
        """Identity of the target (spec 3.2)."""
        scopes = self.scopes.items()
        return identity((scope_id, e.name, e.dtype, e.shape, e.digest) for scope_id, scope in scopes for e in scope.entries.values())

    # --- encoding ---

    def _encode_all(self, pairs: Sequence[tuple[Tensor | None, Tensor]]) -> None:
        """Encode tensors group by group. Results come in order, so the spool does not depend on the number of threads."""
        jobs = (partial(self._encode_batch, batch) for batch in self._batches(self._steps(pairs)))
        with closing(run_ordered(jobs, self.threads)) as results:
            for tensor, encoded, last in itertools.chain.from_iterable(results):
                tensor.add(encoded, self.spool)
                self._advance(encoded.nbytes)
                if last:
                    self._complete(tensor)

    def _steps(self, pairs: Sequence[tuple[Tensor | None, Tensor]]) -> Iterator[EncodingStep]:
        for base, target in pairs:
            group = units_per_group(target.dtype, base.dtype if base else target.dtype)
            units = max(t.nbytes // DTYPES[t.dtype].carrier for t in (target, base or target))
            codec = "raw" if base is None else self.codec
            if codec is None and base is not None and units > group:
                codec = choose_codec(base, target)
            tensor = PendingTensor(base, target, codec)
            step = group * self.groups
            for start in range(0, max(units, 1), step):
                yield tensor, start, start + step, start + step >= units

    def _batches(self, steps: Iterable[EncodingStep]) -> Iterator[list[EncodingStep]]:
        """One step for each job. Where an encoder takes several groups at once, small tensors are batched to about as many bytes."""
        limit, batch, size = min((self.groups - 1) * BLOCK, self.total // (4 * self.threads)), list[EncodingStep](), 0
        for step in steps:
            batch.append(step)
            tensor, first, stop, _ = step
            width = DTYPES[tensor.target.dtype].carrier
            size += min(stop * width, tensor.target.nbytes) - first * width
            if size >= limit:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _encode_batch(self, batch: Iterable[EncodingStep]) -> list[tuple[PendingTensor, EncodedBlocks, bool]]:
        return [self._encode_step(*step) for step in batch]

    def _encode_step(self, tensor: PendingTensor, first: int, stop: int, last: bool) -> tuple[PendingTensor, EncodedBlocks, bool]:
        base, target = tensor.base, tensor.target
        if tensor.codec is None and base is not None:
            tensor.codec, encoded = next(iter(encode_trials(base, target, first, stop).items()))
        else:
            encoded = self.encoder(base, target, tensor.codec or "raw", first, stop)
        for read in (target, base or target):
            hasher = self.hashers.get(id(read.source))
            if hasher:
                hasher.advance(read.offset + min(stop * DTYPES[read.dtype].carrier, read.nbytes))
        return tensor, encoded, last

    def _complete(self, tensor: PendingTensor) -> None:
        """Record the entry of a tensor whose blocks are all encoded; an unchanged tensor leaves nothing in the spool."""
        entry, target = tensor.entry(), tensor.target
        if entry.kind == "same":
            self.spool.seek(tensor.start)
            self.spool.truncate()
        if tensor.base is not None:
            self.base_digests[tensor.base.scope, tensor.base.name] = entry.base_digest
        self.scopes[target.scope].entries[target.name] = entry
        self.offsets[target.scope, target.name] = tensor.start

    def _advance(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress("comparing", self.done, self.total)

    # --- tensors without a counterpart of the same name ---

    def _hash_all(self, tensors: Sequence[Tensor]) -> dict[tuple[str, str], bytes]:
        """Tensor digests by scope and name."""

        def leaf(tensor: Tensor, start: int) -> bytes:
            return xxh128(read_range(tensor, start, start + BLOCK))

        jobs = (partial(leaf, tensor, start) for tensor in tensors for start in range(0, tensor.nbytes, BLOCK))
        with closing(run_ordered(jobs, self.threads)) as leaves:
            return {(t.scope, t.name): tensor_digest([next(leaves) for _ in range(0, t.nbytes, BLOCK)]) for t in tensors}

    def _pair_by_content(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Pair target tensors with base tensors of the same content, whatever their names; return those without one."""
        known: dict[tuple[str | None, bytes, str, tuple[int, ...]], Tensor] = {}
        for base_id in {scope.base_id for scope in self.scopes.values()} - {None}:
            for base in self.base.scopes[base_id or ""].values():
                known.setdefault((base_id, self.base_digests[base.scope, base.name], base.dtype, base.shape), base)
        digests, unpaired = self._hash_all(tensors), []
        for target in tensors:
            digest, scope = digests[target.scope, target.name], self.scopes[target.scope]
            match = known.get((scope.base_id, digest, target.dtype, target.shape))
            if match is None or target.nbytes == 0:
                unpaired.append(target)
                continue
            entry = Entry(name=target.name, dtype=target.dtype, shape=target.shape, kind="same", digest=digest, base_digest=digest)
            scope.entries[target.name] = replace(entry, base_name=match.name, base_dtype=match.dtype, base_shape=match.shape)
            self._advance(target.nbytes)
        return unpaired


def _use_copies(entries: dict[str, Entry]) -> None:
    """Replace each entry with a payload that repeats another entry's content by a copy of that one."""
    first: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].kind != "same"):
        key = entry.digest, entry.dtype, entry.shape
        if entry.has_payload and entry.nbytes and key in first:
            entries[name] = Entry(name=name, dtype=entry.dtype, shape=entry.shape, kind="copy", of=first[key], digest=entry.digest)
        else:
            first.setdefault(key, name)

"""Every tensor of a target encoded against its base: pairs, codecs, digests, and the encoded blocks in a spool (spec 3, 7 and 8)."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import BinaryIO

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey, WeightFile
from ckptdiff.checkpoint.pairing import Pairing
from ckptdiff.format.digests import BLOCK, identity, tensor_digest
from ckptdiff.format.entry import Entry, Piece
from ckptdiff.io.folder import blob_sha256
from ckptdiff.io.parallel import FileHasher, Progress, run_plan
from ckptdiff.io.store_spool import StoreSpool
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.patching.encode import GroupEncoder
from ckptdiff.patching.encode_log import EncodeLog
from ckptdiff.patching.encode_options import EncodeOptions
from ckptdiff.patching.encode_plan import EncodeJob, FileHashJob, TensorPlan, hash_jobs, paired_tensors, tensor_plan
from ckptdiff.patching.hash_work import EncodeAndHash, FileHashing, LeafHasher
from ckptdiff.patching.pending_tensor import PendingTensor
from ckptdiff.patching.spool import Spool, SpoolRange


@dataclass(slots=True)
class PairedScope:
    """A scope of the target, and the scope of the base that it is paired with."""

    base_id: str | None
    """Id of the base scope; None if the target scope has no counterpart."""
    base: Collection[str]
    """Names of the base scope's tensors; empty without a counterpart."""
    entries: dict[TensorKey, Entry] = field(default_factory=dict)
    """Table entries of the target tensors, before any becomes a copy of another."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """All tensors of a target, encoded against those of a base."""

    base: Checkpoint
    target: Checkpoint
    scopes: dict[str, PairedScope]
    """The target's scopes by id."""
    base_identity: bytes
    target_identity: bytes
    """Identities (spec 3.2)."""
    digests: dict[int, str]
    """SHA-256 of the weight files of both sides, by ``id`` of their source; none for tensors in memory."""
    spool: Spool
    """The payloads."""
    payloads: dict[TensorKey, list[SpoolRange]]
    """Where in the spool each target tensor's payload is."""
    pairing: Pairing
    """How the tensors were paired before they were encoded."""

    def sha256(self, file: WeightFile) -> str | None:
        """SHA-256 of a weight file of either side; None if its tensors are in memory."""
        return file.sha256 or self.digests.get(id(file.file))

    @property
    def base_scopes(self) -> dict[str, dict[str, Tensor]]:
        """The base's scopes that its identity covers."""
        return covered_scopes(self.base, self.target, self.scopes)


def covered_scopes(base: Checkpoint, target: Checkpoint, scopes: dict[str, PairedScope]) -> dict[str, dict[str, Tensor]]:
    """The base's scopes that the base identity covers: all of them, or for a patch file only the paired one (spec 5.1)."""
    if not target.is_file:
        return base.scopes
    paired = {scope.base_id for scope in scopes.values()}
    return {scope_id: tensors for scope_id, tensors in base.scopes.items() if scope_id in paired}


def known_digests(base: Checkpoint, target: Checkpoint, trust_hub_cache: bool) -> list[tuple[WeightFile, str | None]]:
    """The weight files of both sides, but for tensors in memory, with the SHA-256 that need not be computed; None where it must be."""
    files = [file for side in (base, target) if not side.in_memory for file in side.weights]
    return [(file, file.sha256 or (blob_sha256(file.file.path) if trust_hub_cache else None)) for file in files]


TENSORS_AT_ONCE = 1 << 10
"""Tensors that are planned together: of each long one, a little stays in memory from its first job to its last."""


def encode_pair(
    base: Checkpoint,
    target: Checkpoint,
    pairing: Pairing,
    options: EncodeOptions,
    spool: BinaryIO | StoreSpool,
    progress: Progress,
    log: UnitLog | None = None,
) -> EncodedPair:
    """Encode all tensors of a target; ``spool`` is a file at whose end their payloads go.

    With a log it has nothing else in it, and what an earlier run has put there, as the log says, is not encoded again.
    """
    encoder = _PairEncoder(base, target, pairing, options, Spool(spool), progress)
    if log is not None:
        encoder.log = EncodeLog(log, encoder.spool)
    return encoder.encode()


class _PairEncoder:
    """The state of :func:`encode_pair`."""

    log: EncodeLog | None = None

    def __init__(
        self, base: Checkpoint, target: Checkpoint, pairing: Pairing, options: EncodeOptions, spool: Spool, progress: Progress
    ) -> None:
        self.base, self.target, self.pairing, self.options, self.progress = base, target, pairing, options, progress
        self.spool, self.encoder = spool, GroupEncoder(base, target, options.compare, options.noted)
        known = known_digests(base, target, options.trust_hub_cache)
        self.digests = {id(file.file): digest for file, digest in known if digest is not None}
        self.hashers = {id(file.file): FileHasher(file.file) for file, digest in known if digest is None}
        self.encode_and_hash, self.leaf_hasher = EncodeAndHash(self.encoder, self.hashers), LeafHasher(base, target)
        self.scopes = {
            scope: PairedScope(base_id, base.scopes[base_id] if base_id is not None else {})
            for scope, base_id in self.pairing.scopes.items()
        }
        self.payloads: dict[TensorKey, list[SpoolRange]] = {}
        self.base_digests: dict[TensorKey, bytes] = {}
        self.done, self.total = 0, sum(file.header.data_size for file in target.weights)

    def encode(self) -> EncodedPair:
        matched, unmatched = paired_tensors(self.target, self.pairing)
        self._encode_all(matched)
        covered = covered_scopes(self.base, self.target, self.scopes)
        base_tensors = [tensor for scope in covered.values() for tensor in scope.values()]
        self.base_digests |= self._hash_all(True, [tensor for tensor in base_tensors if tensor.key not in self.base_digests])
        self._encode_all([(None, tensor) for tensor in self._pair_by_content(unmatched)])
        self.digests |= self._hash_files()
        entries = [(scope_id, entry) for scope_id, scope in self.scopes.items() for entry in scope.entries.values() if entry.counts]
        return EncodedPair(
            self.base,
            self.target,
            self.scopes,
            identity((t.scope, t.name, t.dtype, t.shape, self.base_digests[t.key]) for t in base_tensors),
            identity((scope_id, e.name, e.dtype, e.shape, e.digest) for scope_id, e in entries),
            self.digests,
            self.spool,
            self.payloads,
            self.pairing,
        )

    # --- encoding ---

    def _encode_all(self, pairs: Sequence[tuple[AdaptedBase | None, Tensor]]) -> None:
        plans, size = list[TensorPlan](), 0
        for base, target in pairs:
            plans.append(tensor_plan(self.pairing, base, target, self.options.codec, self.options.blocks))
            size += target.nbytes
            if len(plans) == TENSORS_AT_ONCE or size >= self.options.bytes_at_once:
                self._encode(plans)
                plans, size = [], 0
        self._encode(plans)

    def _encode(self, plans: Sequence[TensorPlan]) -> None:
        """Encode tensors job by job: first those blocks on which the codec of a long tensor is chosen, then all others."""
        pending = {plan.target.key: self._pending(plan) for plan in plans}
        self.encoder.keep(plans)
        entries = dict[TensorKey, Entry]()
        for key, tensor in pending.items() if self.log is not None else ():
            if tensor.complete:  # an earlier run has encoded it
                entries[key], self.payloads[key] = tensor.finish()
        trials = (job for plan in plans if not plan.is_tried_whole for job in plan.trials())
        remaining = (job for plan in plans for job in plan.remaining(pending[plan.target.key].codec))
        for work, jobs in ((self.encoder, trials), (self.encode_and_hash, remaining)):
            with closing(run_plan(self.options.execute, work, self._left(jobs, pending))) as results:
                for job, group in results:
                    tensor = pending[job.target]
                    tensor.add(job, group)
                    if tensor.complete:
                        entries[job.target], self.payloads[job.target] = tensor.finish()
                    self._advance(group.nbytes)
                    if self.log is not None:
                        self.log.encoded(job.nbytes)
        for plan in plans[-1:]:  # its last block may have been tried before all others
            self.encode_and_hash.hash_to(plan.base, plan.target, plan.units)
        for plan in plans:
            entry = entries[plan.target.key]
            self.scopes[plan.target.scope].entries[plan.target.key] = entry
            whole = plan.base.whole if plan.base is not None else None
            if whole is not None and entry.has_base:
                self.base_digests[whole.key] = entry.base_digest

    def _pending(self, plan: TensorPlan) -> PendingTensor:
        """A tensor to encode, with what an earlier run has encoded of it."""
        if self.log is None:
            return PendingTensor(plan, self.spool)
        tensor = PendingTensor(plan, self.spool, self.log.stored)
        for groups in self.log.restored(plan.target.key):
            tensor.restore(groups)
        return tensor

    def _left(self, jobs: Iterable[EncodeJob], pending: Mapping[TensorKey, PendingTensor]) -> Generator[EncodeJob, None, None]:
        """Those of some jobs that no earlier run has done."""
        for job in jobs:
            if self.log is None:
                yield job
            elif pending[job.target].has(job):
                self.log.skipped(job.nbytes)
                self._advance(job.nbytes)
            else:
                self.log.handed(job.nbytes)
                yield job

    def _advance(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress("comparing", self.done, self.total)

    def _hash_files(self) -> dict[int, str]:
        """SHA-256 of the weight files that have a hasher, by ``id``: file beside file, as many threads encode faster than one hashes."""
        base, target = ([file.file for file in side.weights] for side in (self.base, self.target))
        files = [(of_base, k, source) for of_base, side in ((True, base), (False, target)) for k, source in enumerate(side)]
        kept = [(of_base, k, source) for of_base, k, source in files if id(source) in self.hashers]
        jobs = (FileHashJob(of_base, k, self.hashers[id(source)].left) for of_base, k, source in kept)
        with closing(self.options.execute(FileHashing(base, target, self.hashers), jobs)) as digests:
            return {id(source): digest for (_, _, source), digest in zip(kept, digests, strict=True)}

    # --- tensors without a counterpart of the same name ---

    def _hash_all(self, of_base: bool, tensors: Sequence[Tensor]) -> dict[TensorKey, bytes]:
        """Tensor digests by scope and name."""
        with closing(self.options.execute(self.leaf_hasher, hash_jobs(of_base, tensors))) as leaves:
            return {tensor.key: tensor_digest([next(leaves) for _ in range(0, tensor.nbytes, BLOCK)]) for tensor in tensors}

    def _pair_by_content(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Pair target tensors with base tensors of the same content, whatever their names; return those without one."""
        known: dict[tuple[str | None, bytes, str, int], Tensor] = {}
        for base_id in {scope.base_id for scope in self.scopes.values()} - {None}:
            for base in self.base.scopes[base_id or ""].values():
                known.setdefault((base_id, self.base_digests[base.key], base.dtype, base.nbytes), base)
        digests, unpaired = self._hash_all(False, tensors), []
        for target in tensors:
            digest, scope = digests[target.key], self.scopes[target.scope]
            match = known.get((scope.base_id, digest, target.dtype, target.nbytes))
            if match is None or target.nbytes == 0:
                unpaired.append(target)
                continue
            scope.entries[target.key] = Entry(
                name=target.name,
                dtype=target.dtype,
                shape=target.shape,
                kind="same",
                base_dtype=match.dtype,
                pieces=(Piece(match.name, 0, match.units),) if match.name != target.name else (),
                counts=target.counts,
                digest=digest,
                base_digest=digest,
            )
            self._advance(target.nbytes)
        return unpaired

"""What ``make`` would do, told by the functions that it cuts its work with; and what a run needs of the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.pairing import Pairing
from ckptdiff.format.digests import block_count
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.io.places import Place
from ckptdiff.patching.encode_options import EncodeOptions
from ckptdiff.patching.encode_pair import PairedScope, covered_scopes, known_digests
from ckptdiff.patching.encode_plan import EncodeJob, TensorPlan, hash_jobs, paired_tensors, tensor_plan

UNIT_BYTES = 1 << 26
"""Bytes of the target in a unit of work."""
PLANE_OVERHEAD = 4
"""Bytes that a stored plane takes at most beside its content (spec 7.1)."""
ENTRY_OVERHEAD = 256
"""Bytes that a tensor takes at most in a table, beside its name and its blocks."""
BLOCK_OVERHEAD = 16
"""Bytes that a block takes at most in a table."""


@dataclass(slots=True)
class Work:
    """Sums over the jobs of a run. Sizes are in bytes of tensors and payloads; headers, tables and files without weights come on top."""

    tensors: int = 0
    jobs: int = 0
    blocks: int = 0
    """Blocks (spec 3.2) of the target."""
    units: int = 0
    """Units of :data:`UNIT_BYTES` of the target."""
    read: int = 0
    """What is read by jobs."""
    hashed: int = 0
    """What is read once more for the SHA-256 of files, or for the digests of payloads: mostly out of the page cache."""
    exact: bool = True
    """Whether ``jobs`` and ``read`` are what a run does. Otherwise they are the most that it does: tensors without a base of their name
    may be found by their content, or turn out to be stored whole."""

    def add_target(self, nbytes: int) -> None:
        """Count a target tensor."""
        self.tensors += 1
        self.blocks += block_count(nbytes)


def units_in(nbytes: int) -> int:
    """Units of work in so many bytes of the target."""
    return -(-nbytes // UNIT_BYTES)


def encoding_work(base: Checkpoint, target: Checkpoint, pairing: Pairing, options: EncodeOptions) -> Work:
    """The work of :func:`~ckptdiff.patching.encode_pair.encode_pair` with the same arguments."""
    matched, unmatched = paired_tensors(target, pairing)
    work = Work(exact=not any(tensor.nbytes for tensor in unmatched))
    whole = set[int]()
    for old, tensor in matched:
        work.add_target(tensor.nbytes)
        _add_encoding(work, tensor_plan(pairing, old, tensor, options.codec, options.blocks))
        if old.whole is not None:
            whole.add(id(old.whole))
        work.exact &= old.base_dtype == tensor.dtype and old.tensors.keys() <= {tensor.name}
    for tensor in unmatched:
        work.add_target(tensor.nbytes)
        _add_encoding(work, tensor_plan(pairing, None, tensor, options.codec, options.blocks))
    covered = covered_scopes(base, target, {scope: PairedScope(base_id, ()) for scope, base_id in pairing.scopes.items()})
    rest = [tensor for tensors in covered.values() for tensor in tensors.values() if not work.exact or id(tensor) not in whole]
    for of_base, tensors in ((True, rest), (False, unmatched)):
        _add_hashing(work, of_base, tensors)
    files = [file.file.size for file, digest in known_digests(base, target, options.trust_hub_cache) if digest is None]
    work.jobs, work.hashed = work.jobs + len(files), sum(files)
    work.units = units_in(sum(file.header.data_size for file in target.weights))
    return work


def _add_encoding(work: Work, tensor: TensorPlan) -> None:
    for job in tensor.jobs():
        work.jobs += 1
        work.read += job.nbytes + (_base_bytes(tensor.base, job) if tensor.base is not None else 0)


def _base_bytes(base: AdaptedBase, job: EncodeJob) -> int:
    """Bytes of base tensors that a job reads."""
    stop, width = min(job.stop, base.units), DTYPES[base.base_dtype].carrier
    if base.whole is not None:
        return (stop - job.first) * width
    return sum(end - begin for named, begin, end in base.runs(job.first, stop) if named) * width


def _add_hashing(work: Work, of_base: bool, tensors: Iterable[Tensor]) -> None:
    for job in hash_jobs(of_base, tensors):
        work.jobs += 1
        work.read += job.nbytes


def most_of_payloads(target: Checkpoint) -> int:
    """Bytes that all payloads take if every tensor of a target is stored whole, and nothing of it can be compressed."""
    tensors = [tensor for file in target.weights for tensor in file.tensors]
    return sum(t.nbytes + block_count(t.nbytes) * DTYPES[t.dtype].carrier * PLANE_OVERHEAD for t in tensors)


def most_of_tables(target: Checkpoint) -> int:
    """About the bytes that the headers and tables of a patch take at most."""
    tables = sum(ENTRY_OVERHEAD + BLOCK_OVERHEAD * block_count(t.nbytes) for file in target.weights for t in file.tensors)
    return tables + sum(2 * len(file.header.raw) for file in target.weights)


THREAD_BYTES = 32 << 20
"""Memory of a thread: its scratch, and the results of its jobs that wait to be written."""
PROCESS_BYTES = 160 << 20
"""Memory of the process: Python, its libraries, and the compiled kernels."""
TENSOR_BYTES = 5 << 10
"""Memory of a tensor: its row of a header, its pair, its entry."""
BLOCK_FACTS = 100
"""Memory of what is kept of each block: its digests, its size."""


def peak_memory(work: Work, threads: int) -> int:
    """About the most memory that a run takes, in bytes; see ``docs/scale.md`` for how far that was checked."""
    jobs = min(threads, max(work.jobs, 1))
    return PROCESS_BYTES + jobs * THREAD_BYTES + work.tensors * TENSOR_BYTES + work.blocks * BLOCK_FACTS


def free_space(out: Place) -> int | None:
    """Free bytes on the disk of an output whose folder exists; None in a store, which does not tell."""
    if not isinstance(out, Path):
        return None
    return shutil.disk_usage(Path(os.path.abspath(out)).parent).free

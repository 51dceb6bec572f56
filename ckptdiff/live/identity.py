"""The identity of a checkpoint, in memory or in files (spec section 3.2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.format import digests
from ckptdiff.format.digests import BLOCK, tensor_digest
from ckptdiff.io.parallel import Progress, default_threads, no_progress, threads_for
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.patching.encode_plan import hash_jobs
from ckptdiff.patching.hash_work import LeafHasher
from ckptdiff.patching.memory import open_state, state_of


def identity(state_or_checkpoint: Any, *, threads: int | None = None) -> str:
    """The identity of a checkpoint in hexadecimal: a digest of its tensors with their names, dtypes and shapes.

    It is what patches call their base and their target (:attr:`ckptdiff.Patch.base_identity`). It does not depend on shards, headers or
    the device that tensors are on. Of a checkpoint with one scope it does not depend on the file's name either, so that a state dict has
    the identity of the file that ``safetensors`` writes of it; several names of one tensor in memory count once.

    Args:
        state_or_checkpoint: a state dict or a module; or the path of a safetensors file or of a folder, or an id on the Hub.
        threads: how many to use.

    Raises:
        CheckpointError: it is neither, or cannot be read. UnsupportedError: a tensor cannot be read in place. HubError: it cannot be
            fetched.
    """
    count = threads or default_threads()
    if not isinstance(state_or_checkpoint, (str, os.PathLike)):
        return identity_in_memory(open_state(state_of(state_or_checkpoint, "the tensors"), "the tensors"), count).hex()
    return identity_of_files(state_or_checkpoint, count).hex()


def identity_in_memory(checkpoint: Checkpoint, threads: int) -> bytes:
    """The identity of tensors in memory, 16 bytes."""
    tensors = _counting(checkpoint)
    return _identity(tensors, leaves_in_memory([memory for tensor in tensors if (memory := tensor.memory) is not None], threads))


def identity_of_files(path: str | os.PathLike[str], threads: int, progress: Progress = no_progress) -> bytes:
    """The identity of a file, a folder or a repo, 16 bytes, for which all of its tensors are read.

    Raises:
        CheckpointError: it cannot be read, is none, or changes meanwhile. HubError: it cannot be fetched.
    """
    with open_checkpoint(path) as checkpoint:
        tensors, leaves, done = _counting(checkpoint), list[list[bytes]](), 0
        total = max(sum(tensor.nbytes for tensor in tensors), 1)
        with closing(threads_for(threads, total)(LeafHasher(checkpoint, checkpoint), hash_jobs(True, tensors))) as found:
            for tensor in tensors:
                leaves.append([next(found) for _ in range(0, tensor.nbytes, BLOCK)])
                done += tensor.nbytes
                progress("reading the checkpoint", done, total)
        checkpoint.check_unchanged()
        return _identity(tensors, leaves)


def _counting(checkpoint: Checkpoint) -> list[Tensor]:
    return [tensor for scope in checkpoint.scopes.values() for tensor in scope.values()]


def _identity(tensors: Sequence[Tensor], leaves: Sequence[list[bytes]]) -> bytes:
    rows = zip(tensors, map(tensor_digest, leaves), strict=True)
    return digests.identity((t.scope, t.name, t.dtype, t.shape, digest) for t, digest in rows)

"""The identity of a checkpoint, in memory or in files (spec section 3.2)."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.format import digests
from ckptdiff.format.digests import BLOCK, tensor_digest
from ckptdiff.io.parallel import Threads, default_threads
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.patching.encode import GroupEncoder
from ckptdiff.patching.encode_plan import HashJob
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
        return _identity(open_state(state_of(state_or_checkpoint, "the tensors"), "the tensors"), count)
    with open_checkpoint(state_or_checkpoint) as checkpoint:
        return _identity(checkpoint, count)


def _identity(checkpoint: Checkpoint, threads: int) -> str:
    tensors = [tensor for scope in checkpoint.scopes.values() for tensor in scope.values()]
    if checkpoint.in_memory:
        leaves = leaves_in_memory([memory for tensor in tensors if (memory := tensor.memory) is not None], threads)
    else:
        encoder = GroupEncoder(checkpoint, checkpoint)
        jobs = (HashJob(True, t.key, at, min(BLOCK, t.nbytes - at)) for t in tensors for at in range(0, t.nbytes, BLOCK))
        with closing(Threads(threads, BLOCK)(encoder.leaf, jobs)) as found:
            leaves = [[next(found) for _ in range(0, tensor.nbytes, BLOCK)] for tensor in tensors]
    rows = zip(tensors, map(tensor_digest, leaves), strict=True)
    return digests.identity((t.scope, t.name, t.dtype, t.shape, digest) for t, digest in rows).hex()

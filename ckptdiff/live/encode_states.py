"""A state encoded by ``sparse`` against another one of the same names, as a trainer has them: without plans and jobs (spec section 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.checkpoint.gather import within
from ckptdiff.checkpoint.pairing import Pairing
from ckptdiff.format.digests import BLOCK, identity
from ckptdiff.format.dtypes import Bytes
from ckptdiff.format.entry import Entry
from ckptdiff.live.encode_rows import encode_rows
from ckptdiff.patching.encode_pair import EncodedPair, PairedScope
from ckptdiff.patching.spool import Spool, SpoolRange

BYTES_AT_ONCE = 64 * BLOCK
"""Bytes of tensors, about, of which the payloads lie in memory of their own before they are in the spool."""


def encode_states(base: Checkpoint, target: Checkpoint, pairing: Pairing, spool: BinaryIO, threads: int) -> EncodedPair | None:
    """Encode the tensors of a target in memory.

    Args:
        base, target, pairing, spool: as of :func:`~ckptdiff.patching.encode_pair.encode_pair`.
        threads: how many to use; the bytes do not depend on it.

    Returns:
        None unless each tensor is compared with the whole one of its own name, dtype and size, both in the host's memory and not empty,
        and the base has no others.
    """
    tensors, rows = [tensor for file in target.weights for tensor in file.tensors], list[tuple[Bytes, Bytes]]()
    ((scope, base_scope),) = pairing.scopes.items() if len(pairing.scopes) == 1 else [("", None)]
    bases = base.scopes.get(base_scope, {}) if base_scope is not None else {}
    if len(bases) != len(tensors) or len(base.scopes) != 1:
        return None
    for tensor in tensors:
        pair = _memory(pairing, tensor)
        if pair is None:
            return None
        rows.append(pair)
    paired, payloads, written = PairedScope(base_scope, bases), dict[TensorKey, list[SpoolRange]](), Spool(spool)
    for tensor, entry, payload in _encoded(tensors, rows, threads):
        paired.entries[tensor.key] = entry
        payloads[tensor.key] = [written.append([payload])] if payload else []
    entries = list(paired.entries.values())
    before = identity((base_scope or "", e.name, e.dtype, bases[e.name].shape, e.base_digest) for e in entries)
    after = identity((scope, e.name, e.dtype, e.shape, e.digest) for e in entries)
    return EncodedPair(base, target, {scope: paired}, before, after, {}, written, payloads, pairing)


def _memory(pairing: Pairing, tensor: Tensor) -> tuple[Bytes, Bytes] | None:
    """Where a tensor's base and it lie, if they are as told above."""
    found = pairing.counterparts.get(tensor.key)
    whole = found.base.whole if found is not None else None
    if whole is None or whole.name != tensor.name or not tensor.nbytes:
        return None
    old, new = whole.memory, tensor.memory
    return (old, new) if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) else None


def _encoded(tensors: Sequence[Tensor], rows: Sequence[tuple[Bytes, Bytes]], threads: int) -> Iterator[tuple[Tensor, Entry, bytes]]:
    for numbers in within(range(len(tensors)), lambda k: tensors[k].nbytes, BYTES_AT_ONCE):
        yield from encode_rows([tensors[k] for k in numbers], [rows[k] for k in numbers], None, threads)

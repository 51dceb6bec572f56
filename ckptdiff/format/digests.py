"""Leaves, tensor digests and identity (spec section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from ckptdiff.format import canonical
from ckptdiff.format.dtypes import Bytes

BLOCK = 1 << 21
"""Bytes of a tensor that are hashed and coded together."""


def xxh128(data: bytes | memoryview | Bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def leaves_of(data: Bytes) -> list[bytes]:
    """Leaves of a run of whole blocks (the last may be short)."""
    return [xxh128(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]


def block_count(nbytes: int) -> int:
    return -(-nbytes // BLOCK)


def tensor_digest(leaves: Iterable[bytes]) -> bytes:
    return xxh128(b"".join(leaves))


def identity(tensors: Iterable[tuple[str, str, str, tuple[int, ...], bytes]]) -> bytes:
    """Identity of a checkpoint from its (scope, name, dtype, shape, tensor digest) rows, in any order."""
    rows = sorted(tensors, key=lambda row: (row[0].encode(), row[1].encode()))
    single = len({row[0] for row in rows}) <= 1
    lines = (
        canonical.dumps(["" if single else scope, name, dtype, list(shape), digest.hex()]) + b"\n"
        for scope, name, dtype, shape, digest in rows
    )
    return xxh128(b"".join(lines))

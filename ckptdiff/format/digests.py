"""Leaves, tensor digests and the identity of a checkpoint (spec section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import xxhash

from ckptdiff.format import canonical
from ckptdiff.format.dtypes import Bytes

BLOCK = 1 << 21
"""Bytes of a tensor that are hashed and coded together: a block."""


def xxh128(data: bytes | memoryview | Bytes) -> bytes:
    """XXH3-128 with seed 0, in its canonical form of 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def leaves_of(data: Bytes) -> list[bytes]:
    """The leaves of a run of whole blocks, the last of which may be short."""
    return [xxh128(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]


def block_count(nbytes: int) -> int:
    """How many blocks a tensor of so many bytes has."""
    return -(-nbytes // BLOCK)


def block_bounds(nbytes: int) -> list[int]:
    """Where the blocks of so many bytes end, behind a zero: one number more than blocks."""
    return [*range(0, nbytes, BLOCK), nbytes] if nbytes else [0]


def tensor_digest(leaves: Iterable[bytes]) -> bytes:
    """The digest of a tensor from the leaves of all its blocks, in order."""
    return xxh128(b"".join(leaves))


def identity(tensors: Iterable[tuple[str, str, str, tuple[int, ...], bytes]]) -> bytes:
    """The identity of a checkpoint from the scope, name, dtype, shape and digest of each of its tensors, in any order."""
    rows = sorted(tensors)  # no two have one scope and name; text in the order of its code points is in the order of its UTF-8 too
    quote, form, scopes = canonical.quote, _form, {row[0] for row in rows}
    quoted = dict.fromkeys(scopes, '""') if len(scopes) <= 1 else {scope: quote(scope) for scope in scopes}
    lines = [f'[{quoted[scope]},{quote(name)},{form(dtype, shape)},"{digest.hex()}"]\n' for scope, name, dtype, shape, digest in rows]
    return xxh128("".join(lines).encode())


@lru_cache(maxsize=1 << 14)
def _form(dtype: str, shape: tuple[int, ...]) -> str:
    """Dtype and shape in the line of a tensor."""
    return f'"{dtype}",[{",".join(map(str, shape))}]'

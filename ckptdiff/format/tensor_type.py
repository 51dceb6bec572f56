"""What is known of a tensor beside its bytes: its name, dtype and shape, and the sizes that follow from these (spec sections 4 and 11)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ckptdiff.format.digests import block_count
from ckptdiff.format.dtypes import DTYPES, MAX_SIZE

MAX_TENSORS = 1 << 17
"""Limit of the tensors in a file."""
MAX_RANK = 32
"""Limit of the dimensions of a tensor."""
MAX_NAME = 4096
"""Limit of a tensor's name in bytes of UTF-8."""


class TensorType(NamedTuple):
    """A dtype and a shape. Thousands of tensors share one, so that what follows from them is worked out once."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    """Size in bytes."""
    units: int
    """How many units there are."""
    blocks: int
    """How many blocks there are."""


class TensorInfo(NamedTuple):
    """One tensor of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin, counted from the start of the data."""
    end: int
    """Where its bytes end."""

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin


@lru_cache(maxsize=1 << 14)
def tensor_type(dtype: str, shape: tuple[int, ...]) -> TensorType | None:
    """A known dtype with a shape; None if that has no whole size within the limits (spec 11)."""
    nbytes = DTYPES[dtype].nbytes(shape)
    return None if nbytes is None else TensorType(dtype, shape, nbytes, nbytes // DTYPES[dtype].carrier, block_count(nbytes))


def integers(text: str) -> tuple[int, ...] | None:
    """Integers of JSON from digits with commas between them; None if one has more than 15 digits, or is not as JSON has it."""
    parts = text.split(",") if text else []
    if not all(0 < len(part) < 16 for part in parts):
        return None
    found = tuple(map(int, parts))
    return found if list(map(str, found)) == parts else None


def type_of(dtype: str, dimensions: str) -> TensorType | None:
    """The type of a tensor from its dtype, and its dimensions as text; None if there is no such type."""
    shape = integers(dimensions)
    if shape is None or dtype not in DTYPES or len(shape) > MAX_RANK or any(size > MAX_SIZE for size in shape):
        return None
    return tensor_type(dtype, shape)


def types_of(pairs: Sequence[tuple[str, str]]) -> list[TensorType] | None:
    """The types of tensors from their dtypes, and their dimensions as text; None if there is no such type."""
    known = dict[tuple[str, str], TensorType]()
    for dtype, dimensions in set(pairs):
        found = type_of(dtype, dimensions)
        if found is None:
            return None
        known[dtype, dimensions] = found
    return [known[pair] for pair in pairs]

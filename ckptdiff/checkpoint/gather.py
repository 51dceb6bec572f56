"""Many small tensors read at once, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.format.dtypes import Bytes
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import LocalFile
from ckptdiff.io.store_file import StoreFile

SMALL_TENSOR = 1 << 16
"""Bytes up to which tensors are worked on together: by calls of kernels that do many of them."""

LARGE_CHECKPOINT = 1 << 28
"""Bytes of tensors from which on blocks of files are worked on together: by kernels that read them, which to load takes more than they save
of fewer."""


def within(numbers: Iterable[int], nbytes: Callable[[int], int], most: int) -> Iterator[list[int]]:
    """Numbers of tensors, or parts of them, in groups that have at most so many bytes: kernels take memory for each unit of a group."""
    group, size = list[int](), 0
    for k in numbers:
        if group and size + nbytes(k) > most:
            yield group
            group, size = [], 0
        group.append(k)
        size += nbytes(k)
    if group:
        yield group


def gather(parts: Sequence[AdaptedBase | Tensor], bounds: Sequence[int], name: str, firsts: Sequence[int] | None = None) -> Bytes:
    """Bytes of tensors and adapted bases, one behind the other, in the :func:`scratch` array called ``name``.

    Args:
        parts: what to read. Those that lie one behind the other in a file are read at once.
        bounds: one more than parts: where each ends, from the second on; the first is 0.
        name: of the scratch array.
        firsts: the byte of each part from which on it is read; None: parts are read whole.
    """
    out = scratch(name, bounds[-1], np.uint8)
    for first, stop in _runs(parts, bounds, firsts):
        part, into, start = parts[first], out[bounds[first] : bounds[stop]], 0 if firsts is None else firsts[first]
        tensor = _plain(part)
        if tensor is None:
            into[:] = part.view(start, start + len(into), "part")
        else:
            tensor.readinto(start, into)
    return out


def _plain(part: AdaptedBase | Tensor) -> Tensor | None:
    """The tensor that a part is, if it is to be read from a file as it is."""
    tensor = part if isinstance(part, Tensor) else part.whole
    return tensor if tensor is not None and (isinstance(tensor.source, FILES) or tensor.memory is None) else None


FILES = LocalFile, StoreFile
"""Sources that are files. Of others a read must lie in one tensor."""


def _runs(parts: Sequence[AdaptedBase | Tensor], bounds: Sequence[int], firsts: Sequence[int] | None) -> Iterator[tuple[int, int]]:
    """Parts that are read at once: the number of the first, and of the one behind the last."""
    first, source, end = 0, None, 0
    for k, part in enumerate(parts):
        tensor = part if isinstance(part, Tensor) else part.whole
        start = tensor.offset + (0 if firsts is None else firsts[k]) if tensor is not None else 0
        if k and (tensor is None or tensor.source is not source or start != end):
            yield first, k
            first = k
        source, end = tensor.source if tensor is not None and isinstance(tensor.source, FILES) else None, start + bounds[k + 1] - bounds[k]
    if parts:
        yield first, len(parts)

"""The closed table of codecs (spec section 7).

A codec is a module with two functions over one block:

``encode(base, target, dtype) -> (coded, changed)``
    the coded bytes, and how many units differ;
``decode(coded, base, size, dtype) -> (target, changed)``
    the target's bytes and how many units differ; raises ValueError with one line on a coded form that breaks the spec.

``base`` and ``target`` are uint8 arrays of the same length, a whole number of units. ``decode`` may turn ``base`` itself into
the target: a copy of each block would cost more than the rest of ``sparse``.
"""

from __future__ import annotations

from typing import Protocol

from ckptdiff.codecs import raw, sparse
from ckptdiff.dtypes import Bytes, Dtype


class Codec(Protocol):
    """What a codec module offers."""

    def encode(self, base: Bytes, target: Bytes, dtype: Dtype) -> tuple[bytes, int]: ...

    def decode(self, coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]: ...


CODECS: dict[str, Codec] = {"raw": raw, "sparse": sparse}

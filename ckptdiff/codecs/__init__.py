"""The closed table of codecs (spec section 7).

A codec is a module with two functions over one block:

``encode(base, target, dtype, layout, found) -> (coded, changed)``
    the coded bytes, and how many units differ; ``layout`` says how the block lies in its tensor, ``found`` are the block's changes,
    if they are known already;
``decode(coded, base, size, dtype) -> (target, changed)``
    the target's bytes and how many units differ; raises ValueError with one line on a coded form that breaks the spec.

``base`` and ``target`` are uint8 arrays of the same length, a whole number of units. ``decode`` may turn ``base`` itself into
the target: a copy of each block would cost more than the rest of ``sparse``.
"""

from __future__ import annotations

from typing import Protocol

from ckptdiff.codecs import context, raw, sparse
from ckptdiff.format.dtypes import Bytes, Changes, Dtype
from ckptdiff.kernels.block_layout import BlockLayout
from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.codecs import escaped_values as escaped_values
else:
    __getattr__ = submodules(__name__)


class Codec(Protocol):
    """What a codec module offers."""

    def encode(self, base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout, found: Changes | None) -> tuple[bytes, int]: ...

    def decode(self, coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]: ...


CODECS: dict[str, Codec] = {"raw": raw, "sparse": sparse, "context": context}

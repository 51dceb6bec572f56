"""Differences and digests computed on torch devices, bit for bit as on the host."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.device import leaves as leaves
    from ckptdiff.device import ops as ops
    from ckptdiff.device import resolve as resolve
    from ckptdiff.device import xxh3_triton as xxh3_triton
else:
    __getattr__ = submodules(__name__)

"""Compiled loops over arrays: the only modules that import Numba."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.kernels import adaptive_block as adaptive_block
    from ckptdiff.kernels import adaptive_blocks as adaptive_blocks
    from ckptdiff.kernels import cache as cache
    from ckptdiff.kernels import casts as casts
    from ckptdiff.kernels import changes as changes
    from ckptdiff.kernels import classes as classes
    from ckptdiff.kernels import context_groups as context_groups
    from ckptdiff.kernels import decode_files as decode_files
    from ckptdiff.kernels import encode_files as encode_files
    from ckptdiff.kernels import escapes as escapes
    from ckptdiff.kernels import gram as gram
    from ckptdiff.kernels import histogram as histogram
    from ckptdiff.kernels import jit as jit
    from ckptdiff.kernels import leaves as leaves
    from ckptdiff.kernels import mask_ops as mask_ops
    from ckptdiff.kernels import moves as moves
    from ckptdiff.kernels import range_coder as range_coder
    from ckptdiff.kernels import rans as rans
    from ckptdiff.kernels import static as static
    from ckptdiff.kernels import sums as sums
    from ckptdiff.kernels import ulps as ulps
else:
    __getattr__ = submodules(__name__)

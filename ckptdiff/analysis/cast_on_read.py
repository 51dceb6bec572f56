"""A cast of both sides of a comparison while they are read, as the paper's code casts both models when it loads them.

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711): the released ``update_rank.py`` loads base and target with ``torch_dtype=bfloat16``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.errors import CheckpointError
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, NUMBERS, Bytes

ALIASES = {"BF16": "BF16", "BFLOAT16": "BF16", "F16": "F16", "FP16": "F16", "FLOAT16": "F16", "HALF": "F16"}
ALIASES |= {"F32": "F32", "FP32": "F32", "FLOAT32": "F32", "FLOAT": "F32"}


def cast_dtype(wanted: Any) -> str | None:
    """The dtype, as safetensors calls it, that a caller names by ``bf16``, ``BF16``, ``bfloat16`` or ``torch.bfloat16``; None for None.

    Raises:
        CheckpointError: it is none of F16, BF16 and F32.
    """
    if wanted is None:
        return None
    found = ALIASES.get(str(wanted).removeprefix("torch.").upper())
    if found is None:
        raise CheckpointError(f"as_dtype: expected one of bf16, f16, f32, found {str(wanted)!r:.80}")
    return found


def cast_base(base: AdaptedBase, dtype: str | None) -> AdaptedBase:
    """What a target stands against, in the dtype that both are cast to: rounded once, from the dtype that the base has.

    Dtypes other than F16, BF16 and F32 stay as they are.
    """
    numbers = base.dtype in NUMBERS and base.base_dtype in NUMBERS
    return replace(base, dtype=dtype) if dtype is not None and numbers else base


def read_step(stored: str, dtype: str) -> int:
    """Bytes of ``dtype`` to read at a time of a tensor that is stored in another one, or in the same: whole blocks of what is stored that
    hold whole elements, which takes three blocks where an element has six bits."""
    return BLOCK * (3 if DTYPES[dtype].bits == 6 else max(DTYPES[dtype].carrier // DTYPES[stored].carrier, 1))


def stored_offset(offset: int, stored: str, dtype: str) -> int:
    """Where the element at a byte of ``dtype`` lies in bytes of what is stored."""
    return offset if stored == dtype else offset // DTYPES[dtype].carrier * DTYPES[stored].carrier


def cast_bytes(data: Bytes, stored: str, dtype: str) -> Bytes:
    """Bytes of what is stored, in ``dtype``: to the nearest number, and of two equally near to the even one, as torch rounds."""
    return data if stored == dtype else kernels.casts.cast(data, stored, dtype)

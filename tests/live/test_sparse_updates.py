"""Blocks of the codec ``sparse`` decoded together, for models in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.codecs import sparse
from ckptdiff.format.digests import BLOCK


def test_one_call_decodes_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changes of a tensor of any size are never decoded by one call, which would hold their planes and positions all at once."""
    old = {"large": np.zeros(80 * BLOCK, np.uint8), "small": np.zeros(100, np.uint8)}
    new = {name: array.copy() for name, array in old.items()}
    new["large"][:: BLOCK // 3] = 1
    new["small"][7] = 2
    calls, unpack_all = list[int](), sparse.unpack_all

    def counted(blocks: Any, sizes: Any, *others: Any) -> Any:
        calls.append(sum(sizes))
        return unpack_all(blocks, sizes, *others)

    monkeypatch.setattr(sparse, "unpack_all", counted)
    ckptdiff.diff(old, new, codec="sparse").apply_(old)
    assert np.array_equal(old["large"], new["large"]) and np.array_equal(old["small"], new["small"])
    assert sum(calls) == 80 * BLOCK + 100 and max(calls) <= 64 * BLOCK + 100

"""XXH3-128 by torch's operations: the digests of the xxhash library."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.device.leaves import leaf_digests  # noqa: E402
from ckptdiff.format.digests import BLOCK, leaves_of  # noqa: E402


@pytest.mark.parametrize("extra", [0, 1, 63, 64, BLOCK - 1])
def test_xxh3_of_torch_is_xxhash(extra: int) -> None:
    data = torch.from_numpy(np.random.default_rng(extra).integers(0, 256, 2 * BLOCK + extra, dtype=np.uint8))
    empty = torch.empty(0, dtype=torch.uint8)
    assert leaf_digests([data, empty, data[: BLOCK + 1]]) == [leaves_of(data.numpy()), [], leaves_of(data[: BLOCK + 1].numpy())]
    special = torch.full((BLOCK,), 255, dtype=torch.uint8)
    assert leaf_digests([special, torch.zeros_like(special)]) == [leaves_of(special.numpy()), leaves_of(np.zeros(BLOCK, np.uint8))]

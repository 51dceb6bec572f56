"""The minimal reader, written from the spec alone, agrees with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.format.test_vectors import READER, run_minimal, run_package
from tests.support.checkpoints import tree
from tests.support.mutations import mutate
from tests.support.random_pairs import random_pair

COUNT, BATCH = 500, 25


@pytest.mark.parametrize("batch", range(COUNT // BATCH))
def test_both_readers_agree_on_random_patches(batch: int, tmp_path: Path) -> None:
    """Each patch gives the exact target with both; a mutated one is accepted or refused by both."""
    for k in range(BATCH):
        rng = np.random.default_rng([batch, k])
        folder = tmp_path / str(k)
        folder.mkdir()
        base, target = random_pair(rng, folder)
        patch = folder / f"patch{target.suffix}"
        ckptdiff.make(base, target, patch, codec=[None, "raw", "sparse", "context"][k % 4])
        ckptdiff.apply(base, patch, folder / "ours")
        READER.apply(base, [patch], folder / "theirs")
        assert tree(folder / "ours") == tree(folder / "theirs") == tree(target)
        assert ckptdiff.verify(patch, base=base, target=target).ok
        chosen = patch if patch.is_file() else rng.choice([path for path in sorted(patch.rglob("*")) if path.is_file()])
        chosen.write_bytes(mutate(rng, chosen.read_bytes()))
        (ours, our_message), (theirs, their_message) = (
            run(base, [patch], folder / f"out{i}") for i, run in enumerate((run_package, run_minimal))
        )
        assert (ours == "success") == (theirs == "success"), (k, ours, our_message, theirs, their_message)

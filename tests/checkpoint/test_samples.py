"""Samples of a pair: what the short way takes for close, the long way does not find unrelated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff.checkpoint import samples
from ckptdiff.checkpoint.adapt import AdaptedBase, adapt
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.samples import LEAST_UNITS, agree, all_agree, are_close, are_unrelated, is_close, relation, windows_of
from ckptdiff.format.dtypes import DTYPES
from tests.support.checkpoints import BITS, TensorData, perturb, random_tensor, write
from tests.support.strategies import DTYPE_NAMES, quick


@quick(300)
@given(DTYPE_NAMES, st.sampled_from([0, 1, 2, 3, 63, 64, 65, 512]), st.sampled_from([2, 3, 256]), st.integers(0, 2**32 - 1))
def test_close_samples_are_not_unrelated(dtype: str, units: int, values: int, seed: int) -> None:
    rng, kind = np.random.default_rng(seed), DTYPES[dtype].unit
    base, other = (rng.integers(0, values, units * kind.itemsize, np.uint8).view(kind) for _ in range(2))
    target: np.ndarray[Any, Any] = np.where(rng.random(units) < rng.choice([0, 0.01, 0.05, 0.3]), other, base)
    if is_close(base, target):
        assert relation(base, target, dtype).related is not False


@pytest.mark.parametrize("dtype", ["BF16", "F64", "U64", "U8"])
def test_large_distances_where_rotated_ones_are_small(dtype: str) -> None:
    """More and more places where units are far apart, in a sample whose rotated units are but one apart."""
    kind = DTYPES[dtype].unit
    base = (np.arange(2048) % 2).astype(kind)
    for places in range(0, 256, 8):
        target = base.copy()
        target[:places] = np.iinfo(kind).max
        if is_close(base, target):
            assert relation(base, target, dtype).related is True
    assert not is_close(base, target) and is_close(base, base)


def test_small_changes_are_close() -> None:
    base = np.arange(LEAST_UNITS, dtype=np.uint16) * 97
    target = base.copy()
    target[7] += 1
    assert is_close(base, target) and relation(base, target, "BF16").related is True
    assert not is_close(base, base[::-1])


@quick(300)
@given(DTYPE_NAMES, st.lists(st.integers(1, 300), min_size=1, max_size=12), st.sampled_from([2, 3, 256]), st.integers(0, 2**32 - 1))
def test_samples_at_once_are_found_what_they_are_found_alone(dtype: str, sizes: list[int], values: int, seed: int) -> None:
    rng, kind = np.random.default_rng(seed), DTYPES[dtype].unit
    base, other = (rng.integers(0, values, sum(sizes) * kind.itemsize, np.uint8).view(kind) for _ in range(2))
    shares = np.repeat(rng.choice([0, 0.01, 0.05, 0.3, 1], len(sizes)), sizes)
    target: np.ndarray[Any, Any] = np.where(rng.random(len(base)) < shares, other, base)
    ends = np.cumsum(sizes)
    pairs = [(base[end - size : end], target[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    assert are_close(base, target, np.array(sizes)).tolist() == [is_close(*pair) for pair in pairs]
    long = np.array(sizes) >= LEAST_UNITS
    if long.any():
        kept = np.repeat(long, sizes)
        found = are_unrelated(base[kept], target[kept], np.array(sizes)[long], dtype).tolist()
        assert found == [relation(*pair, dtype).related is False for pair, is_long in zip(pairs, long, strict=True) if is_long]


@pytest.mark.parametrize("together", [1, 1000, samples.BYTES_TOGETHER])
def test_pairs_at_once_agree_as_they_do_alone(together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of files: without units, cast, cut, of one window and of several, related and not; in groups of any size."""
    rng = np.random.default_rng(4)
    old, new = dict[str, TensorData](), dict[str, TensorData]()
    for k in range(120):
        dtype, size = sorted(BITS)[k % len(BITS)], 8 * (0, 3, 30, 300, 2000)[k % 5]
        old[f"t{k}"] = random_tensor(rng, dtype, [size])
        new[f"t{k}"] = (
            perturb(rng, old[f"t{k}"], (0.0, 0.02, 0.4)[k % 3]) if k % 4 else random_tensor(rng, dtype, [size + 8 * (k % 8 == 4)])
        )
    old["cast"], new["cast"] = random_tensor(rng, "BF16", [500]), random_tensor(rng, "F32", [500])
    monkeypatch.setattr(samples, "BYTES_TOGETHER", together)
    files = [write(tmp_path / f"{side}.safetensors", data) for side, data in (("base", old), ("target", new))]
    with open_checkpoint(files[0]) as base, open_checkpoint(files[1]) as target:
        pairs = list[tuple[AdaptedBase, Tensor, list[tuple[int, int]]]]()
        for tensor in target.weights[0].tensors:
            adapted = adapt(next(iter(base.scopes.values()))[tensor.name], tensor)
            pairs += [(adapted, tensor, windows_of(adapted.named[-1], count, 256)) for count in (1, 8)]
        found = all_agree(pairs)
        assert found == [agree(*pair) for pair in pairs] and {False, True} == set(found)


def test_few_reads_show_that_pairs_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies one behind the other is read at once."""
    rng = np.random.default_rng(6)
    old = {f"t{k:03d}": random_tensor(rng, "BF16", [100]) for k in range(500)}
    files = [write(tmp_path / f"{side}.safetensors", old) for side in ("base", "target")]
    with open_checkpoint(files[0]) as base, open_checkpoint(files[1]) as target:
        pairs = [(adapt(next(iter(base.scopes.values()))[t.name], t), t, windows_of(t.units, 1, 256)) for t in target.weights[0].tensors]
        reads, readinto = list[int](), Tensor.readinto

        def counted(self: Tensor, start: int, out: Any) -> None:
            reads.append(start)
            readinto(self, start, out)

        monkeypatch.setattr(Tensor, "readinto", counted)
        assert all(all_agree(pairs)) and len(reads) == 2

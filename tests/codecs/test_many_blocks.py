"""Blocks coded and decoded together, by one call of a kernel, are what they are one by one."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdiff import kernels
from ckptdiff.codecs import CODECS, context, sparse
from ckptdiff.format.dtypes import DTYPES, Dtype, ManyChanges
from ckptdiff.kernels.block_layout import WITHOUT_ROWS
from ckptdiff.kernels.changes import Compared
from tests.support.strategies import DTYPE_NAMES, SEEDS, quick


class Blocks:
    """Blocks of one dtype, base and target, from some without changes to some of which every unit changed."""

    def __init__(self, name: str, seed: int, count: int) -> None:
        rng, self.dtype = np.random.default_rng(seed), DTYPES[name]
        sizes = rng.choice([1, 2, 40, 300, 5000], count) * self.dtype.carrier
        self.bounds = [0, *accumulate(map(int, sizes))]
        self.base = rng.integers(0, 256, self.bounds[-1], dtype=np.uint8)
        self.target = self.base.copy()
        units = self.target.view(self.dtype.unit)
        shares = np.repeat(rng.choice([0, 0.001, 0.02, 0.5, 1.0], count), sizes // self.dtype.carrier)
        far = rng.random(len(units)) < 0.1
        units[rng.random(len(units)) < shares] += self.dtype.unit.type(1)
        units[far & (shares > 0.4)] ^= self.dtype.unit.type(0xC5)

    @property
    def cuts(self) -> list[tuple[int, int]]:
        """The first unit of each, and the one behind its last."""
        return list(pairwise(bound // self.dtype.carrier for bound in self.bounds))

    def compared(self) -> Compared:
        """All of them, compared at once, in memory of their own."""
        found = kernels.changes.compared_blocks(self.base, self.target, self.bounds, self.dtype)
        changes = ManyChanges(found.changes.positions.copy(), found.changes.zigzags.copy(), found.changes.ends)
        return Compared(changes, found.base_leaves, found.leaves)


MANY = st.builds(Blocks, DTYPE_NAMES, SEEDS, st.integers(1, 12))


def packed_alone(codec: str, blocks: Blocks, changes: ManyChanges) -> list[bytes]:
    parts = [blocks.base[i:j] for i, j in pairwise(blocks.bounds)]
    every = zip(parts, changes.blocks, strict=True)
    return [CODECS[codec].pack(part, change, blocks.dtype, WITHOUT_ROWS) for part, change in every]


@quick(60)
@given(blocks=MANY)
def test_compared_together(blocks: Blocks) -> None:
    found = blocks.compared()
    for k, (i, j) in enumerate(pairwise(blocks.bounds)):
        alone = kernels.changes.compared(blocks.base[i:j], blocks.target[i:j], blocks.dtype)
        assert (alone.base_leaves, alone.leaves) == ([found.base_leaves[k]], [found.leaves[k]])
        ((positions, zigzags),) = alone.changes.blocks
        assert np.array_equal(positions, found.changes.blocks[k][0]) and np.array_equal(zigzags, found.changes.blocks[k][1])
    assert kernels.leaves.leaves_of_blocks(blocks.target, blocks.bounds) == found.leaves


@quick(60)
@given(blocks=MANY)
def test_coded_and_decoded_together(blocks: Blocks) -> None:
    changes = blocks.compared().changes
    assert sparse.pack_all(changes, blocks.dtype) == packed_alone("sparse", blocks, changes)
    coded = context.pack_all(blocks.base, blocks.bounds, changes, blocks.dtype, lambda k: WITHOUT_ROWS)
    assert coded == packed_alone("context", blocks, changes)
    adaptive = [k for k, block in enumerate(coded) if block[:1] == bytes([context.ADAPTIVE])]
    if adaptive:
        wanted = changes.only(adaptive)
        cuts = [blocks.cuts[k] for k in adaptive]
        found = context.unpack_all(blocks.base.view(blocks.dtype.unit), cuts, [memoryview(coded[k]) for k in adaptive], blocks.dtype)
        assert found is not None
        (positions, zigzags), counts = found
        firsts = np.repeat([first for first, _ in cuts], wanted.counts)
        assert counts == wanted.counts
        assert np.array_equal(positions - firsts, wanted.positions) and np.array_equal(zigzags, wanted.zigzags)


def alone(coded: bytes, base: np.ndarray, dtype: Dtype) -> tuple[list[int], list[int]] | None:
    """The changes of a block of the adaptive form, decoded alone; None if it breaks a rule."""
    try:
        positions, zigzags = context._unpack_named(memoryview(coded), base.view(dtype.unit), dtype)
    except ValueError:
        return None
    return positions.tolist(), zigzags.tolist()


@quick(150)
@given(seed=SEEDS, name=DTYPE_NAMES, flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=3), cut=st.integers(0, 4))
def test_damaged_blocks_are_seen_among_others(seed: int, name: str, flips: list[tuple[int, int]], cut: int) -> None:
    """A block is refused among others exactly if it is refused alone, and then by itself; the others come out as they are."""
    rng, dtype = np.random.default_rng(seed), DTYPES[name]
    base = rng.integers(0, 256, 300 * dtype.carrier, dtype=np.uint8)
    target = base.copy()
    target.view(dtype.unit)[rng.integers(0, 300, 6)] += dtype.unit.type(3)
    positions, zigzags = kernels.changes.changes_of(base, target, dtype)
    whole = context.pack(base, (positions.copy(), zigzags.copy()), dtype)
    damaged = bytearray(whole[: len(whole) - cut])
    for at, bits in flips:
        damaged[at % len(damaged)] ^= bits
    three, units = np.concatenate([base, base, base]), len(base) // dtype.carrier
    cuts = [(k * units, (k + 1) * units) for k in range(3)]
    coded = [memoryview(whole), memoryview(bytes(damaged)), memoryview(whole)]
    expected = alone(bytes(damaged), base, dtype) if damaged[0] == context.ADAPTIVE else None
    found = context.unpack_all(three.view(dtype.unit), cuts, coded, dtype)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        (every, moved), counts = found
        start, stop = counts[0], counts[0] + counts[1]
        assert ((every[start:stop] - units).tolist(), moved[start:stop].tolist()) == expected
        assert every[:start].tolist() == (every[stop:] - 2 * units).tolist() == positions.tolist()


def test_changes_of_some_blocks() -> None:
    changes = ManyChanges(np.array([1, 5, 2, 0, 7]), np.array([2, 2, 4, 6, 8]), [0, 2, 2, 3, 5])
    assert changes.only([0, 1, 2, 3]) is changes
    some = changes.only([1, 3])
    assert (some.positions.tolist(), some.zigzags.tolist(), some.ends) == ([0, 7], [6, 8], [0, 0, 2])
    assert changes.only([]).ends == [0] and changes.counts == [2, 0, 1, 2]


@pytest.mark.parametrize("escaped", [0, 1])
def test_no_plane_is_read_behind_the_last(escaped: int) -> None:
    """Two values are the escape, and ``escaped`` have high planes: nothing behind those is read, also by Python, which would see it."""
    planes = np.array([255, 255, *[0] * 2 * escaped], np.uint8)
    join_planes = kernels.escapes.join_planes.py_func  # type: ignore[attr-defined]
    with np.errstate(over="ignore"):
        assert join_planes(planes, 0, 2, 1, escaped, 2, np.zeros(2, np.uint16), 0) == (-1 if escaped else 2)

"""Tensors of several blocks: changes, added rows and casts at the edges of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.casts import CASTS, wide_pair
from tests.support.checkpoints import BITS, changed_units, perturb, random_tensor, tensor
from tests.support.roundtrips import CODECS, MIB2, one, pair, resized

EDGES = {"F32": MIB2 // 4, "BF16": MIB2 // 2, "U8": MIB2, "F64": MIB2 // 8, "C64": MIB2 // 4}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("dtype", "blocks"), [("F32", 1), ("F32", 2), ("BF16", 2), ("U8", 1), ("F64", 1), ("C64", 2)])
def test_changes_at_block_edges(tmp_path: Path, rng: np.random.Generator, dtype: str, blocks: int, codec: str | None) -> None:
    """A tensor a bit over 2 or 4 MiB changes in the last unit of a block, the first of the next, and at both ends."""
    element = BITS[dtype] // 8
    base = random_tensor(rng, dtype, [blocks * MIB2 // element + 3])
    units = np.frombuffer(base[2], f"<u{4 if dtype == 'C64' else element}").copy()
    edges = {EDGES[dtype] * (k + 1) + d for k in range(blocks) for d in (-1, 0)} | {0, len(units) - 1}
    for position in edges:
        units[position] ^= 5
    row = one(tmp_path, base, tensor(dtype, base[1], units), codec=codec)
    assert (row.kind, row.changed) == ("delta", len(edges))


@pytest.mark.parametrize("size", [MIB2 - 1, MIB2, MIB2 + 1, 2 * MIB2, 2 * MIB2 + 1])
def test_sizes_around_whole_blocks(tmp_path: Path, rng: np.random.Generator, size: int) -> None:
    """One byte less and more than whole blocks, unchanged but for the last byte; and as a new tensor."""
    base = random_tensor(rng, "U8", [size])
    target = tensor("U8", [size], base[2][:-1] + bytes([base[2][-1] ^ 1]))
    new = tensor("I8", [size], b"\x01" * size)
    rows = pair(tmp_path, {"w": base, "same": base}, {"w": target, "same": base, "new": new})
    assert [(row.kind, row.changed) for row in rows.values()] == [("delta", 1), ("same", 0), ("new", 0)]


RESIZES = [(MIB2 - 4, MIB2 + 8), (MIB2 + 8, MIB2 - 4), (MIB2, 2 * MIB2 + 4), (2 * MIB2 + 4, MIB2), (12, MIB2 + 4)]


@pytest.mark.parametrize("codec", [None, "raw"])
@pytest.mark.parametrize(("before", "after"), RESIZES)
def test_rows_across_block_edges(tmp_path: Path, rng: np.random.Generator, before: int, after: int, codec: str | None) -> None:
    """Rows are added or cut so that the number of blocks changes."""
    long = random_tensor(rng, "F32", [max(before, after) // 4, 1])
    base, target = resized(long, before // 4, b""), perturb(rng, resized(long, after // 4, b""), 1e-6)
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(base, target))


@pytest.mark.parametrize("rows", [0, 1])
def test_nearly_all_rows_of_many_blocks_are_cut(tmp_path: Path, rng: np.random.Generator, rows: int) -> None:
    """A base of several blocks whose target keeps one row, or none."""
    base = random_tensor(rng, "F32", [(2 * MIB2 + 4) // 4, 1])
    row = one(tmp_path, base, resized(base, rows, b""))
    assert (row.kind, row.payload) == ("same", 0)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("units", [MIB2 // 4 + 1, MIB2 // 2 + 1])
def test_casts_of_many_blocks(tmp_path: Path, rng: np.random.Generator, cast: str, units: int) -> None:
    """Block counts of base and target differ, and one of them is odd; exact, and with changes at the edges."""
    base, exact = wide_pair(rng, cast, units)
    element = BITS[exact[0]] // 8
    changed = bytearray(exact[2])
    for position in {0, MIB2 - element, MIB2, len(changed) - element} & set(range(len(changed))):
        changed[position] ^= 1
    target = (exact[0], exact[1], bytes(changed))
    rows = pair(tmp_path, {"exact": base, "w": base}, {"exact": exact, "w": target})
    assert (rows["exact"].kind, rows["exact"].payload) == ("same", 0)
    assert (rows["w"].kind, rows["w"].changed) == ("delta", changed_units(exact, target))


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize(("before", "after"), [(MIB2 // 4 + 7, MIB2 + 3), (MIB2 + 3, MIB2 // 4 + 7)])
def test_casts_and_rows_of_many_blocks(tmp_path: Path, rng: np.random.Generator, cast: str, before: int, after: int) -> None:
    """A cast and a resize across several blocks at once."""
    base, exact = wide_pair(rng, cast, before)
    target = perturb(rng, resized(exact, after, b"\x00\x00\x80\x3f"), 1e-6)
    row = one(tmp_path, base, target)
    assert (row.kind, row.changed) == ("delta", changed_units(exact, target))

"""Bases that do not fit the target: more or fewer rows, and another dtype, with and without an exact cast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.casts import CASTS
from tests.support.checkpoints import changed_units, perturb, random_tensor, tensor
from tests.support.roundtrips import CODECS, one, pair, resized


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "I8", "C64", "F4"])
@pytest.mark.parametrize("trailing", [(), (2, 3)])
def test_more_rows_are_a_delta(tmp_path: Path, rng: np.random.Generator, dtype: str, codec: str | None, trailing: tuple[int, ...]) -> None:
    """A vocabulary grows and its common rows change too: a delta that counts both."""
    base = random_tensor(rng, dtype, (10, *trailing))
    target = resized(perturb(rng, base, 0.05), 14, b"\x03")
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(base, target))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "I8", "C64", "F4"])
@pytest.mark.parametrize("trailing", [(), (2, 3)])
def test_fewer_changed_rows_are_a_delta(
    tmp_path: Path, rng: np.random.Generator, dtype: str, codec: str | None, trailing: tuple[int, ...]
) -> None:
    """A vocabulary shrinks and its rows change: a delta."""
    base = random_tensor(rng, dtype, (14, *trailing))
    target = perturb(rng, resized(base, 10, b""), 0.05)
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(base, target))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [1, 5, 0])
def test_rows_that_are_only_cut_take_no_payload(tmp_path: Path, rng: np.random.Generator, codec: str | None, rows: int) -> None:
    """Rows are cut off and nothing else: kind ``same``, no payload."""
    base = random_tensor(rng, "BF16", [8, 5])
    row = one(tmp_path, base, resized(base, rows, b""), codec=codec)
    assert (row.kind, row.payload, row.base) == ("same", 0, "w")


def test_more_rows_of_zeros_take_no_payload(tmp_path: Path, rng: np.random.Generator) -> None:
    """Added rows that are all zero bits cost nothing: kind ``same``. From no rows at all too."""
    w, e = random_tensor(rng, "F32", [3, 4]), tensor("F32", [0, 4], b"")
    rows = pair(tmp_path, {"w": w, "e": e}, {"w": resized(w, 5, b"\0"), "e": tensor("F32", [2, 4], bytes(32))})
    assert (rows["w"].kind, rows["e"].kind) == ("same", "same")


@pytest.mark.parametrize("shape", [[4, 6], [5, 4], [20], [2, 2, 5], [4, 5, 1], [0, 6]])
def test_other_changes_of_shape_are_new(tmp_path: Path, rng: np.random.Generator, shape: list[int]) -> None:
    """More columns, another rank, another layout: no base can stand for it."""
    assert one(tmp_path, random_tensor(rng, "F16", [4, 5]), random_tensor(rng, "F16", shape)).kind == "new"


NO_CASTS = [("F32", "F16"), ("BF16", "F16"), ("F16", "BF16"), ("F64", "F32"), ("F32", "F64"), ("I32", "F32"), ("U8", "I8"), ("F32", "C64")]


@pytest.mark.parametrize(("before", "after"), NO_CASTS)
def test_a_change_of_dtype_without_a_cast_is_new(tmp_path: Path, rng: np.random.Generator, before: str, after: str) -> None:
    """Only three casts are known; any other change of dtype stores the tensor."""
    row = one(tmp_path, random_tensor(rng, before, [6, 6]), random_tensor(rng, after, [6, 6]))
    assert (row.kind, row.codec, row.base) == ("new", "raw", None)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
def test_exact_casts_take_no_payload(tmp_path: Path, cast: str, codec: str | None) -> None:
    """All 65,536 patterns up; ties, subnormals, infinities and NaN down: kind ``same``, no payload."""
    row = one(tmp_path, *CASTS[cast], codec=codec)
    assert (row.kind, row.payload, row.changed) == ("same", 0, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_tensor_with_changes_is_a_delta(tmp_path: Path, rng: np.random.Generator, cast: str, codec: str | None) -> None:
    """A cast tensor with a few changes: a delta of just these."""
    base, exact = CASTS[cast]
    target = perturb(rng, exact, 1e-4)
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(exact, target))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("change", [3, -3])
def test_a_cast_tensor_with_other_rows_comes_back(tmp_path: Path, cast: str, codec: str | None, change: int) -> None:
    """A cast tensor with rows added or cut: a delta of the new rows, ``same`` for cut rows."""
    base, exact = CASTS[cast]
    target = resized(exact, exact[1][0] + change, b"\x11")
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == (("delta", changed_units(exact, target)) if change > 0 else ("same", 0))

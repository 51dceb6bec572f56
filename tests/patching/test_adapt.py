"""Bases that do not fit the target: more or fewer rows, another shape, and another dtype, with and without an exact cast."""

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
    assert (row.kind, row.payload, row.bases) == ("same", 0, ("w",))


def test_more_rows_of_zeros_take_no_payload(tmp_path: Path, rng: np.random.Generator) -> None:
    """Added rows that are all zero bits cost nothing: kind ``same``. From no rows at all too."""
    w, e = random_tensor(rng, "F32", [3, 4]), tensor("F32", [0, 4], b"")
    rows = pair(tmp_path, {"w": w, "e": e}, {"w": resized(w, 5, b"\0"), "e": tensor("F32", [2, 4], bytes(32))})
    assert (rows["w"].kind, rows["e"].kind) == ("same", "same")


@pytest.mark.parametrize("shape", [[5, 4], [20], [2, 2, 5], [4, 5, 1]])
def test_another_shape_of_the_same_bytes_takes_no_payload(tmp_path: Path, rng: np.random.Generator, shape: list[int]) -> None:
    """Bytes are bytes: a tensor that is reshaped only is ``same``."""
    base = random_tensor(rng, "F16", [4, 5])
    row = one(tmp_path, base, tensor("F16", shape, base[2]))
    assert (row.kind, row.payload) == ("same", 0)


@pytest.mark.parametrize("shape", [[4, 6], [7], [2, 2, 6]])
def test_another_shape_and_content_is_a_delta(tmp_path: Path, rng: np.random.Generator, shape: list[int]) -> None:
    """Of the same name and dtype, so that what changed in it stays known, although nothing stayed."""
    base, target = random_tensor(rng, "F16", [4, 5]), random_tensor(rng, "F16", shape)
    row = one(tmp_path, base, target)
    assert (row.kind, row.changed) == ("delta", changed_units(base, target))


@pytest.mark.parametrize(("before", "after"), [("F64", "F32"), ("F32", "F64"), ("I8", "F16"), ("BF16", "U8"), ("F8_E4M3", "BF16")])
def test_a_change_of_dtype_without_a_cast_is_new(tmp_path: Path, rng: np.random.Generator, before: str, after: str) -> None:
    """Another width, and not numbers of F16, BF16 and F32: the tensor is stored."""
    row = one(tmp_path, random_tensor(rng, before, [6, 6]), random_tensor(rng, after, [6, 6]))
    assert (row.kind, row.codec, row.bases) == ("new", "raw", ())


@pytest.mark.parametrize(("before", "after"), [("U8", "F8_E4M3"), ("I16", "BF16"), ("U8", "I8"), ("F32", "U32"), ("F64", "I64")])
def test_bits_may_be_called_another_dtype(tmp_path: Path, rng: np.random.Generator, before: str, after: str) -> None:
    """Of one width: the same bits are ``same``; where hardly a bit stays, the base is of no use, and the tensor is new."""
    base = random_tensor(rng, before, [60, 60])
    row = one(tmp_path / "same", base, tensor(after, [60, 60], base[2]))
    assert (row.kind, row.payload, row.bases) == ("same", 0, ("w",))
    row = one(tmp_path / "other", base, random_tensor(rng, after, [60, 60]))
    assert (row.kind, row.codec, row.bases) == ("new", "raw", ())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
def test_exact_casts_take_no_payload(tmp_path: Path, cast: str, codec: str | None) -> None:
    """All 65,536 patterns of 16 bits; of 32 ties, subnormals, infinities and NaN: kind ``same``, no payload."""
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

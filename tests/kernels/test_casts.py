"""The casts of spec section 8: the package, the minimal reader, NumPy and torch agree."""

from __future__ import annotations

import numpy as np
import pytest

from ckptdiff.format.dtypes import CASTS, DTYPES
from ckptdiff.kernels.casts import cast
from tests.support.casts import ALL_16, TIES, cast_bits
from tests.support.vectors import READER

NAMES = sorted(f"{source}-{target}" for source, target in CASTS)


def patterns(source: str, count: int) -> np.ndarray:
    """All patterns of 16 bits; of 32 those at which rounding turns, and so many at random."""
    if source != "F32":
        return ALL_16
    edges = [np.array(TIES, "<u4")]
    for low in (0x0000, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        edges.append((ALL_16.astype("<u4") << 16) | low)
    return np.concatenate([*edges, np.random.default_rng(8).integers(0, 1 << 32, count, dtype=np.uint32)]).astype("<u4")


def as_units(data: np.ndarray, dtype: str) -> np.ndarray:
    return data.view(DTYPES[dtype].unit)


@pytest.mark.parametrize("name", NAMES)
def test_the_package_casts_as_numpy_does(name: str) -> None:
    source, target = name.split("-")
    bits = patterns(source, 1 << 24)
    assert np.array_equal(as_units(cast(bits.view(np.uint8), source, target), target), cast_bits(name, bits))


@pytest.mark.parametrize("name", NAMES)
def test_the_minimal_reader_casts_as_the_package_does(name: str) -> None:
    source, target = name.split("-")
    bits = patterns(source, 1 << 20)
    found = READER.cast(bits.tobytes(), source, target)
    assert np.asarray(found).tobytes() == cast(bits.view(np.uint8), source, target).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_torch_casts_numbers_alike(name: str) -> None:
    """NaN are the format's own."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    source, target = name.split("-")
    bits = patterns(source, 1 << 24)
    signed = bits.view("<i4" if source == "F32" else "<i2").copy()
    numbers = torch.from_numpy(signed).view(dtypes[source])
    theirs = numbers.to(dtypes[target]).view(torch.int32 if target == "F32" else torch.int16).numpy()
    ours = as_units(cast(bits.view(np.uint8), source, target), target)
    numeric = ~torch.isnan(numbers).numpy()
    assert np.array_equal(ours[numeric], theirs.view(ours.dtype)[numeric]) and np.count_nonzero(numeric) > 60_000


@pytest.mark.parametrize(("source", "quiet"), [("F16", 0x200), ("BF16", 0x40)])
def test_casts_that_widen_come_back(source: str, quiet: int) -> None:
    """All but NaN, which become quiet."""
    wide = cast(ALL_16.view(np.uint8), source, "F32")
    back = as_units(cast(wide, "F32", source), source)
    is_nan = np.isnan(as_units(wide, "F32").view("<f4"))
    assert np.array_equal(back, np.where(is_nan, ALL_16 | quiet, ALL_16))

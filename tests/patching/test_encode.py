"""Tensors whose bits change in place: every dtype and special value comes back, and the changed units are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.checkpoints import BITS, TensorData, bf16, changed_units, perturb, random_tensor, tensor, write
from tests.support.roundtrips import CODECS, pair, roundtrip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_comes_back_with_every_codec(tmp_path: Path, rng: np.random.Generator, dtype: str, codec: str | None) -> None:
    """Tensors of each dtype with one, some and all units changed come back, and the patch counts the changed units."""
    base = random_tensor(rng, dtype, [12, 40])
    target = {
        "tiny": perturb(rng, base, 1e-9),
        "some": perturb(rng, base, 0.2),
        "all": tensor(dtype, [12, 40], bytes(255 - byte for byte in base[2])),
        "none": base,
    }
    rows = pair(tmp_path, dict.fromkeys(target, base), target, codec=codec)
    counts = {name: changed_units(base, data) for name, data in target.items()}
    assert {name: row.changed for name, row in rows.items()} == counts
    assert counts["tiny"] == 1 and counts["all"] == rows["all"].units
    assert [row.kind for row in rows.values()] == ["delta", "delta", "delta", "same"]
    assert {row.codec for row in rows.values() if row.payload} <= ({codec} if codec else {"raw", "sparse", "context"})


ZEROS = {"F16": "<u2", "BF16": "<u2", "F32": "<u4", "F64": "<u8", "C64": "<u8", "F8_E4M3": "u1", "F8_E5M2": "u1"}


@pytest.mark.parametrize("codec", CODECS)
def test_signed_zeros_are_changes(tmp_path: Path, codec: str | None) -> None:
    """+0.0 becomes -0.0 and -0.0 becomes +0.0: equal as numbers, two changes as bits."""
    base, target = {}, {}
    for dtype, unit in ZEROS.items():
        minus = 1 << (np.dtype(unit).itemsize * 8 - 1)
        base[dtype] = tensor(dtype, [4], np.array([0, minus, 0, minus], unit))
        target[dtype] = tensor(dtype, [4], np.array([minus, 0, 0, minus], unit))
    rows = pair(tmp_path, base, target, codec=codec)
    assert {(row.kind, row.changed) for row in rows.values()} == {("delta", 2)}


SPECIALS = {
    "F16": ("<u2", [0x7C00, 0xFC00, 0x7C01, 0x7E00, 0x7FFF, 0xFE01, 0xFFFF, 0x0001, 0x8001, 0x7BFF]),
    "BF16": ("<u2", [0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0x7FFF, 0xFFC1, 0xFFFF, 0x0001, 0x8001, 0x7F7F]),
    "F32": ("<u4", [0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFFC12345, 0xFFFFFFFF, 1, 0x80000001, 0x7F7FFFFF]),
    "F64": ("<u8", [0x7FF << 52, 0xFFF << 52, 0x7FF << 52 | 1, 0x7FF8 << 48, (1 << 63) - 1, 0xFFF8 << 48 | 5, (1 << 64) - 1, 1]),
    "F8_E4M3": ("u1", [0x7F, 0xFF, 0x7E, 0xFE, 0x01, 0x81]),
    "F8_E5M2": ("u1", [0x7C, 0xFC, 0x7D, 0x7F, 0xFD, 0xFF, 0x01, 0x81]),
    "F8_E4M3FNUZ": ("u1", [0x80, 0x7F, 0xFF, 0x01, 0x81]),
    "F8_E5M2FNUZ": ("u1", [0x80, 0x7F, 0xFF, 0x01, 0x81]),
}


@pytest.mark.parametrize("codec", CODECS)
def test_nan_payloads_and_infinities_come_back(tmp_path: Path, codec: str | None) -> None:
    """Every special value turns into every other, NaN payloads and signs included."""
    base, target = {}, {}
    for dtype, (unit, bits) in SPECIALS.items():
        values = np.array(bits, unit)
        base[dtype] = tensor(dtype, [len(bits), len(bits)], np.repeat(values, len(bits)))
        target[dtype] = tensor(dtype, [len(bits), len(bits)], np.tile(values, len(bits)))
    rows = pair(tmp_path, base, target, codec=codec)
    assert {name: row.changed for name, row in rows.items()} == {name: len(bits) * (len(bits) - 1) for name, (_, bits) in SPECIALS.items()}


@pytest.mark.parametrize("codec", CODECS)
def test_integers_beyond_two_to_the_53_come_back(tmp_path: Path, codec: str | None) -> None:
    """Neighbours that a float64 cannot tell apart, and both ends of the range."""
    ends = [0, -1, 1, 2**63 - 1, -(2**63), 2**53, -(2**53)]
    base = np.array([2**53, 2**53 + 1, 2**62, -(2**53) - 1, *np.repeat(ends, len(ends))], "<i8")
    target = np.array([2**53 + 1, 2**53, 2**62 + 1, -(2**53), *np.tile(ends, len(ends))], "<i8")
    dtypes = ("I64", "U64")
    rows = pair(
        tmp_path, {d: tensor(d, base.shape, base) for d in dtypes}, {d: tensor(d, target.shape, target) for d in dtypes}, codec=codec
    )
    assert {(row.kind, row.changed) for row in rows.values()} == {("delta", 4 + len(ends) * (len(ends) - 1))}


def f32(bits: Any) -> TensorData:
    array = np.asarray(bits, "<u4")
    return tensor("F32", array.shape, array)


@pytest.mark.parametrize("codec", CODECS)
def test_scalars_empty_and_single_element_tensors_come_back(tmp_path: Path, codec: str | None) -> None:
    """Shapes [], [0], [0, 3], [3, 0, 2], [1] and [1, 1, 1], changed where they can change."""
    base = {
        "scalar": f32(1), "empty": f32([]), "no_rows": tensor("BF16", [0, 3], b""), "hole": tensor("I64", [3, 0, 2], b""),
        "single": f32([5]), "cube": tensor("U8", [1, 1, 1], b"\x07"), "kept": f32(9),
    }  # fmt: skip
    target = {**base, "scalar": f32(2), "single": f32([6]), "cube": tensor("U8", [1, 1, 1], b"\x08")}
    rows = pair(tmp_path, base, target, codec=codec)
    assert {name: row.kind for name, row in rows.items()} == {
        "scalar": "delta", "empty": "same", "no_rows": "same", "hole": "same", "single": "delta", "cube": "delta", "kept": "same",
    }  # fmt: skip


def test_files_without_tensors_come_back(tmp_path: Path) -> None:
    """A file that holds no tensor at all, as target, as base, and as both."""
    empty, full = write(tmp_path / "e.safetensors", {}), write(tmp_path / "f.safetensors", {"w": bf16([1, 2])})
    for k, (base, target) in enumerate([(empty, full), (full, empty), (empty, empty)]):
        (tmp_path / str(k)).mkdir()
        info = roundtrip(tmp_path / str(k), base, target)
        assert (info.totals.new, info.totals.removed) == ((1, 0), (0, 1), (0, 0))[k]


def test_no_change_at_all_takes_no_payload(tmp_path: Path, rng: np.random.Generator) -> None:
    """Base and target equal: every tensor ``same``, no payload, and a patch much smaller than the file."""
    base = {f"layer.{i}": random_tensor(rng, dtype, [64, 64]) for i, dtype in enumerate(BITS)}
    rows = pair(tmp_path, base, base)
    assert {(row.kind, row.payload, row.changed) for row in rows.values()} == {("same", 0, 0)}
    assert (tmp_path / "the patch").stat().st_size < 4000


@pytest.mark.parametrize("codec", CODECS)
def test_everything_changed_takes_little_more_than_the_data(tmp_path: Path, rng: np.random.Generator, codec: str | None) -> None:
    """Random bits over random bits: the default is no larger than either codec, and little larger than the data."""
    base = {f"layer.{i}": random_tensor(rng, dtype, [16, 64]) for i, dtype in enumerate(BITS)}
    target = {name: random_tensor(rng, dtype, shape) for name, (dtype, shape, _) in base.items()}
    rows = pair(tmp_path, base, target, codec=codec)
    assert {row.kind for row in rows.values()} == {"delta"}
    if codec is None:
        for name, row in rows.items():
            assert row.payload <= len(target[name][2]) + 64, row

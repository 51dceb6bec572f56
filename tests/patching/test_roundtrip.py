"""make, then apply: the target comes back byte for byte, whatever changed, and the patch stores it as it should."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors import safe_open

import ckptdiff
from ckptdiff.verbs.info import PatchInfo, TensorRow
from tests.support.checkpoints import (
    BITS,
    TensorData,
    bf16,
    changed_units,
    perturb,
    random_tensor,
    tensor,
    tree,
    write,
    write_raw,
    write_sharded,
)

MIB2 = 1 << 21
CODECS = [None, "raw", "sparse", "context"]
Tensors = Mapping[str, TensorData]


# --- helpers -------------------------------------------------------------------------------------------------------


def roundtrip(tmp: Path, base: Path, target: Path, **options: Any) -> PatchInfo:
    """Make a patch, apply it, compare every byte, verify it, and say what it holds."""
    patch, out = tmp / "the patch", tmp / "the output"
    threads = 1 if target.is_file() and target.stat().st_size < MIB2 else 2
    ckptdiff.make(base, target, patch, threads=threads, **options)
    ckptdiff.apply(base, patch, out, threads=threads)
    assert tree(out) == tree(target)
    found = ckptdiff.verify(patch, base=base, target=target, threads=threads)
    assert found.ok, found.problems
    return ckptdiff.info(patch)


def pair(tmp: Path, base: Tensors, target: Tensors, **options: Any) -> dict[str, TensorRow]:
    """Roundtrip of two files of these tensors: the rows of the patch by tensor name."""
    old = write(tmp / "base.safetensors", base, {"format": "pt"})
    new = write(tmp / "target.safetensors", target, {"format": "pt"})
    return {row.name: row for row in roundtrip(tmp, old, new, **options).tensors}


def one(tmp: Path, base: TensorData, target: TensorData, **options: Any) -> TensorRow:
    """Roundtrip of two files with one tensor each, between two that never change."""
    fence = bf16([1, 2, 3])
    rows = pair(tmp, {"a": fence, "w": base, "z": fence}, {"a": fence, "w": target, "z": fence}, **options)
    assert rows["a"].kind == rows["z"].kind == "same"
    return rows["w"]


def kinds(info: PatchInfo) -> dict[tuple[str, str], str]:
    return {(row.file, row.name): row.kind for row in info.tensors}


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write other files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def f32(bits: Any) -> TensorData:
    array = np.asarray(bits, "<u4")
    return tensor("F32", array.shape, array)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# --- bits that change in place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_codec_and_share(tmp_path: Path, rng: np.random.Generator, dtype: str, codec: str | None) -> None:
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
def test_signed_zeros(tmp_path: Path, codec: str | None) -> None:
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
def test_nan_payloads_and_infinities(tmp_path: Path, codec: str | None) -> None:
    """Every special value turns into every other, NaN payloads and signs included."""
    base, target = {}, {}
    for dtype, (unit, bits) in SPECIALS.items():
        values = np.array(bits, unit)
        base[dtype] = tensor(dtype, [len(bits), len(bits)], np.repeat(values, len(bits)))
        target[dtype] = tensor(dtype, [len(bits), len(bits)], np.tile(values, len(bits)))
    rows = pair(tmp_path, base, target, codec=codec)
    assert {name: row.changed for name, row in rows.items()} == {name: len(bits) * (len(bits) - 1) for name, (_, bits) in SPECIALS.items()}


@pytest.mark.parametrize("codec", CODECS)
def test_integers_beyond_two_to_the_53(tmp_path: Path, codec: str | None) -> None:
    """Neighbours that a float64 cannot tell apart, and both ends of the range."""
    ends = [0, -1, 1, 2**63 - 1, -(2**63), 2**53, -(2**53)]
    base = np.array([2**53, 2**53 + 1, 2**62, -(2**53) - 1, *np.repeat(ends, len(ends))], "<i8")
    target = np.array([2**53 + 1, 2**53, 2**62 + 1, -(2**53), *np.tile(ends, len(ends))], "<i8")
    dtypes = ("I64", "U64")
    rows = pair(
        tmp_path, {d: tensor(d, base.shape, base) for d in dtypes}, {d: tensor(d, target.shape, target) for d in dtypes}, codec=codec
    )
    assert {(row.kind, row.changed) for row in rows.values()} == {("delta", 4 + len(ends) * (len(ends) - 1))}


@pytest.mark.parametrize("codec", CODECS)
def test_scalars_empty_and_single_element_tensors(tmp_path: Path, codec: str | None) -> None:
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


def test_files_without_tensors(tmp_path: Path) -> None:
    """A file that holds no tensor at all, as target, as base, and as both."""
    empty, full = write(tmp_path / "e.safetensors", {}), write(tmp_path / "f.safetensors", {"w": bf16([1, 2])})
    for k, (base, target) in enumerate([(empty, full), (full, empty), (empty, empty)]):
        (tmp_path / str(k)).mkdir()
        info = roundtrip(tmp_path / str(k), base, target)
        assert (info.totals.new, info.totals.removed) == ((1, 0), (0, 1), (0, 0))[k]


def test_no_change_at_all(tmp_path: Path, rng: np.random.Generator) -> None:
    """Base and target equal: every tensor ``same``, no payload, and a patch much smaller than the file."""
    base = {f"layer.{i}": random_tensor(rng, dtype, [64, 64]) for i, dtype in enumerate(BITS)}
    rows = pair(tmp_path, base, base)
    assert {(row.kind, row.payload, row.changed) for row in rows.values()} == {("same", 0, 0)}
    assert (tmp_path / "the patch").stat().st_size < 4000


@pytest.mark.parametrize("codec", CODECS)
def test_everything_changed(tmp_path: Path, rng: np.random.Generator, codec: str | None) -> None:
    """Random bits over random bits: the default is no larger than either codec, and little larger than the data."""
    base = {f"layer.{i}": random_tensor(rng, dtype, [16, 64]) for i, dtype in enumerate(BITS)}
    target = {name: random_tensor(rng, dtype, shape) for name, (dtype, shape, _) in base.items()}
    rows = pair(tmp_path, base, target, codec=codec)
    assert {row.kind for row in rows.values()} == {"delta"}
    if codec is None:
        for name, row in rows.items():
            assert row.payload <= len(target[name][2]) + 64, row


# --- rows, dtypes, names -------------------------------------------------------------------------------------------


def resized(data: TensorData, rows: int, fill: bytes) -> TensorData:
    """A tensor cut or extended to ``rows`` rows; new bytes repeat ``fill``."""
    dtype, shape, raw = data
    size = len(raw) * rows // shape[0]
    return dtype, (rows, *shape[1:]), (raw + fill * size)[:size]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "I8", "C64", "F4"])
@pytest.mark.parametrize("trailing", [(), (2, 3)])
def test_more_rows(tmp_path: Path, rng: np.random.Generator, dtype: str, codec: str | None, trailing: tuple[int, ...]) -> None:
    """A vocabulary grows and its common rows change too: a delta that counts both."""
    base = random_tensor(rng, dtype, (10, *trailing))
    target = resized(perturb(rng, base, 0.05), 14, b"\x03")
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(base, target))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "I8", "C64", "F4"])
@pytest.mark.parametrize("trailing", [(), (2, 3)])
def test_fewer_rows(tmp_path: Path, rng: np.random.Generator, dtype: str, codec: str | None, trailing: tuple[int, ...]) -> None:
    """A vocabulary shrinks and its rows change: a delta."""
    base = random_tensor(rng, dtype, (14, *trailing))
    target = perturb(rng, resized(base, 10, b""), 0.05)
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(base, target))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [1, 5, 0])
def test_fewer_rows_unchanged(tmp_path: Path, rng: np.random.Generator, codec: str | None, rows: int) -> None:
    """Rows are cut off and nothing else: kind ``same``, no payload."""
    base = random_tensor(rng, "BF16", [8, 5])
    row = one(tmp_path, base, resized(base, rows, b""), codec=codec)
    assert (row.kind, row.payload, row.base) == ("same", 0, "w")


def test_more_rows_of_zeros(tmp_path: Path, rng: np.random.Generator) -> None:
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


def f16_as_f32(bits: np.ndarray) -> np.ndarray:
    """F16 to F32 by numpy; NaN by its bits, as the hardware may set the quiet bit."""
    with np.errstate(invalid="ignore"):
        wide = bits.view("<f2").astype("<f4").view("<u4")
    nan = ((bits & 0x7C00) == 0x7C00) & ((bits & 0x3FF) != 0)
    wide[nan] = ((bits[nan].astype("<u4") & 0x8000) << 16) | 0x7F800000 | ((bits[nan].astype("<u4") & 0x3FF) << 13)
    return wide


def f32_as_bf16(bits: np.ndarray) -> np.ndarray:
    """F32 to BF16: the nearer of the two numbers around it, of equals the even one; NaN cut to 16 bits with the quiet bit set."""
    magnitude = bits & 0x7FFFFFFF
    below = magnitude >> 16
    nan = magnitude > 0x7F800000
    with np.errstate(invalid="ignore"):
        here, low, high = (x.astype("<u4").view("<f4").astype(np.float64) for x in (magnitude, below << 16, (below + 1) << 16))
    high[below + 1 == 0x7F80] = 2.0**128  # where rounding up overflows to infinity
    with np.errstate(invalid="ignore"):
        up = (high - here < here - low) | ((high - here == here - low) & (below & 1 == 1))
    up[magnitude == 0x7F800000] = False
    cut = ((bits >> 31 << 15) | (below + up)).astype("<u2")
    cut[nan] = (bits[nan] >> 16) | 0x40
    return cut


ALL_16 = np.arange(1 << 16, dtype="<u2")
TIES = [
    *(0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x3F817FFF, 0x3F818001, 0xBF808000, 0xBF818000, 0x7F7FFFFF),
    *(0x7F7F7FFF, 0x7F7F8000, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000),
    *(0x00008000, 0x00018000, 0x00000001, 0x80008000, 0x80000001, 0x007FFFFF, 0x00800000, 0, 0x80000000, 0x7F80FFFF, 0xFF807FFF),
]


def cast_pairs() -> dict[str, tuple[TensorData, TensorData]]:
    rng = np.random.default_rng(11)
    wide = np.concatenate([np.array(TIES, "<u4"), rng.integers(0, 1 << 32, 1 << 14, dtype=np.uint32)]).astype("<u4")
    halves = np.concatenate([(ALL_16.astype("<u4") << 16) | low for low in (0x7FFF, 0x8000, 0x8001)]).astype("<u4")
    wide = np.concatenate([wide, halves])
    return {
        "BF16-F32": (tensor("BF16", [256, 256], ALL_16), tensor("F32", [256, 256], ALL_16.astype("<u4") << 16)),
        "F16-F32": (tensor("F16", [256, 256], ALL_16), tensor("F32", [256, 256], f16_as_f32(ALL_16))),
        "F32-BF16": (tensor("F32", wide.shape, wide), tensor("BF16", wide.shape, f32_as_bf16(wide))),
    }


CASTS = cast_pairs()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
def test_exact_casts(tmp_path: Path, cast: str, codec: str | None) -> None:
    """All 65,536 patterns up; ties, subnormals, infinities and NaN down: kind ``same``, no payload."""
    row = one(tmp_path, *CASTS[cast], codec=codec)
    assert (row.kind, row.payload, row.changed) == ("same", 0, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
def test_cast_and_changed(tmp_path: Path, rng: np.random.Generator, cast: str, codec: str | None) -> None:
    """A cast tensor with a few changes: a delta of just these."""
    base, exact = CASTS[cast]
    target = perturb(rng, exact, 1e-4)
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == ("delta", changed_units(exact, target))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("change", [3, -3])
def test_cast_and_resized(tmp_path: Path, cast: str, codec: str | None, change: int) -> None:
    """A cast tensor with rows added or cut: a delta of the new rows, ``same`` for cut rows."""
    base, exact = CASTS[cast]
    target = resized(exact, exact[1][0] + change, b"\x11")
    row = one(tmp_path, base, target, codec=codec)
    assert (row.kind, row.changed) == (("delta", changed_units(exact, target)) if change > 0 else ("same", 0))


def test_added_and_removed(tmp_path: Path, rng: np.random.Generator) -> None:
    """Tensors that only one side has: ``new``, and listed as removed."""
    shared, old, new = (random_tensor(rng, "F32", [8, 8]) for _ in range(3))
    rows = pair(tmp_path, {"shared": shared, "old": old, "öld 2": old}, {"shared": shared, "new": new})
    assert {name: row.kind for name, row in rows.items()} == {"shared": "same", "new": "new"}
    info = ckptdiff.info(tmp_path / "the patch")
    assert info.removed_tensors == ("old", "öld 2")
    assert (info.totals.same, info.totals.new, info.totals.removed) == (1, 1, 2)


def test_renamed_with_the_same_content(tmp_path: Path, rng: np.random.Generator) -> None:
    """A tensor under an unrelated new name is found by its content: no payload, the old name recorded."""
    w, v = random_tensor(rng, "F32", [40, 40]), random_tensor(rng, "BF16", [3])
    rows = pair(tmp_path, {"transformer.h.0.w": w, "v": v}, {"layers.0.weight": w, "other": v})
    assert (rows["layers.0.weight"].kind, rows["layers.0.weight"].payload, rows["layers.0.weight"].base) == ("same", 0, "transformer.h.0.w")
    assert (rows["other"].kind, rows["other"].base) == ("same", "v")
    assert ckptdiff.info(tmp_path / "the patch").removed_tensors == ()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
def test_renamed_by_prefix_and_changed(tmp_path: Path, rng: np.random.Generator, prefix: str, forward: bool, codec: str | None) -> None:
    """The prefixes of DataParallel, torch.compile and head models come or go, while the values change."""
    plain = {f"layers.{i}.weight": random_tensor(rng, "BF16", [8, 8]) for i in range(3)}
    changed = {name: perturb(rng, data, 0.02) for name, data in plain.items()}
    base, target = (plain, {prefix + n: d for n, d in changed.items()}) if forward else ({prefix + n: d for n, d in plain.items()}, changed)
    rows = pair(tmp_path, base, target, codec=codec)
    assert {row.kind for row in rows.values()} == {"delta"}
    assert {(row.name, row.base) for row in rows.values()} == set(zip(target, base, strict=True))


@pytest.mark.parametrize("rules", [["^decoder\\.=transformer."], ["^decoder=tmp", "^tmp\\.(.*)=transformer.\\1"]])
def test_renamed_by_rule_and_changed(tmp_path: Path, rng: np.random.Generator, rules: list[str]) -> None:
    """``--rename REGEX=REPL`` turns the target's names into the base's; several rules apply in turn."""
    base = {f"transformer.{i}.w": random_tensor(rng, "F32", [8, 8]) for i in range(3)}
    target = {name.replace("transformer", "decoder"): perturb(rng, data, 0.02) for name, data in base.items()}
    rows = pair(tmp_path, base, target, rename=rules)
    assert {(row.name, row.base, row.kind) for row in rows.values()} == {(t, b, "delta") for t, b in zip(target, base, strict=True)}


def test_renames_that_swap_and_share(tmp_path: Path, rng: np.random.Generator) -> None:
    """Two names change places, and two targets stand on one base tensor."""
    base = {"a": random_tensor(rng, "F32", [8, 8]), "b": random_tensor(rng, "F32", [8, 8])}
    target = {"a": perturb(rng, base["b"], 0.02), "b": perturb(rng, base["a"], 0.02), "b2": perturb(rng, base["a"], 0.03)}
    rows = pair(tmp_path, base, target, rename=["^a$=x", "^b2?$=a", "^x$=b"])
    assert {(row.name, row.base) for row in rows.values()} == {("a", "b"), ("b", "a"), ("b2", "a")}


@pytest.mark.parametrize("codec", CODECS)
def test_an_untied_copy(tmp_path: Path, rng: np.random.Generator, codec: str | None) -> None:
    """A target tensor that repeats another one is stored once."""
    embed, fresh = random_tensor(rng, "BF16", [30, 8]), random_tensor(rng, "F32", [9])
    changed = perturb(rng, embed, 0.1)
    rows = pair(tmp_path, {"embed": embed}, {"embed": changed, "head": changed, "n1": fresh, "n2": fresh, "n3": fresh}, codec=codec)
    assert {name: (row.kind, row.base) for name, row in rows.items()} == {
        "embed": ("delta", "embed"), "head": ("copy", "embed"), "n1": ("new", None), "n2": ("copy", "n1"), "n3": ("copy", "n1"),
    }  # fmt: skip


def test_copies_across_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    """A copy may name a tensor of an earlier shard or of a later one."""
    a, b = random_tensor(rng, "BF16", [30, 8]), random_tensor(rng, "F32", [30])
    a2, b2 = perturb(rng, a, 0.1), perturb(rng, b, 0.1)
    base = write_sharded(tmp_path / "base", {"model-00001-of-00002.safetensors": {"a": a}, "model-00002-of-00002.safetensors": {"b": b}})
    shards = {"model-00001-of-00002.safetensors": {"a": a2, "early": b2}, "model-00002-of-00002.safetensors": {"b": b2, "late": a2}}
    info = roundtrip(tmp_path, base, write_sharded(tmp_path / "target", shards))
    assert {row.name: (row.kind, row.base) for row in info.tensors} == {
        "a": ("delta", "a"), "early": ("copy", "b"), "b": ("delta", "b"), "late": ("copy", "a"),
    }  # fmt: skip


def test_copy_of_an_adapted_tensor(tmp_path: Path) -> None:
    """A copy of a tensor that is ``same`` only after a cast, and of one that is ``same`` under another name."""
    base, wide = CASTS["BF16-F32"]
    new = tensor("F32", wide[1], wide[2][:-4] + b"\1\1\1\1")
    rows = pair(tmp_path, {"w": base, "x": new}, {"w": wide, "w2": wide, "x": wide, "y": new, "z": new})
    assert {name: (row.kind, row.base) for name, row in rows.items()} == {
        "w": ("same", "w"), "w2": ("copy", "w"), "x": ("copy", "w"), "y": ("same", "x"), "z": ("same", "x"),
    }  # fmt: skip


# --- the header ----------------------------------------------------------------------------------------------------


def test_tensors_in_another_order(tmp_path: Path, rng: np.random.Generator) -> None:
    """The target stores the same tensors backwards: nothing to store but the order."""
    base = {f"t{i}": random_tensor(rng, "F32", [i + 1, 4]) for i in range(6)}
    rows = pair(tmp_path, base, dict(reversed(base.items())))
    assert list(rows) == list(reversed(base)) and {row.kind for row in rows.values()} == {"same"}


METADATA: list[tuple[dict[str, str] | None, bool]] = [
    (None, True),
    ({}, True),
    ({"format": "pt"}, True),
    ({"format": "pt"}, False),
    ({"b": "2", "a": "1", "": ""}, True),
    ({"a": "1", "b": "2", "": ""}, False),
    ({"naïve": "模型 😀 \x7f", 'q"\\\n': "\t\x00\x1f"}, True),
    ({"big": "x" * 100_000}, False),
]


@pytest.mark.parametrize("case", range(len(METADATA)))
def test_metadata(tmp_path: Path, rng: np.random.Generator, case: int) -> None:
    """``__metadata__`` absent, empty, reordered, in other scripts, large, before or after the tensors."""
    metadata, first = METADATA[case]
    other, other_first = METADATA[case - 1]
    w = random_tensor(rng, "F16", [20])
    base = write(tmp_path / "base.safetensors", {"w": w}, other, first=other_first)
    target = write(tmp_path / "target.safetensors", {"w": perturb(rng, w, 0.1)}, metadata, first=first)
    assert roundtrip(tmp_path, base, target).totals.delta == 1


@pytest.mark.parametrize("pad", range(1, 17))
def test_header_padding(tmp_path: Path, rng: np.random.Generator, pad: int) -> None:
    """Headers padded to any multiple, or by any number of spaces, come back as they were."""
    w = random_tensor(rng, "F16", [20])
    base = write(tmp_path / "base.safetensors", {"w": w}, pad=17 - pad)
    for k, target in enumerate([
        write(tmp_path / "0.safetensors", {"w": perturb(rng, w, 0.1)}, pad=pad),
        write_raw(tmp_path / "1.safetensors", '{"w":{"dtype":"F16","shape":[20],"data_offsets":[0,40]}}' + " " * (pad - 1), w[2]),
    ]):  # fmt: skip
        (tmp_path / str(k)).mkdir()
        roundtrip(tmp_path / str(k), base, target)


HEADERS = {
    "indented": json.dumps({"__metadata__": {"k": "v"}, "w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, indent=3),
    "keys in another order": '{"w":{"data_offsets":[0,4],"shape":[2],"dtype":"F16"}}',
    "escaped names": '{"\\u0077":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"\\u00e9\\/":"\\ud83d\\ude00"}}',
    "metadata between": '{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"__metadata__":{},'
    '"v":{"dtype":"F16","shape":[],"data_offsets":[2,4]}}',
    "not in order of data": '{"v":{"dtype":"F16","shape":[1],"data_offsets":[2,4]},"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}',
    "empty ones between": '{"z":{"dtype":"F16","shape":[0],"data_offsets":[4,4]},"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
    '"y":{"dtype":"I8","shape":[0],"data_offsets":[4,4]},"x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
    "white space": '{ "w"\n:\t{"dtype" : "F16", "shape":[ 2 ]\r,"data_offsets":[0 ,4] } }   ',
}


@pytest.mark.parametrize("case", HEADERS)
def test_unusual_headers(tmp_path: Path, case: str) -> None:
    """Valid headers that no common writer writes come back byte for byte, with and without a base like them."""
    plain = write(tmp_path / "plain.safetensors", {"w": tensor("F16", [2], b"abcd")})
    odd = write_raw(tmp_path / "odd.safetensors", HEADERS[case], b"abce")
    for name, base, target in (("there", plain, odd), ("back", odd, plain)):
        (tmp_path / name).mkdir()
        roundtrip(tmp_path / name, base, target)


NAMES = [
    "double \"quotes\" and 'single'",
    "back\\slash\\n",
    "\x00\x01\x1f\x7f\b\f\n\r\t",
    "😀 模型 ñ é e\u0301",
    "\u2028\u2029\ufeff\uffff\U0010ffff",
    " ",
    "../../etc/passwd",
    "ckptdiff/table",
    "tensor/w",
    "__metadata__2",
    "</script>&amp;%s{0}",
    "long" * 1000,
    "😀" * 1000,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """Any name that a header can hold: of a delta, a new tensor, a copy, and a removed one."""
    w, n = random_tensor(rng, "F32", [4, 4]), random_tensor(rng, "F32", [7])
    base = {name: w, "gone" + name: n, "same" + name: w}
    rows = pair(tmp_path, base, {name: perturb(rng, w, 0.1), "new" + name: perturb(rng, n, 1), "same" + name: w})
    assert [rows[name].kind, rows["new" + name].kind, rows["same" + name].kind] == ["delta", "new", "same"]
    assert ckptdiff.info(tmp_path / "the patch").removed_tensors == ("gone" + name,)


@pytest.mark.parametrize("name", ["n" * 4096, "😀" * 1024], ids=["ascii", "emoji"])
def test_the_longest_name(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """A name of 4,096 bytes, the limit of spec section 11, with a payload."""
    w = random_tensor(rng, "F32", [4, 4])
    assert pair(tmp_path, {name: w}, {name: perturb(rng, w, 0.1)})[name].kind == "delta"


# --- tensors of several blocks -------------------------------------------------------------------------------------

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


def wide_pair(rng: np.random.Generator, cast: str, units: int) -> tuple[TensorData, TensorData]:
    """A base of random bits and its exact cast."""
    source, target = cast.split("-")
    base = random_tensor(rng, source, [units, 1])
    bits = np.frombuffer(base[2], f"<u{BITS[source] // 8}")
    if cast == "BF16-F32":
        return base, tensor(target, [units, 1], bits.astype("<u4") << 16)
    return base, tensor(target, [units, 1], f16_as_f32(bits) if cast == "F16-F32" else f32_as_bf16(bits))


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


# --- other files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """A base and a target folder, each with one weight file."""
    w = random_tensor(rng, "BF16", [30, 10])
    write(tmp_path / "base" / "model.safetensors", {"w": w})
    write(tmp_path / "target" / "model.safetensors", {"w": perturb(rng, w, 0.1)})
    return tmp_path / "base", tmp_path / "target"


def file_kinds(info: PatchInfo) -> dict[str, str]:
    return {row.path: row.kind for row in info.files if row.kind != "weights"}


def test_other_files(tmp_path: Path, folders: tuple[Path, Path], rng: np.random.Generator) -> None:
    """Files added, removed, changed, equal, empty, in subfolders, without an ending, and of random bytes."""
    noise = rng.bytes(100_000)
    put(folders[0], {
        "config.json": '{"a": 1}', "gone.txt": "old", "sub/gone too": "", "sub/deep/er/vocab.json": "[1, 2]" * 1000, "equal": "=" * 5000,
        "to empty": "full", "from empty": "", "still empty": "", "noise.bin": noise,
    })  # fmt: skip
    put(folders[1], {
        "config.json": '{"a": 2}', "added.txt": "new" * 100, "added/empty": "", "sub/deep/er/vocab.json": "[1, 2]" * 999 + "[3]",
        "equal": "=" * 5000, "to empty": "", "from empty": "full", "still empty": "", "noise.bin": noise[:50_000] + b"!" + noise[50_000:],
    })  # fmt: skip
    info = roundtrip(tmp_path, *folders)
    assert file_kinds(info) == {
        "config.json": "delta", "added.txt": "new", "added/empty": "new", "sub/deep/er/vocab.json": "delta", "equal": "same",
        "to empty": "delta", "from empty": "new", "still empty": "same", "noise.bin": "delta",
    }  # fmt: skip
    assert info.removed_files == ("gone.txt", "sub/gone too")
    stored = {row.path: row.stored for row in info.files}
    assert stored["noise.bin"] < 1000 and stored["sub/deep/er/vocab.json"] < 100 and stored["equal"] == 0


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize("start", [b"", b"\x37\xa4\x30\xec", b"\x28\xb5\x2f\xfd"], ids=["plain", "zstd dictionary", "zstd frame"])
def test_prefixes_that_look_like_something_else(tmp_path: Path, folders: tuple[Path, Path], start: bytes, size: int) -> None:
    """A base file that is tiny, or begins with a magic number of zstd, is still a raw prefix."""
    put(folders[0], {"f": start + b"abcdefgh" * size, "tiny": b"x" * size})
    put(folders[1], {"f": start + b"abcdefgh" * size + b"Z", "tiny": start + b"x" * (size + 1)})
    assert file_kinds(roundtrip(tmp_path, *folders)) == {"f": "delta", "tiny": "delta"}


def test_files_over_the_limit_are_streamed(
    tmp_path: Path, folders: tuple[Path, Path], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files or bases over the limit for deltas are stored whole, streamed; those at the limit are not."""
    import ckptdiff.patching.other_files

    monkeypatch.setattr(ckptdiff.patching.other_files, "MAX_PREFIX", 100_000)
    big, limit, small = rng.bytes(3_000_000), rng.bytes(100_000), rng.bytes(1000)
    put(folders[0], {"big": big, "shrunk": big, "grown": small, "limit": limit, "equal": big})
    put(folders[1], {"big": big[:-1], "shrunk": big[:1000], "grown": big, "limit": limit[::-1], "equal": big, "added": big + big})
    info = roundtrip(tmp_path, *folders)
    assert file_kinds(info) == {"big": "new", "shrunk": "new", "grown": "new", "limit": "delta", "equal": "same", "added": "new"}
    twice = tmp_path / "again"
    ckptdiff.make(*folders, twice)
    assert tree(twice) == tree(tmp_path / "the patch")


LEFT_OUT = [
    "optimizer.pt", "sub/optimizer.bin", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", "a.lock",
    ".cache/huggingface/x", "runs/events", "wandb/log", "checkpoint-5/optimizer.pt", "global_step7/x", "__pycache__/m.pyc", "latest",
    ".git/config", ".git/objects/ab/cd", "sub/.git/HEAD",
]  # fmt: skip


def test_training_state_is_left_out_and_listed(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Version control, caches and training state stay out of the patch; the result lists what was left out."""
    put(folders[0], dict.fromkeys([*LEFT_OUT, "config.json"], "old"))
    wanted = tree(put(folders[1], {"config.json": "new"}))
    put(folders[1], dict.fromkeys(LEFT_OUT, "new"))
    for folder in folders:
        write(folder / "checkpoint-5" / "model.safetensors", {"w": bf16([1])})
    made = ckptdiff.make(*folders, tmp_path / "p")
    ckptdiff.apply(folders[0], tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted
    assert made.files == ("config.json",) and made.removed_files == ()
    assert set(made.left_out) == {*LEFT_OUT, "checkpoint-5/model.safetensors"}
    assert sorted(path.name for path in (tmp_path / "p" / "files").rglob("*")) == ["config.json.zst"]


def test_include_and_exclude(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """``include`` takes files that are left out by default, ``exclude`` leaves others out and beats it."""
    names = ["optimizer.pt", "runs/a", "runs/b", "README.md", "docs/x.md", "config.json"]
    put(folders[0], dict.fromkeys(names, "old"))
    put(folders[1], dict.fromkeys(names, "new"))
    made = ckptdiff.make(*folders, tmp_path / "p", include=["optimizer*", "runs/*"], exclude=["*.md", "runs/b"])
    ckptdiff.apply(folders[0], tmp_path / "p", tmp_path / "out")
    assert made.files == ("config.json", "optimizer.pt", "runs/a")
    assert set(made.left_out) == {"runs/b", "README.md", "docs/x.md"}
    everything = tree(folders[1])
    assert tree(tmp_path / "out") == {name: everything[name] for name in ("config.json", "optimizer.pt", "runs/a", "model.safetensors")}


def test_other_weight_formats_are_other_files(tmp_path: Path, folders: tuple[Path, Path], rng: np.random.Generator) -> None:
    """``.bin``, ``.gguf`` and ``.pt`` beside safetensors weights are kept as files."""
    old, new = rng.bytes(5000), rng.bytes(10)
    names = ("pytorch_model.bin", "model.gguf", "w.pt", "w.pth", "w.ckpt", "model.safetensors.bak")
    put(folders[0], dict.fromkeys(names, old))
    put(folders[1], dict.fromkeys(names, old + new))
    assert file_kinds(roundtrip(tmp_path, *folders)) == dict.fromkeys(names, "delta")


def test_a_file_beside_a_folder_of_its_stored_name(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """``x`` is stored as ``x.zst``, and the target also has a folder ``x.zst``."""
    put(folders[1], {"x": "a file", "x.zst.zst": "another file"})
    assert set(file_kinds(roundtrip(tmp_path, *folders))) == {"x", "x.zst.zst"}
    put(folders[1], {"x.zst/y": "in a folder"})
    with pytest.raises(ckptdiff.CheckpointError, match="would be a file and a folder in the patch: rename one, or leave it out"):
        ckptdiff.make(*folders, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


# --- layouts of folders --------------------------------------------------------------------------------------------


def test_scopes_of_a_diffusers_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    """Files of one folder repeat tensor names; each stands against the file of its own place."""
    files = [
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors", "text_encoder_2/model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    for k, file in enumerate(files):
        tensors = {"w": random_tensor(rng, "F16", [8, 8]), "bias": random_tensor(rng, "F16", [8])}
        write(tmp_path / "base" / file, tensors)
        write(tmp_path / "target" / file, {**tensors, "w": perturb(rng, tensors["w"], 0.05)} if k % 2 else tensors)
    put(tmp_path / "base", {"model_index.json": "{}", "unet/config.json": "{}"})
    put(tmp_path / "target", {"model_index.json": "{ }", "unet/config.json": "{}"})
    info = roundtrip(tmp_path, tmp_path / "base", tmp_path / "target")
    expected = {(file, name): "delta" if k % 2 and name == "w" else "same" for k, file in enumerate(files) for name in ("w", "bias")}
    assert kinds(info) == expected
    assert {row.base for row in info.tensors} == {"w", "bias"}


def test_sharded_variants_beside_each_other(tmp_path: Path, rng: np.random.Generator) -> None:
    """Shards and their ``.fp16`` variant, each with its own index, hold the same names in two scopes."""
    for folder, share in (("base", 0.0), ("target", 0.05)):
        fresh = np.random.default_rng(5)
        for variant, dtype in (("", "F32"), (".fp16", "F16")):
            a, b = (perturb(rng, random_tensor(fresh, dtype, [6, 6]), share) for _ in range(2))
            shards = {f"model-0000{k}-of-00002{variant}.safetensors": {name: data} for k, name, data in ((1, "a", a), (2, "b", b))}
            write_sharded(tmp_path / folder, shards, f"model.safetensors.index{variant}.json")
    assert roundtrip(tmp_path, tmp_path / "base", tmp_path / "target").totals.delta == 4


def test_a_component_is_added_and_one_removed(tmp_path: Path, rng: np.random.Generator) -> None:
    """A folder gains a scope (its tensors are new) and loses another."""
    w, v = random_tensor(rng, "F32", [5, 5]), random_tensor(rng, "F32", [6, 6])
    for folder, files in (("base", {"unet": w, "safety_checker": v}), ("target", {"unet": perturb(rng, w, 0.1), "prior": v})):
        for name, data in files.items():
            write(tmp_path / folder / name / "model.safetensors", {"w": data})
    info = roundtrip(tmp_path, tmp_path / "base", tmp_path / "target")
    assert kinds(info) == {("prior/model.safetensors", "w"): "new", ("unet/model.safetensors", "w"): "delta"}
    assert info.removed_files == ("safety_checker/model.safetensors",)


NUMBERS = tuple("abcdefghi")
LAYOUTS: dict[str, tuple[list[str], str | None]] = {
    "one file": (["model.safetensors"], None),
    "another name": (["weights v2.safetensors"], None),
    "two shards": ([f"model-0000{k}-of-00002.safetensors" for k in (1, 2)], "model.safetensors.index.json"),
    "two without index": ([f"model-0000{k}-of-00002.safetensors" for k in (1, 2)], None),
    "three shards": ([f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)], "model.safetensors.index.json"),
    "three by index only": (["x.safetensors", "y.safetensors", "sub/z.safetensors"], "model.safetensors.index.json"),
}


def lay_out(folder: Path, tensors: Tensors, layout: str) -> Path:
    """Write tensors into a folder in one of the LAYOUTS, dealt out in turn."""
    files, index = LAYOUTS[layout]
    names = list(tensors)
    shards = {file: {name: tensors[name] for name in names[k :: len(files)]} for k, file in enumerate(files)}
    return write_sharded(folder, shards, index)


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_base_and_target_sharded_differently(tmp_path: Path, rng: np.random.Generator, before: str, after: str) -> None:
    """However either side is split, only the tensor that changed is stored."""
    base = {name: random_tensor(rng, "BF16", [5, 4]) for name in NUMBERS}
    target = {**base, "d": perturb(rng, base["d"], 0.2)}
    info = roundtrip(tmp_path, lay_out(tmp_path / "base", base, before), lay_out(tmp_path / "target", target, after))
    assert {name: kind for (_, name), kind in kinds(info).items()} == {name: "delta" if name == "d" else "same" for name in NUMBERS}
    assert info.removed_tensors == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resharded_base_is_the_same_base(tmp_path: Path, rng: np.random.Generator, layout: str) -> None:
    """A patch made from one split of the base applies to any other, and to its single file."""
    base = {name: random_tensor(rng, "BF16", [5, 4]) for name in NUMBERS}
    target = {**{name: perturb(rng, data, 0.1) for name, data in base.items()}, "c": base["c"]}
    made_from = lay_out(tmp_path / "base", base, "two shards")
    wanted = lay_out(tmp_path / "target", target, "three shards")
    ckptdiff.make(made_from, wanted, tmp_path / "p")
    other = lay_out(tmp_path / "other", dict(reversed(base.items())), layout)
    ckptdiff.apply(other, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(wanted)
    ckptdiff.make(other, wanted, tmp_path / "p2")
    assert ckptdiff.info(tmp_path / "p2").base_identity == ckptdiff.info(tmp_path / "p").base_identity
    if layout == "one file":
        ckptdiff.apply(other / "model.safetensors", tmp_path / "p", tmp_path / "out2")
        assert tree(tmp_path / "out2") == tree(wanted)


def test_base_as_folder_or_as_file(tmp_path: Path, rng: np.random.Generator) -> None:
    """For a patch file and for a patch folder the base may be given either way, in make and in apply."""
    w = random_tensor(rng, "BF16", [30, 10])
    as_file = write(tmp_path / "base" / "model.safetensors", {"w": w})
    target = write(tmp_path / "target" / "model.safetensors", {"w": perturb(rng, w, 0.1)})
    for j, goal in enumerate((target, target.parent)):
        for k, made_from in enumerate((as_file, as_file.parent)):
            patch = tmp_path / f"p{j}{k}"
            ckptdiff.make(made_from, goal, patch)
            for m, base in enumerate((as_file, as_file.parent)):
                out = tmp_path / f"out{j}{k}{m}"
                ckptdiff.apply(base, patch, out)
                assert tree(out) == tree(goal)
        assert tree(tmp_path / f"p{j}0") == tree(tmp_path / f"p{j}1")


def test_one_file_out_of_a_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    """A patch file is made from the scope of a folder that has the file's name, and needs only that."""
    w = random_tensor(rng, "BF16", [30, 10])
    for name in ("model", "adapter"):
        write(tmp_path / "base" / f"{name}.safetensors", {"w": w if name == "model" else perturb(rng, w, 0.5)})
    target = write(tmp_path / "model.safetensors", {"w": perturb(rng, w, 0.01)})
    assert roundtrip(tmp_path, tmp_path / "base", target).totals.delta == 1
    ckptdiff.apply(tmp_path / "base" / "model.safetensors", tmp_path / "the patch", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)


def to_hub_cache(folder: Path, cache: Path) -> Path:
    """Store a folder as the Hugging Face Hub does: a snapshot of links to blobs."""
    snapshot = cache / "models--org--name" / "snapshots" / "0123abcd"
    blobs = cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_snapshots_of_a_hub_cache(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Base and target whose files are links to blobs named by hash; results are plain files."""
    put(folders[0], {"config.json": "old", "sub/a.json": "=", "b.json": "="})
    put(folders[1], {"config.json": "new", "sub/a.json": "=", "b.json": "="})
    base, target = (to_hub_cache(folder, tmp_path / f"cache {folder.name}") for folder in folders)
    info = roundtrip(tmp_path, base, target)
    assert file_kinds(info) == {"config.json": "delta", "sub/a.json": "same", "b.json": "same"}
    assert not any(path.is_symlink() for path in (tmp_path / "the output").rglob("*"))
    assert tree(tmp_path / "the output") == tree(folders[1])
    (tmp_path / "file").mkdir()
    roundtrip(tmp_path / "file", base / "model.safetensors", target / "model.safetensors")


@pytest.mark.parametrize("link", ["a link", "z link"])
def test_a_linked_folder(tmp_path: Path, folders: tuple[Path, Path], rng: np.random.Generator, link: str) -> None:
    """A folder reachable under two names is there under both names in the result."""
    write(folders[1] / "real" / "model.safetensors", {"w": random_tensor(rng, "F32", [4])})
    put(folders[1] / "real", {"config.json": "{}"})
    (folders[1] / link).symlink_to("real")
    ckptdiff.make(*folders, tmp_path / "p")
    ckptdiff.apply(folders[0], tmp_path / "p", tmp_path / "out")
    wanted = {"model.safetensors", *(f"{name}/{file}" for name in ("real", link) for file in ("model.safetensors", "config.json"))}
    assert set(tree(tmp_path / "out")) == wanted


def test_a_folder_that_links_to_itself(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """A loop of links does not hang, and is not followed."""
    wanted = tree(put(folders[1], {"sub/config.json": "{}"}))
    (folders[1] / "sub" / "up").symlink_to("..")
    ckptdiff.make(*folders, tmp_path / "p")
    ckptdiff.apply(folders[0], tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted


def test_paths_with_spaces_and_other_scripts(tmp_path: Path, rng: np.random.Generator) -> None:
    """Folders and files with spaces, accents, CJK, emoji, brackets, quotes and a leading dash or dot."""
    home = tmp_path / "mes modèles 模型 😀"
    w = random_tensor(rng, "BF16", [6, 6])
    stems = ("weights é", "sub dir/模型-00001-of-00001", "-dash", "[a]*?", ".hidden/x")
    names = [f"{stem}.safetensors" for stem in stems]
    for name in names:
        write(home / "base it's" / name, {"w": w})
        write(home / 'target "q"' / name, {"w": perturb(rng, w, 0.1)})
    put(home / "base it's", {"tökenizer 词.json": "1" * 50, "--help": "x", "%s{}": "y"})
    put(home / 'target "q"', {"tökenizer 词.json": "1" * 51, "--help": "z", "%s{}": "y"})
    info = roundtrip(home, home / "base it's", home / 'target "q"')
    assert info.totals.delta == len(names)
    (home / "f").mkdir()
    roundtrip(home / "f", home / "base it's" / names[0], home / 'target "q"' / names[0])


OUTPUT_NAMES = {"long": "n" * 250, "emoji": "😀" * 60, "spool": "spool", "scratch": "scratch", "patch": "patch", "index": "ckptdiff.json"}


@pytest.mark.parametrize("name", OUTPUT_NAMES.values(), ids=OUTPUT_NAMES)
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.timeout(15)
def test_any_output_name(tmp_path: Path, rng: np.random.Generator, name: str, kind: str) -> None:
    """The names of patch and output are free: long ones, and those of ckptdiff's own scratch files."""
    w = random_tensor(rng, "F32", [200, 200])
    for k, folder in enumerate(("a", "b", "c")):
        write(tmp_path / folder / "model.safetensors", {"w": perturb(rng, w, 0.5) if k else w})
        put(tmp_path / folder, {"tokenizer.json": f"tokens {k}" * 10})
    a, b, c = (tmp_path / f / "model.safetensors" if kind == "file" else tmp_path / f for f in ("a", "b", "c"))
    for place in ("1", "2", "out"):
        (tmp_path / place).mkdir()
    ckptdiff.make(a, b, tmp_path / "1" / name)
    ckptdiff.make(b, c, tmp_path / "2" / name)
    ckptdiff.apply(a, [tmp_path / "1" / name, tmp_path / "2" / name], tmp_path / "out" / name)
    assert tree(tmp_path / "out" / name) == tree(c)
    assert {path.name for place in ("1", "2", "out") for path in (tmp_path / place).iterdir()} == {name}


# --- chains --------------------------------------------------------------------------------------------------------


def steps(tmp: Path, rng: np.random.Generator, rows: int) -> list[Path]:
    """Four checkpoints, each made from the one before by changes, casts, new rows, renames, re-sharding and file changes."""
    w, e, s = random_tensor(rng, "BF16", [rows, 4]), random_tensor(rng, "BF16", [9, 3]), random_tensor(rng, "F32", [7])
    first = {"w": w, "e": e, "s": s, "old": random_tensor(rng, "I64", [4])}
    w2, e2 = resized(perturb(rng, w, 0.001), rows + 5, b"\x80\x3f"), perturb(rng, e, 0.1)
    second = {"w": w2, "e": e2, "head": e2, "s": s, "fresh": random_tensor(rng, "F16", [5, 5])}
    wide = tensor("F32", w2[1], np.frombuffer(w2[2], "<u2").astype("<u4") << 16)
    third = {"module.w": perturb(rng, wide, 0.001), "module.e": e2, "module.head": perturb(rng, e2, 0.1), "moved": s,
             "module.fresh": tensor("F32", [5, 5], f16_as_f32(np.frombuffer(second["fresh"][2], "<u2")))}  # fmt: skip
    narrow = f32_as_bf16(np.frombuffer(third["module.w"][2], "<u4"))
    w4 = perturb(rng, resized(tensor("BF16", w2[1], narrow), rows - 3, b""), 0.001)
    fourth = {"w": w4, "e": e2, "head": e2, "s": s, "fresh": third["module.fresh"]}
    layouts = ("two without index", "two shards", "three by index only", "one file")
    folders = []
    for k, (tensors, layout) in enumerate(zip((first, second, third, fourth), layouts, strict=True)):
        folders.append(lay_out(tmp / f"step{k}", tensors, layout))
        tokens = "".join(f"token {i}\n" for i in range(500 + 10 * k))
        put(folders[k], {"tokenizer.json": tokens, "README": "same", "tmp/config.json": f"{k // 2}"})
    (folders[1] / "README").unlink()
    return folders


@pytest.mark.parametrize("rows", [20, (MIB2 + MIB2 // 2) // 8 + 1], ids=["small", "blocks"])
def test_chain_of_patches(tmp_path: Path, rng: np.random.Generator, rows: int) -> None:
    """Three patches in a row give the same bytes as one after the other, for each end of the chain."""
    checkpoints = steps(tmp_path, rng, rows)
    patches = []
    for k in range(3):
        patches.append(tmp_path / f"patch{k}")
        ckptdiff.make(checkpoints[k], checkpoints[k + 1], patches[k])
    seen = [{row.name: row.kind for row in ckptdiff.info(patch).tensors} for patch in patches]
    assert seen[0] == {"w": "delta", "e": "delta", "head": "copy", "s": "same", "fresh": "new"}
    assert seen[1] == {"module.w": "delta", "module.e": "same", "module.head": "delta", "moved": "same", "module.fresh": "same"}
    assert seen[2] == {"w": "delta", "e": "same", "head": "copy", "s": "same", "fresh": "same"}
    for k in range(3):
        for j in range(k, 3):
            out = tmp_path / f"out{k}{j}"
            ckptdiff.apply(checkpoints[k], patches[k : j + 1], out, threads=1 + j)
            assert tree(out) == tree(checkpoints[j + 1]), (k, j)


def test_chain_of_patch_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """Patches of single files whose names differ; the chain may end in a patch folder too."""
    w = random_tensor(rng, "F32", [50])
    tensors, files = {"w": w, "keep": w}, []
    for k in range(4):
        files.append(write(tmp_path / f"step {k}" / f"model{k}.safetensors", tensors, pad=k + 1))
        tensors = {"w": perturb(rng, tensors["w"], 0.1), "keep": w}
    goals = [*files[:3], files[3].parent]
    patches = [tmp_path / f"p{k}" for k in range(3)]
    for k in range(3):
        ckptdiff.make(files[k], goals[k + 1], patches[k])
    ckptdiff.apply(files[0], patches[:2], tmp_path / "out2")
    assert tree(tmp_path / "out2") == tree(files[2])
    ckptdiff.apply(files[0], patches, tmp_path / "out3")
    assert tree(tmp_path / "out3") == tree(goals[3])


def test_a_chain_that_never_changes_anything(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Patches without any change, applied over and over."""
    put(folders[0], {"config.json": "{}"})
    ckptdiff.make(folders[0], folders[0], tmp_path / "p")
    ckptdiff.apply(folders[0], [tmp_path / "p"] * 5, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(folders[0])


# --- the same bytes every time -------------------------------------------------------------------------------------


def busy(tmp: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Two folders with enough blocks, kinds and files to keep eight threads apart."""
    base: dict[str, TensorData] = {f"layer.{i:02}": random_tensor(rng, "BF16", [50, 40]) for i in range(30)}
    base |= {"big": random_tensor(rng, "F32", [(2 * MIB2 + 400) // 4]), "dense": random_tensor(rng, "U8", [MIB2 + 5])}
    target = {name: perturb(rng, data, (0, 0.001, 0.3)[i % 3]) for i, (name, data) in enumerate(base.items())}
    target |= {"big": perturb(rng, base["big"], 0.0001), "dense": random_tensor(rng, "U8", [MIB2 + 5]), "again": target["layer.01"]}
    target |= {"moved": base["layer.00"], "fresh": random_tensor(rng, "F16", [33])}
    del target["layer.00"]
    a, b = lay_out(tmp / "base", base, "two shards"), lay_out(tmp / "target", target, "three shards")
    put(a, {f"{i}.json": f"text {i} " * 500 for i in range(6)})
    put(b, {f"{i}.json": f"text {i + i % 2} " * 500 for i in range(8)})
    return a, b


def test_patches_of_folders_are_deterministic(tmp_path: Path, rng: np.random.Generator) -> None:
    """1, 2 and 8 threads, a second run, and another place for the inputs: the same bytes in every file."""
    base, target = busy(tmp_path, rng)
    for name, threads in {"one": 1, "two": 2, "eight": 8, "again": 8}.items():
        ckptdiff.make(base, target, tmp_path / name, threads=threads)
        assert tree(tmp_path / name) == tree(tmp_path / "one"), name
    shutil.copytree(base, tmp_path / "elsewhere" / "x")
    shutil.copytree(target, tmp_path / "elsewhere" / "y")
    ckptdiff.make(tmp_path / "elsewhere" / "x", tmp_path / "elsewhere" / "y", tmp_path / "p5", threads=3)
    assert tree(tmp_path / "p5") == tree(tmp_path / "one")


def test_patches_of_files_are_deterministic(tmp_path: Path, rng: np.random.Generator) -> None:
    """The same for a patch file, also in another process."""
    base, target = busy(tmp_path, rng)
    a, b = base / "model-00001-of-00002.safetensors", target / "model-00002-of-00003.safetensors"
    a, b = shutil.copyfile(a, tmp_path / "a.safetensors"), shutil.copyfile(b, tmp_path / "b.safetensors")
    for name, threads in {"one": 1, "two": 2, "eight": 8, "again": 1}.items():
        ckptdiff.make(a, b, tmp_path / name, threads=threads)
        assert tree(tmp_path / name) == tree(tmp_path / "one"), name
    code = "import sys, ckptdiff; ckptdiff.make(*sys.argv[1:], threads=2)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, a, b, tmp_path / "other"], check=True, env=environment)
    assert tree(tmp_path / "other") == tree(tmp_path / "one")


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_apply_with_any_number_of_threads(tmp_path: Path, rng: np.random.Generator, threads: int) -> None:
    """The number of threads does not change what is rebuilt."""
    base, target = busy(tmp_path, rng)
    ckptdiff.make(base, target, tmp_path / "p")
    ckptdiff.apply(base, tmp_path / "p", tmp_path / "out", threads=threads)
    assert tree(tmp_path / "out") == tree(target)


# --- only ----------------------------------------------------------------------------------------------------------


def library_view(path: Path) -> dict[str, TensorData]:
    """What the safetensors library reads from a file."""
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(path.read_bytes())}


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["w"], {"w"}),
        (["head"], {"head"}),
        (["*"], {"w", "e", "head", "s", "fresh"}),
        (["[ew]", "fr?sh"], {"e", "w", "fresh"}),
        (["s", "*s*"], {"s", "fresh"}),
    ],
)
def test_only_some_tensors(tmp_path: Path, rng: np.random.Generator, globs: list[str], names: set[str]) -> None:
    """``only`` gives one valid safetensors file of just the tensors that match, after one patch and after a chain."""
    checkpoints = steps(tmp_path, rng, 20)
    patches = [tmp_path / f"patch{k}" for k in range(3)]
    for k in range(3):
        ckptdiff.make(checkpoints[k], checkpoints[k + 1], patches[k])
    for count in (1, 3):
        out = tmp_path / f"only{count}.safetensors"
        result = ckptdiff.apply(checkpoints[0], patches[:count], out, only=globs)
        whole = {}
        for shard in checkpoints[count].rglob("*.safetensors"):
            whole |= library_view(shard)
        assert library_view(out) == {name: whole[name] for name in names}
        assert result.tensors == len(names) and set(safe_open(out, "np").keys()) == names


@pytest.mark.parametrize("dtype", BITS)
def test_only_of_every_dtype(tmp_path: Path, rng: np.random.Generator, dtype: str) -> None:
    """``only`` from a patch file, for each dtype, with an odd number of bytes before it."""
    base = {"odd": tensor("U8", [3], b"abc"), "w": random_tensor(rng, dtype, [8, 4]), "x": random_tensor(rng, "F32", [5])}
    target = {**base, "w": perturb(rng, base["w"], 0.1)}
    pair(tmp_path, base, target)
    ckptdiff.apply(tmp_path / "base.safetensors", tmp_path / "the patch", tmp_path / "only.safetensors", only=["odd", "w"])
    assert library_view(tmp_path / "only.safetensors") == {name: target[name] for name in ("odd", "w")}


def test_only_of_two_scopes(tmp_path: Path, rng: np.random.Generator) -> None:
    """``only`` may take tensors of several scopes, but not one name twice."""
    w, v = random_tensor(rng, "F32", [4]), random_tensor(rng, "F32", [4])
    for name in ("unet", "vae"):
        write(tmp_path / "base" / name / "model.safetensors", {"w": w, name: v})
    ckptdiff.make(tmp_path / "base", tmp_path / "base", tmp_path / "p")
    ckptdiff.apply(tmp_path / "base", tmp_path / "p", tmp_path / "out.safetensors", only=["unet", "vae"])
    assert library_view(tmp_path / "out.safetensors") == {"unet": v, "vae": v}
    with pytest.raises(ckptdiff.OutputError, match="two scopes"):
        ckptdiff.apply(tmp_path / "base", tmp_path / "p", tmp_path / "out2.safetensors", only=["w"])
    with pytest.raises(ckptdiff.OutputError, match="none of the 4 tensors"):
        ckptdiff.apply(tmp_path / "base", tmp_path / "p", tmp_path / "out2.safetensors", only=["nothing"])
    assert not (tmp_path / "out2.safetensors").exists()

"""Properties that hold for all inputs: hypothesis draws them, bytes are compared, independent code is the judge."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.codecs import CODECS
from ckptdiff.codecs.escaped_values import read_escaped, write_planes
from ckptdiff.codecs.planes import Reader, write_plane, write_varint
from ckptdiff.errors import FormatError
from ckptdiff.format import canonical
from ckptdiff.format.digests import BLOCK, leaves_of
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.safetensors import header_json, parse_header, read_header
from ckptdiff.io.source import LocalFile, read_bytes
from ckptdiff.kernels import changes, leaves
from ckptdiff.kernels.escapes import best_width, split_escaped
from tests.support.checkpoints import BITS, TensorData, carrier, changed_units, tensor, tree, write


def quick(examples: int) -> Any:
    """Settings of every test here: the same examples in each run, no clock."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = TEXT.filter(lambda name: name and name != "__metadata__")
SEEDS = st.integers(0, 2**32 - 1)
DTYPE_NAMES = st.sampled_from(sorted(BITS))
FLOATS = ("F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F16", "BF16", "F32", "F64", "C64")


# --- random tensors ------------------------------------------------------------------------------------------------


def fill(rng: np.random.Generator, mode: str, size: int) -> bytes:
    """``size`` bytes: of random bits, few values, zeros, ones, or in long runs."""
    if mode == "random":
        return rng.bytes(size)
    if mode == "few":
        return rng.choice(np.frombuffer(rng.bytes(3), np.uint8), size).tobytes()
    if mode == "runs":
        return np.repeat(np.frombuffer(rng.bytes(size // 50 + 1), np.uint8), 50)[:size].tobytes()
    return {"zeros": b"\x00", "ones": b"\xff"}[mode] * size


MODES = st.sampled_from(["random", "few", "zeros", "ones", "runs"])


@st.composite
def tensors(draw: Callable[[Any], Any]) -> TensorData:
    dtype = draw(DTYPE_NAMES)
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    if BITS[dtype] < 8:
        shape.append(4)
    size = math.prod(shape) * BITS[dtype] // 8
    return tensor(dtype, shape, fill(np.random.default_rng(draw(SEEDS)), draw(MODES), size))


CAST_TO = {"BF16": "F32", "F16": "F32", "F32": "BF16"}


def cast_bits(data: TensorData) -> TensorData:
    """The cast of spec section 8, one number at a time; the tensor itself where there is none."""
    dtype, shape, raw = data
    to = CAST_TO.get(dtype)
    if to is None:
        return data
    bits = [int(x) for x in np.frombuffer(raw, f"<u{BITS[dtype] // 8}")]
    if dtype == "BF16":
        return tensor(to, shape, np.array([x << 16 for x in bits], "<u4"))
    if dtype == "F32":
        half = [(x >> 16) | 0x40 if x & 0x7FFFFFFF > 0x7F800000 else (x + 0x7FFF + (x >> 16 & 1)) >> 16 for x in bits]
        return tensor(to, shape, np.array(half, "<u2"))
    wide = []
    for x in bits:
        sign, exponent, mantissa = x >> 15, x >> 10 & 31, x & 1023
        if exponent == 31:
            wide.append(sign << 31 | 0x7F800000 | mantissa << 13)
        else:
            value = mantissa * 2.0**-24 if exponent == 0 else (1024 + mantissa) * 2.0 ** (exponent - 25)
            wide.append(sign << 31 | int(np.float32(value).view(np.uint32)))
    return tensor(to, shape, np.array(wide, "<u4"))


def change(rng: np.random.Generator, data: TensorData, share: float) -> TensorData:
    dtype, shape, raw = data
    out = np.frombuffer(raw, np.uint8).copy()
    where = rng.random(len(out)) < share
    out[where] = rng.integers(0, 256, int(where.sum()))
    return dtype, shape, out.tobytes()


RELATIONS = ("same", "changed", "dense", "resized", "cast", "cast and changed", "dtype", "prefix", "moved", "copied", "removed", "added")


@st.composite
def pairs(draw: Callable[[Any], Any]) -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    """Tensors of a base and a target, each target tensor in a drawn relation to a base tensor."""
    base: dict[str, TensorData] = {}
    target: dict[str, TensorData] = {}
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    for name in names:
        data, relation, rng = draw(tensors()), draw(st.sampled_from(RELATIONS)), np.random.default_rng(draw(SEEDS))
        if relation != "added":
            base[name] = data
        dtype, shape, raw = data
        if relation in ("changed", "dense"):
            data = change(rng, data, 0.05 if relation == "changed" else 0.9)
        elif relation == "resized" and shape and shape[0] and BITS[dtype] >= 8:
            rows = draw(st.integers(0, 9))
            grown = raw + fill(rng, draw(MODES), len(raw) * 9)
            data = change(rng, (dtype, (rows, *shape[1:]), grown[: len(raw) // shape[0] * rows]), draw(st.sampled_from([0, 0.1])))
        elif relation.startswith("cast"):
            data = change(rng, cast_bits(data), 0.0 if relation == "cast" else 0.1)
        elif relation == "dtype" and dtype in ("I64", "F64", "U64"):
            data = ("I64" if dtype != "I64" else "F64", shape, raw)
        elif relation == "prefix":
            name = draw(st.sampled_from(["model.", "module.", "_orig_mod."])) + name
            data = change(rng, data, draw(st.sampled_from([0, 0.05])))
        elif relation == "moved":
            name = f"{name} moved"
        elif relation == "copied":
            data = change(rng, data, 0.5)
            target.setdefault(f"{name} copied", data)
        if relation != "removed":
            target.setdefault(name, data)
    order = draw(st.permutations(sorted(target)))
    return base, {name: target[name] for name in order}


METADATA = st.none() | st.dictionaries(TEXT, TEXT, max_size=3)
FRAMES = st.tuples(METADATA, st.integers(1, 16), st.booleans())


# --- (a) make and apply --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "raw", "sparse", "context"])
@quick(50)
@given(pair=pairs(), frames=st.tuples(FRAMES, FRAMES))
def test_random_files(codec: str | None, pair: Any, frames: Any) -> None:
    """Any two files: the target comes back, the patch is sound, ``only`` gives the library the same tensors."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        base, target = (
            write(tmp / f"{side}.safetensors", tensors, metadata, pad, first)
            for side, tensors, (metadata, pad, first) in zip("bt", pair, frames, strict=True)
        )
        ckptdiff.make(base, target, tmp / "p", codec=codec, threads=1)
        ckptdiff.apply(base, tmp / "p", tmp / "out", threads=1)
        assert tree(tmp / "out") == tree(target)
        found = ckptdiff.verify(tmp / "p", base=base, target=target, threads=1)
        assert found.ok, found.problems
        info = ckptdiff.info(tmp / "p")
        assert [row.name for row in info.tensors] == list(pair[1])
        for row in info.tensors:
            old = pair[0].get(row.base or "")
            if row.kind in ("same", "copy"):
                assert row.payload == 0 and row.changed == 0
            if row.kind == "delta":
                assert old and 1 <= row.changed <= row.units
                assert old[0] != row.dtype or row.changed == changed_units(old, pair[1][row.name])
        assert set(info.removed_tensors) == set(pair[0]) - {name for row in info.tensors for name in (row.name, row.base)}
        if pair[1]:
            ckptdiff.apply(base, tmp / "p", tmp / "only", only=["*"], threads=1)
            assert library_view((tmp / "only").read_bytes()) == pair[1]


@quick(30)
@given(pair=pairs(), shards=st.tuples(st.integers(1, 3), st.integers(1, 3)), indexed=st.booleans(), data=st.data())
def test_random_folders(pair: Any, shards: tuple[int, int], indexed: bool, data: Any) -> None:
    """Any two folders, each split at random, with any files beside the weights; and on from the target back to the base."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        for side, tensors, count in zip("bt", pair, shards, strict=True):
            places = {tensor: data.draw(st.integers(1, count)) for tensor in tensors}
            for k in range(1, count + 1):
                shard = {tensor: tensors[tensor] for tensor, place in places.items() if place == k}
                write(tmp / side / f"model-{k:05}-of-{count:05}.safetensors", shard)
            if indexed:
                weight_map = {tensor: f"model-{place:05}-of-{count:05}.safetensors" for tensor, place in places.items()}
                (tmp / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
            for file, content in data.draw(st.dictionaries(st.sampled_from(["a.json", "b.txt", "é"]), st.binary(max_size=40))).items():
                (tmp / side / file).write_bytes(content)
        ckptdiff.make(tmp / "b", tmp / "t", tmp / "there", threads=1)
        ckptdiff.make(tmp / "t", tmp / "b", tmp / "back", threads=1)
        ckptdiff.apply(tmp / "b", tmp / "there", tmp / "t2", threads=1)
        ckptdiff.apply(tmp / "b", [tmp / "there", tmp / "back"], tmp / "b2", threads=1)
        assert tree(tmp / "t2") == tree(tmp / "t")
        assert tree(tmp / "b2") == tree(tmp / "b")
        found = ckptdiff.verify(tmp / "there", base=tmp / "b", target=tmp / "t", threads=1)
        assert found.ok, found.problems


# --- (b) codecs ----------------------------------------------------------------------------------------------------


@st.composite
def units(draw: Callable[[Any], Any], width: int, count: int) -> np.ndarray:
    """Unsigned integers that are hard on coders: all bits, few values, extremes, long runs."""
    rng, top = np.random.default_rng(draw(SEEDS)), 1 << (8 * width - 1)
    extremes = [0, 1, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 0x7F, 0xFE, 0xFF]
    mode = draw(st.sampled_from(["random", "few", "extremes", "runs", "constant"]))
    if mode == "random":
        return np.frombuffer(rng.bytes(count * width), f"<u{width}").copy()
    if mode == "runs":
        return np.repeat(np.frombuffer(rng.bytes((count // 40 + 1) * width), f"<u{width}"), 40)[:count].copy()
    values = extremes if mode == "extremes" else [draw(st.integers(0, 2 * top - 1)) for _ in range(3 if mode == "few" else 1)]
    return rng.choice(np.array([value % (2 * top) for value in values], f"<u{width}"), count)


@st.composite
def blocks(draw: Callable[[Any], Any]) -> tuple[str, np.ndarray, np.ndarray]:
    """A dtype, and the bytes of a base block and of a target block that has some of its units from the base."""
    dtype = draw(DTYPE_NAMES)
    count = draw(st.sampled_from([1, 2, 15, 16, 17, 255, 256, 300, 1000]))
    base, target = draw(units(carrier(dtype), count)), draw(units(carrier(dtype), count))
    kept = np.random.default_rng(draw(SEEDS)).random(count) < draw(st.sampled_from([0, 0.5, 0.99, 1]))
    target = np.where(kept, base, target).astype(base.dtype)
    return dtype, base.view(np.uint8), target.view(np.uint8)


@quick(300)
@given(case=blocks(), codec=st.sampled_from(sorted(CODECS)))
def test_codecs_are_inverse(case: tuple[str, np.ndarray, np.ndarray], codec: str) -> None:
    """decode undoes encode for every dtype, and both count the changed units."""
    name, base, target = case
    coded, changed = CODECS[codec].encode(base.copy(), target.copy(), DTYPES[name])
    assert changed == changed_units((name, (), base.tobytes()), (name, (), target.tobytes()))
    decoded, counted = CODECS[codec].decode(memoryview(coded), base.copy(), len(target), DTYPES[name])
    assert decoded.tobytes() == target.tobytes() and counted == changed
    assert CODECS[codec].encode(base, target, DTYPES[name])[0] == coded


@pytest.mark.parametrize("name", ["BF16", "U8", "F64"])
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_codecs_are_inverse_on_whole_blocks(name: str, codec: str) -> None:
    """A block of 2 MiB: few changes with wide gaps, and a change of every unit."""
    rng, unit = np.random.default_rng(3), f"<u{carrier(name)}"
    base = np.frombuffer(rng.bytes(1 << 21), unit)
    sparse = base.copy()
    sparse[[0, 1, 300, 70_000, len(base) - 1]] ^= 0x55
    for target in (sparse, np.invert(base)):
        coded, changed = CODECS[codec].encode(base.view(np.uint8), target.view(np.uint8), DTYPES[name])
        decoded, _ = CODECS[codec].decode(memoryview(coded), base.view(np.uint8).copy(), 1 << 21, DTYPES[name])
        assert decoded.tobytes() == target.tobytes() and changed == np.count_nonzero(base != target)


def decode_anything(codec: str, coded: bytes, base: np.ndarray, name: str) -> bool:
    """Whether a coded form is accepted; if not, the error must be a ValueError."""
    given = base.copy()
    try:
        decoded, changed = CODECS[codec].decode(memoryview(coded), given, len(base), DTYPES[name])
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        assert given.tobytes() == base.tobytes(), "a refused block changed the base"
        return False
    assert decoded.dtype == np.uint8 and decoded.shape == base.shape
    assert changed <= len(base) // carrier(name)
    return True


@quick(400)
@given(coded=st.binary(max_size=80), name=DTYPE_NAMES, count=st.sampled_from([0, 1, 3, 40]), codec=st.sampled_from(sorted(CODECS)))
@example(coded=b"\x01\x11\x00\x00\x00\x00", name="U8", count=1, codec="sparse")
@example(coded=b"\xff\xff\xff\xff\x0f\x11", name="U8", count=40, codec="sparse")
@example(coded=b"\x0d\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", name="U8", count=40, codec="raw")
def test_codecs_survive_any_bytes(coded: bytes, name: str, count: int, codec: str) -> None:
    """decode of arbitrary bytes gives a block of the right size or a ValueError."""
    decode_anything(codec, coded, np.arange(count * carrier(name), dtype=np.uint8), name)


@quick(400)
@given(case=blocks(), codec=st.sampled_from(sorted(CODECS)), data=st.data())
def test_codecs_survive_damage(case: tuple[str, np.ndarray, np.ndarray], codec: str, data: Any) -> None:
    """The same for coded forms with a byte changed, cut off, or added; bytes left over are always refused."""
    name, base, target = case
    coded = bytearray(CODECS[codec].encode(base, target, DTYPES[name])[0])
    assert not decode_anything(codec, bytes(coded) + b"\x00", base, name)
    for _ in range(data.draw(st.integers(0, 3))):
        if coded:
            coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    decode_anything(codec, bytes(coded[: data.draw(st.integers(0, len(coded)))]), base, name)


# --- (c) the ulp distance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 240, 241, 256, 1023, 1024, 1025, 1088, 32768, 32769, BLOCK - 1, BLOCK, BLOCK + 240, BLOCK + 241, 2 * BLOCK + 100]
)
def test_leaves_by_kernels_are_the_librarys(size: int) -> None:
    """XXH3-128 alone, beside a compare, and beside moves; of memory that is not aligned."""
    rng = np.random.default_rng(size)
    old, new = (rng.integers(0, 256, size + 1, dtype=np.uint8)[1:] for _ in range(2))
    expected = leaves_of(old), leaves_of(new)
    assert leaves.leaves_of_all([old, new[:0], new]) == [*expected[0], *expected[1]]
    for name in ("U8", "BF16", "F32", "U64"):
        dtype = DTYPES[name]
        a, b = (side[: size // dtype.carrier * dtype.carrier].copy() for side in (old, new))
        found, *both = changes.compared(a, b, dtype)
        assert both == [leaves_of(a), leaves_of(b)]
        for k, (positions, zigzags) in enumerate(found):
            block = a[k * BLOCK : (k + 1) * BLOCK]
            assert positions.tolist() == np.flatnonzero(block.view(dtype.unit) != b[k * BLOCK : (k + 1) * BLOCK].view(dtype.unit)).tolist()
            assert changes.move_run(block, positions, zigzags, dtype, False, True) == [both[1][k]]
        assert np.array_equal(a, b)


def order(x: int, bits: int, is_float: bool) -> int:
    """order() of spec section 7.2, word for word."""
    if not is_float:
        return x
    return x + (1 << (bits - 1)) if x < 1 << (bits - 1) else (1 << bits) - 1 - x


def zigzag(base: int, target: int, bits: int, is_float: bool) -> int:
    """The zigzag of the ulp distance, word for word."""
    d = (order(target, bits, is_float) - order(base, bits, is_float)) % (1 << bits)
    if d >= 1 << (bits - 1):
        d -= 1 << bits
    return 2 * d if d >= 0 else -2 * d - 1


def zigzags(name: str, base: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of all units."""
    found, every = changes.changes_of(base.view(np.uint8), target.view(np.uint8), DTYPES[name]), np.zeros_like(base)
    every[found[0]] = found[1]
    return every


def check_ulp_distances(name: str, base: np.ndarray, target: np.ndarray) -> None:
    """The kernels, and torch's operations, against the spec's words: distances, there and back, and as the ``context`` codec has them."""
    dtype, positions = DTYPES[name], np.arange(len(base), dtype=np.int32)
    expected = [zigzag(b, t, 8 * dtype.carrier, name in FLOATS) for b, t in zip(base.tolist(), target.tolist(), strict=True)]
    found = zigzags(name, base, target)
    assert found.tolist() == expected
    moving = base.copy()
    for back, wanted in ((False, target), (True, base)):
        changes.shift_units(moving, positions, found, dtype, back)
        assert moving.tobytes() == wanted.tobytes()
    distances, signs = changes.distances_of(base, positions, found, dtype)
    assert distances.tolist() == [(z + 1) // 2 for z in expected]
    again = np.empty_like(found)
    assert changes.zigzags_of_distances(base, positions, distances, signs, dtype, again) and again.tolist() == expected
    if importlib.util.find_spec("torch"):
        import torch

        from ckptdiff.device import ops

        old, new = (ops.units_of(torch.from_numpy(side.copy()).view(torch.uint8), dtype) for side in (base, target))
        where, moves = ops.changes(old, new, dtype)
        assert where.tolist() == np.flatnonzero(base != target).tolist()
        assert ops.zigzag(moves).numpy().view(dtype.unit).tolist() == found[base != target].tolist()


@pytest.mark.parametrize("name", [name for name in sorted(BITS) if carrier(name) == 1])
def test_ulp_distance_of_all_pairs_of_bytes(name: str) -> None:
    """All 65,536 pairs of 8-bit units."""
    base, target = (grid.reshape(-1) for grid in np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8)))
    check_ulp_distances(name, base.copy(), target.copy())


@quick(150)
@given(name=st.sampled_from([name for name in sorted(BITS) if carrier(name) > 1]), data=st.data())
def test_ulp_distance_of_wider_units(name: str, data: Any) -> None:
    """Pairs of 16-, 32- and 64-bit units, drawn among the extremes and anywhere."""
    width = carrier(name)
    check_ulp_distances(name, data.draw(units(width, 30)), data.draw(units(width, 30)))


@pytest.mark.parametrize("name", ["F16", "BF16", "I16"])
def test_ulp_distance_of_all_units_of_16_bits(name: str) -> None:
    """From some units to all 65,536: inverse, and each distance once."""
    target = np.arange(1 << 16, dtype="<u2")
    for start in (0, 1, 0x3F80, 0x7F80, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        base = np.full(1 << 16, start, "<u2")
        z = zigzags(name, base, target)
        assert len(np.unique(z)) == 1 << 16 and z[start] == 0
        changes.shift_units(base, np.arange(1 << 16, dtype=np.int32), z, DTYPES[name], False)
        assert base.tobytes() == target.tobytes()


@quick(200)
@given(value=st.floats(allow_nan=False, allow_infinity=False), wide=st.booleans())
def test_the_next_number_is_one_ulp_away(value: float, wide: bool) -> None:
    """F64, F32 and the parts of C64: the next number up has distance +1, the next down -1."""
    kind, unit = (np.float64, "<u8") if wide else (np.float32, "<u4")
    with np.errstate(over="ignore"):
        here = np.array([value], kind)
    if not np.isfinite(here[0]) or here[0] == 0:
        return
    for toward, z in ((np.inf, 2), (-np.inf, 1)):
        with np.errstate(over="ignore", under="ignore"):
            there = np.nextafter(here, kind(toward))
        if there[0] != 0:
            for name in ("F64",) if wide else ("F32", "C64"):
                assert zigzags(name, here.view(unit), there.view(unit)).tolist() == [z]


# --- (d) planes and varints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "low"), [(width, low) for width in range(1, 9) for low in range(1, width + 1)])
@quick(12)
@given(data=st.data(), count=st.sampled_from([0, 1, 15, 16, 100, 700]))
def test_escaped_values(width: int, low: int, data: Any, count: int) -> None:
    """Escaped values of every width in every number of low planes come back, and nothing is left over."""
    unit = np.dtype("<u4") if width == 3 else np.dtype(f"<u{1 << (width - 1).bit_length()}")
    near = data.draw(st.sampled_from([(1 << 8 * low) - 1, 256, 1 << 8 * width]))
    rng = np.random.default_rng(data.draw(SEEDS))
    values = np.array([(near + int(d)) % (1 << 8 * width) for d in rng.integers(-3, 3, count)], unit)
    values = np.where(rng.random(count) < 0.5, values, rng.integers(0, 1 << min(8 * width, 63), count).astype(unit))
    planes = np.empty(2 * width * count, np.uint8)
    coded = write_planes(planes, count, width, low, split_escaped(values, width, low, planes))
    reader = Reader(memoryview(coded))
    found = read_escaped(reader, count, width, low, unit)
    reader.end()
    assert found.dtype == unit and found.tolist() == values.tolist()
    assert 1 <= best_width(values, width) <= width
    if coded:
        with pytest.raises(ValueError):
            read_escaped(Reader(memoryview(coded[:-1])), count, width, low, unit)


@quick(60)
@given(width=st.integers(2, 8), data=st.data())
def test_an_escaped_value_beyond_its_width_is_refused(width: int, data: Any) -> None:
    """E + (v - E) must stay below 2^(8W)."""
    low = data.draw(st.integers(1, width - 1))
    escape, unit = (1 << 8 * low) - 1, np.dtype("<u8")
    most = (1 << 8 * width) - 1 - escape
    excess = data.draw(st.integers(0, escape))
    coded = b"".join(b"\x00" + bytes([255]) for _ in range(low))
    coded += b"".join(b"\x00" + bytes([byte]) for byte in (most + excess).to_bytes(width, "little"))
    if excess == 0:
        assert read_escaped(Reader(memoryview(coded)), 1, width, low, unit).tolist() == [(1 << 8 * width) - 1]
    else:
        with pytest.raises(ValueError, match="too large"):
            read_escaped(Reader(memoryview(coded)), 1, width, low, unit)


@quick(100)
@given(plane=st.binary(max_size=300) | st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(0, 3000)))
def test_planes(plane: bytes) -> None:
    """Planes come back; none is stored in more than its bytes and one."""
    coded = write_plane(np.frombuffer(plane, np.uint8))
    assert len(coded) <= len(plane) + 1
    reader = Reader(memoryview(coded))
    assert reader.plane(len(plane)).tobytes() == plane
    reader.end()
    for wrong in {len(plane) - 1, len(plane) + 1} - {-1, 0}:
        with pytest.raises(ValueError):
            reader = Reader(memoryview(coded))
            reader.plane(wrong)
            reader.end()


@quick(200)
@given(value=st.integers(0, 2**32 - 1) | st.sampled_from([0, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**32 - 1]))
def test_varints(value: int) -> None:
    """Varints come back, are minimal, and are refused when padded, cut off, or followed by nothing."""
    coded = write_varint(value)
    assert len(coded) == max(1, -(-value.bit_length() // 7)) and int("".join(f"{b & 127:07b}" for b in reversed(coded)), 2) == value
    reader = Reader(memoryview(coded + b"rest"))
    assert reader.varint() == value and reader.position == len(coded)
    padded = coded[:-1] + bytes([coded[-1] | 0x80]) + b"\x00"
    for wrong in (coded[:-1], padded, padded[:-1] + b"\x80\x00"):
        with pytest.raises(ValueError):
            Reader(memoryview(wrong)).varint()


@pytest.mark.parametrize(
    "coded", [b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80\x80\x00"]
)
def test_varints_too_large(coded: bytes) -> None:
    """2^32 and above, and varints of six bytes, are refused."""
    with pytest.raises(ValueError):
        Reader(memoryview(coded)).varint()


# --- (e) canonical JSON --------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def spell(value: object) -> str:
    """Canonical JSON of spec section 2, word for word."""
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{spell(k)}:{spell(value[k])}" for k in sorted(value, key=lambda key: [ord(c) for c in key])) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spell, value)) + "]"
    return "null" if value is None else str(value).lower()  # True, False, and integers


@quick(300)
@given(value=JSON)
def test_canonical_json(value: object) -> None:
    """dumps spells as the spec says, and loads undoes it."""
    data = canonical.dumps(value)
    assert data == spell(value).encode()
    found = canonical.loads(data)
    assert found == value and spell(found) == spell(value)  # == alone takes 1 for True


@quick(100)
@given(value=st.dictionaries(TEXT, JSON, max_size=4), data=st.data())
def test_other_spellings_are_refused(value: dict[str, Any], data: Any) -> None:
    """load_object takes the canonical spelling and no other of the same object."""
    right = spell(value).encode()
    assert canonical.load_object(right, "x") == value
    others = {
        json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode(),
        json.dumps(value, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(dict(sorted(value.items(), reverse=True)), ensure_ascii=False, separators=(",", ":")).encode(),
        right + b" ", right + b"\n", b" " + right, b"\xef\xbb\xbf" + right, right.replace(b"/", b"\\/"), right.decode().encode("utf-16"),
    }  # fmt: skip
    position = data.draw(st.integers(0, len(right)))
    others.add(right[:position] + data.draw(st.sampled_from([b" ", b"\t", b"0", b",", b"\x00", b"-"])) + right[position:])
    for other in others - {right}:
        try:
            found = canonical.load_object(other, "x")
        except FormatError as error:
            assert str(error).startswith("x: bad JSON: ") and "\n" not in str(error)
        else:  # the change gave the canonical spelling of something else
            assert spell(found).encode() == other and found != value


REFUSED = [
    b"1.0", b"1e0", b"1E5", b"-1.5", b"1e999", b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b"0x10", b"1_000", b"\xd9\xa1",
    b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\udfff":1}', b'["a\\ud83dz"]', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b"\xef\xbb\xbf1",
    b'{"a":1,"a":1}', b'{"a":1,"\\u0061":1}', b'[[{"b":{"a":1,"a":2}}]]', b'{"":1,"":2}', b"", b"[1,]", b'{"a":1,}', b"[1 2]", b"'a'",
    b'"\n"', b'"\x00"', b"nul", b"True", b"{1:2}", b"//1", b"1//", b"1 2", b"[" * 100_000, b"[" * 5000 + b"]" * 5000, b'{"a":' * 50_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000, b"1" * 21, b"-" + b"1" * 5000, b"9" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_json_that_is_refused(case: int) -> None:
    """Floats, NaN, repeated keys, lone surrogates, bad UTF-8, deep nesting, huge integers: one line of ValueError each."""
    with pytest.raises(ValueError) as caught:
        canonical.loads(REFUSED[case])
    assert str(caught.value)
    with pytest.raises(FormatError) as refused:
        canonical.load_object(b'{"x":' + REFUSED[case] + b"}", "here")
    assert str(refused.value).startswith("here: bad JSON: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"{}"', b"true"])
def test_json_that_is_not_an_object(data: bytes) -> None:
    """Canonical, but not an object."""
    with pytest.raises(FormatError, match="expected a JSON object"):
        canonical.load_object(data, "here")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_not_written(text: str) -> None:
    """dumps refuses what loads would refuse, in values and keys."""
    for value in (text, [text], {text: 1}, {"k": {"k": text}}):
        with pytest.raises(ValueError):
            canonical.dumps(value)


# --- (f) the safetensors library as the judge ----------------------------------------------------------------------


def library_view(data: bytes) -> dict[str, TensorData]:
    """What the safetensors library reads from the bytes of a file."""
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(data)}


def our_view(path: Path) -> dict[str, TensorData]:
    """What ckptdiff.format.safetensors reads from a file."""
    file = LocalFile(path)
    try:
        header = read_header(file)
        return {t.name: (t.dtype, t.shape, read_bytes(file, header.data_start + t.begin, t.nbytes)) for t in header.tensors}
    finally:
        file.close()


def test_the_library_knows_all_our_dtypes() -> None:
    """A file of every dtype is read alike by the library and by ckptdiff."""
    found = {dtype: tensor(dtype, [2, 4], bytes(range(BITS[dtype]))) for dtype in BITS}
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "x.safetensors", found)
        assert our_view(path) == library_view(path.read_bytes()) == found


@quick(80)
@given(found=st.dictionaries(NAMES, tensors(), max_size=5))
def test_headers_that_we_write(found: dict[str, TensorData]) -> None:
    """The headers of header_json are read by the library and by our own parser."""
    rows = [(name, dtype, shape, len(data)) for name, (dtype, shape, data) in found.items()]
    raw, data = header_json([("__metadata__", '{"format":"pt"}')], rows), b"".join(data for _, _, data in found.values())
    assert len(raw) % 8 == 0
    assert library_view(len(raw).to_bytes(8, "little") + raw + data) == found
    header = parse_header(raw, len(data))
    assert header.metadata == {"format": "pt"} and [t.name for t in header.tensors] == list(found)


def ours(raw: bytes, data: bytes) -> dict[str, TensorData] | None:
    """What our strict parser reads, or None if it refuses, which must be with one ValueError."""
    try:
        header = parse_header(raw, len(data))
    except ValueError as error:
        assert str(error)
        return None
    return {t.name: (t.dtype, t.shape, data[t.begin : t.end]) for t in header.tensors}


def agree(raw: bytes, data: bytes) -> bool:
    """What we accept the library must accept and read alike. Says whether we accept."""
    found = ours(raw, data)
    if found is None:
        return False
    try:
        expected = library_view(len(raw).to_bytes(8, "little") + raw + data)
    except safetensors.SafetensorError as error:
        raise AssertionError(f"accepted {raw!r}, which the library refuses: {error}") from None
    assert found == expected
    return True


HEADER = (
    '{"__metadata__":{"format":"pt","k":""},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    '"b\\u00e9/":{"dtype":"F4","shape":[4],"data_offsets":[8,10]},"c":{"dtype":"I8","shape":[0],"data_offsets":[10,10]},'
    '"d":{"dtype":"BOOL","shape":[],"data_offsets":[10,11]}}   '
)
DATA = bytes(range(11))
TOKENS = re.findall(r'"(?:[^"\\]|\\.)*"|-?\d+|\s+|.', HEADER)
FRAGMENTS = [
    *("0", "1", "2", "4", "8", "10", "11", "-0", "-1", "00", "01", "1.0", "1e0", "0.0", "18446744073709551615", "18446744073709551616"),
    *("281474976710656", "281474976710657", "null", "true", "false", "[]", "{}", '""', '"a"', '"d"', '"F32"', '"U8"', '"F6_E2M3"', '"f32"'),
    *('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"x":1,', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x"', '"\x01"'),
    *(",", ":", "[", "]", "{", "}", " ", "\n", "\t", "\r", "\x00", "\x0b", "\u2028", "\ufeff", "NaN", "//", "/**/"),
    *("0,", "1,", "281474976710656,"),
    *('"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', '"e":{"dtype":"U8","shape":[0],"data_offsets":[8,8]},', '"dtype":"U8",'),
]


EDITS = ("replace", "insert", "drop", "swap")


@quick(1000)
@given(st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, len(TOKENS) - 1), st.sampled_from(FRAGMENTS)), max_size=3))
def test_mutated_headers(edits: list[tuple[str, int, str]]) -> None:
    """Tokens of a header replaced, added, dropped and swapped: what we accept the library accepts too."""
    tokens = list(TOKENS)
    for action, position, fragment in edits:
        position %= len(tokens)
        if action == "replace":
            tokens[position] = fragment
        elif action == "insert":
            tokens.insert(position, fragment)
        elif action == "drop":
            del tokens[position]
        else:
            other = (position * 7 + len(fragment)) % len(tokens)
            tokens[position], tokens[other] = tokens[other], tokens[position]
    agree("".join(tokens).encode("utf-8", "surrogatepass"), DATA)


@quick(300)
@given(position=st.integers(0, len(HEADER.encode()) - 1), byte=st.integers(0, 255), size=st.sampled_from([10, 11, 12]))
def test_headers_with_a_changed_byte(position: int, byte: int, size: int) -> None:
    """Any byte of the header changed, with more or less data than it says."""
    raw = bytearray(HEADER.encode())
    raw[position] = byte
    accepted = agree(bytes(raw), DATA[:size] + b"\x00" * (size - 11))
    assert not accepted or size == 11


ACCEPTED = [
    (HEADER, DATA),
    ("{}", b""),
    ("{}      ", b""),
    ('{"__metadata__":{}}', b""),
    ('{"a":{"shape":[ 1 ],\n"data_offsets":[0,\t1],"dtype":"U8"}}', b"x"),
    ('{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"xy"),
    ('{"a":{"dtype":"U8","shape":[0,281474976710656],"data_offsets":[0,0]}}', b""),
    ('{"\\u0000\\ud83d\\ude00":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}', b"12345678"),
]


@pytest.mark.parametrize("case", range(len(ACCEPTED)))
def test_headers_that_are_accepted(case: int) -> None:
    """By us and by the library, so that the tests above do not hold for nothing."""
    assert agree(ACCEPTED[case][0].encode(), ACCEPTED[case][1])


def header_of(**members: str) -> str:
    """A header of one tensor ``a`` of one byte, with members replaced, or left out where empty."""
    parts = {"dtype": '"U8"', "shape": "[1]", "data_offsets": "[0,1]"} | members
    return '{"a":{' + ",".join(f'"{key}":{text}' for key, text in parts.items() if text) + "}}"


STRICT = [
    *("", "[]", "null", " {}", "\n{}", "{}\n", "{} \n ", "{}\t", "{}x", "{}{}", "{", '{"a"}', "\ufeff{}", "{}\x00"),
    *('{"__metadata__":null}', '{"__metadata__":[]}', '{"__metadata__":"x"}', '{"__metadata__":{"a":1}}', '{"__metadata__":{"a":null}}'),
    *('{"__metadata__":{"a":{}}}', '{"__metadata__":{"a":"1","a":"1"}}', '{"__metadata__":{},"__metadata__":{}}'),
    *('{"__metadata__":{"a":"\\ud800"}}', header_of(shape="[-0]", data_offsets="[0,0]"), header_of(shape="[0]", data_offsets="[0,-0]")),
    *(header_of(dtype=text) for text in ("", "null", "1", '"u8"', '"U8 "', '"F128"', '"U\\u0000"', '["U8"]', '{"U8":1}')),
    *(header_of(shape=text) for text in ("", "null", "1", "[-1]", "[1.0]", "[1e0]", "[true]", '["1"]', "[[1]]", "[2]", "[0]", "[01]")),
    *(header_of(shape=text) for text in ("[1,]", "[1 1]", "{}", "[null]", "[281474976710657,0]", "[18446744073709551617]")),
    header_of(shape="[" + "1," * 32 + "1]"),
    *(header_of(data_offsets=text) for text in ("", "null", "[]", "[1]", "[0,1,2]", "[1,0]", "[0,2]", "[1,2]", "[-0,1]", "[false,true]")),
    *(header_of(data_offsets=text) for text in ("[0.0,1]", "[0,1.0]", '["0","1"]', "{}", "[0,281474976710657]", "[-1,0]", "[0,0]")),
    *('{"a":1}', '{"a":null}', '{"a":[]}', header_of(extra="1"), header_of(name='"a"'), header_of().replace('"a"', '""')),
    header_of().replace("{", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},', 1),
    header_of().replace("{", '{"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},', 1),
    header_of().replace("{", '{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},', 1),
    header_of().replace('"dtype":"U8"', '"dtype":"U8","dtype":"U8"'),
    header_of(dtype='"F4"'),
    header_of(dtype='"F6_E2M3"', shape="[2]"),
    header_of().replace('"a"', f'"{"n" * 4097}"'),
    "[" * 100_000,
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("case", range(len(STRICT)))
def test_headers_that_are_refused(case: int) -> None:
    """Each rule of spec section 5.3, broken once."""
    assert ours(STRICT[case].encode(), b"") is None
    assert ours(STRICT[case].encode(), b"x") is None


@pytest.mark.parametrize("shape", ["281474976710656,281474976710656,0", "65536,65536,65536,65536,0", "281474976710656,16384,0"])
def test_shapes_whose_size_overflows_before_a_zero(shape: str) -> None:
    """The library multiplies in 64 bits from the left; what it refuses we must refuse."""
    raw = f'{{"a":{{"dtype":"F64","shape":[{shape}],"data_offsets":[0,0]}}}}'.encode()
    agree(raw, b"")

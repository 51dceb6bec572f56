"""The ``context`` codec block by block: both forms, every dtype, damaged blocks, and the minimal reader on each of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdiff.codecs import context
from ckptdiff.codecs.planes import write_varint
from ckptdiff.format.dtypes import DTYPES, Dtype
from ckptdiff.kernels import classes as unit_classes
from ckptdiff.kernels import pace
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from tests.support.codec_checks import (
    Case,
    check_a_whole_block,
    check_any_bytes,
    check_damage,
    check_that_decoding_undoes_encoding,
    decode,
    encode,
)
from tests.support.mutations import mutate
from tests.support.strategies import DAMAGE, DTYPE_NAMES, blocks, examples_run, quick
from tests.support.vectors import READER

SHARES = (0.003, 0.04, 0.3, 1.0)


def block(rng: np.random.Generator, dtype: Dtype, n: int, share: float, how: str) -> tuple[np.ndarray, np.ndarray]:
    """A base and a target of ``n`` units; at least one differs."""
    if how == "weights" and dtype.is_float and dtype.carrier > 1:
        kind = {2: "<u2", 4: "<f4", 8: "<f8"}[dtype.carrier]
        values = rng.normal(0, 0.02, n)
        base = (values.astype("<f4").view("<u4") >> 16).astype("<u2") if kind == "<u2" else values.astype(kind).view(dtype.unit)
    else:
        base = rng.integers(0, 256, n * dtype.carrier, np.uint8).view(dtype.unit)
    target = base.copy()
    where = rng.random(n) < share
    where[rng.integers(n)] = True
    if how == "weights":
        target[where] += rng.integers(1, 9, int(where.sum())).astype(dtype.unit)
    elif how == "noise":
        target[where] = rng.integers(0, 256, int(where.sum()) * dtype.carrier, np.uint8).view(dtype.unit)
        target[where & (target == base)] ^= dtype.unit.type(1)
    else:
        target[where] ^= dtype.unit.type(1 << (8 * dtype.carrier - 1))
    return base.view(np.uint8), target.view(np.uint8)


def minimal(coded: bytes, base: np.ndarray, dtype: Dtype) -> tuple[bytes, int]:
    return READER.decode_context(coded, base.tobytes(), dtype.name)


def check(base: np.ndarray, target: np.ndarray, dtype: Dtype, place: BlockLayout = WITHOUT_ROWS) -> bytes:
    """Code a block; decode it with both readers; returns the coded form."""
    coded, changed = encode("context", base, target, dtype, place)
    out, found = decode("context", coded, base.copy(), dtype)
    assert out.tobytes() == target.tobytes()
    assert found == changed == np.count_nonzero(base.view(dtype.unit) != target.view(dtype.unit))
    assert minimal(coded, base, dtype) == (target.tobytes(), changed)
    return coded


@quick(150)
@given(case=blocks())
def test_decoding_undoes_encoding(case: Case) -> None:
    check_that_decoding_undoes_encoding("context", case)


@pytest.mark.parametrize("name", ["BF16", "U8", "F64"])
def test_whole_blocks_come_back(name: str) -> None:
    check_a_whole_block("context", name)


@quick(200)
@given(coded=st.binary(max_size=80), name=DTYPE_NAMES, count=st.sampled_from([0, 1, 3, 40]))
def test_any_bytes_are_refused_or_give_a_block(coded: bytes, name: str, count: int) -> None:
    check_any_bytes("context", coded, name, count)


@quick(200)
@given(case=blocks(), damage=DAMAGE)
def test_damaged_blocks_are_refused_or_give_a_block(case: Case, damage: tuple[list[tuple[int, int]], float]) -> None:
    check_damage("context", case, *damage)


@pytest.mark.parametrize("how", ["weights", "noise", "top bit"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back(dtype: Dtype, how: str) -> None:
    for n in (1, 2, 5, 700):
        for k, share in enumerate(SHARES):
            check(*block(np.random.default_rng([n, k]), dtype, n, share, how), dtype)


@pytest.mark.parametrize("name", ["BF16", "F32", "U8", "F16", "I32", "C64"])
@pytest.mark.parametrize("place", [WITHOUT_ROWS, BlockLayout(100, 0), BlockLayout(64, 63), BlockLayout(1000, 17)], ids=str)
def test_dense_blocks_in_rows(name: str, place: BlockLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The static form alone, with rows and columns that are active to different degrees."""
    monkeypatch.setattr(context, "BOTH_BELOW", 0)
    dtype, rng, n = DTYPES[name], np.random.default_rng(3), 20_000
    base, _ = block(rng, dtype, n, 0, "weights")
    width = place.width or 100
    i = np.arange(n) + place.phase
    active = rng.random(n // width + 2)[i // width] * rng.random(width)[i % width] > rng.random(n)
    target = base.view(dtype.unit) + (active * rng.geometric(0.4, n)).astype(dtype.unit)
    coded = check(base, target.view(np.uint8), dtype, place)
    assert coded[0] == context.STATIC
    if (name, place) == ("BF16", BlockLayout(64, 63)):
        assert words_of(coded)[0][2] & 63 > 0, "level bits of rows and columns"


def test_extremes_come_back() -> None:
    """Zeros of both signs, infinities, NaN payloads, and the largest distance there is, up and down."""
    dtype = DTYPES["BF16"]
    units = np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x0001, 0x8001, 0x3F80], "<u2")
    for shift in range(len(units)):
        check(units.view(np.uint8), np.roll(units, shift).view(np.uint8), dtype)
    for name in ("U8", "BF16", "F32", "F64", "I64"):
        dtype = DTYPES[name]
        top = (1 << 8 * dtype.carrier) - 1
        ends = np.array([0, top, top >> 1, (top >> 1) + 1], dtype.unit)
        pairs = [(a, b) for a in ends for b in ends if a != b]
        base, target = (np.array(side, dtype.unit) for side in zip(*pairs, strict=True))
        check(base.view(np.uint8), target.view(np.uint8), dtype)


def test_a_full_block_of_one_class() -> None:
    """The longest run there is: two million unchanged units of one class."""
    dtype = DTYPES["U8"]
    base = np.full(1 << 21, 7, np.uint8)
    target = base.copy()
    target[0] = 8
    coded, _ = encode("context", base, target, dtype)
    out, _ = decode("context", coded, base.copy(), dtype)
    assert (out == target).all() and len(coded) < 20


def test_shares_are_as_the_spec_has_them() -> None:
    """T(k) = floor(2^(32 - k/256)), by integers alone; and a share falls with every 2^-24 octave, so that no unit's part is empty."""
    for k, value in enumerate(pace.SHARES.tolist()):
        assert value**256 <= 2 ** (32 * 256 - k) < (value + 1) ** 256
    for start in (0, 1 << 16, 3 << 24, (1 << 26) - 70_000):
        found = [int(pace.share(np.uint64(total))) for total in range(start, start + 70_000)]
        assert found[:1000] == [READER.share(total) for total in range(start, start + 1000)]
        assert all(a > b for a, b in pairwise(found))
    assert pace.share(np.uint64((1 << 26) + 2 * int(pace.WEIGHTS[-1]))) > 0


@pytest.mark.parametrize("size", [1000, unit_classes.SAMPLED_FROM - 1, unit_classes.SAMPLED_FROM, unit_classes.SAMPLED_FROM + 77])
@pytest.mark.parametrize("kind", ["uniform", "normal", "one class"])
def test_units_of_classes_are_counted_well_enough(size: int, kind: str) -> None:
    """Exact of small blocks and of rare classes below the common ones, else near; a uniform block has none that is common."""
    rng = np.random.default_rng(5)
    draw = {
        "uniform": lambda: rng.integers(0, 256, size),
        "normal": lambda: 122 + np.log2(np.abs(rng.normal(size=size))),
        "one class": None,
    }[kind]
    classes = np.full(size, 255, np.uint8) if draw is None else draw().astype(np.uint8)
    exact, found = np.bincount(classes, minlength=256), unit_classes.units_of(classes)
    common = np.flatnonzero(found[:255] >= unit_classes.RARE)
    rare = slice(0, common[0] if len(common) else 255)
    counted = slice(None) if size < unit_classes.SAMPLED_FROM else rare
    assert found[counted].tolist() == exact[counted].tolist()
    assert (np.abs(found - exact) < 10 * np.sqrt(exact) + 10).all()


@pytest.mark.parametrize("share", [1e-6, 0.3], ids=["adaptive", "static"])
@pytest.mark.parametrize("hidden", ["columns", "what is not sampled"])
def test_classes_that_a_sample_misses(hidden: str, share: float) -> None:
    """Units that no sample takes stay as they are but for one: the rates are far off, and the block is coded whole all the same."""
    dtype, n, rng = DTYPES["BF16"], unit_classes.SAMPLED_FROM + 12_345, np.random.default_rng(7)
    i = np.arange(n)
    rare = i % 4 == 1 if hidden == "columns" else np.ones(n, np.bool_)
    if hidden != "columns":
        for each in (2, 4):  # as count_sample takes them
            rare[(i[:, None] % (16 * each + 1) == np.arange(0, 16 * each, each)).any(1)] = False
    base = np.where(rare, 0x4400, 0x3C00).astype("<u2")
    target = base ^ (rng.random(n) < share) * (~rare)
    target[np.flatnonzero(rare)[5]] ^= 1
    coded, _ = encode("context", base.view(np.uint8), target.astype("<u2").view(np.uint8), dtype, BlockLayout(1024, 0))
    assert coded[0] == (context.ADAPTIVE if share < 0.1 else context.STATIC) and len(coded) < n // 8
    out, _ = decode("context", coded, base.view(np.uint8).copy(), dtype)
    assert out.tobytes() == target.astype("<u2").tobytes()


@pytest.mark.parametrize("few", [0, context.BOTH_BELOW])
@settings(max_examples=examples_run(60), deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 3000), name=st.sampled_from(sorted(DTYPES)))
def test_any_block_comes_back(few: int, seed: int, n: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    place = BlockLayout(int(rng.integers(1, n + 1)), 0)
    place = BlockLayout(place.width, int(rng.integers(place.width)))
    how = str(rng.choice(["weights", "noise", "top bit"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "BOTH_BELOW", few)  # 0: dense blocks take the static form, however small
        check(*block(rng, DTYPES[name], n, float(rng.random()) ** 3, how), DTYPES[name], place)


@pytest.mark.parametrize("seed", range(20))
def test_both_readers_say_the_same_of_damaged_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both readers refuse a damaged block, or both give the same units; nothing else happens."""
    monkeypatch.setattr(context, "BOTH_BELOW", 0)
    rng = np.random.default_rng(seed)
    dtype = DTYPES[["BF16", "F32", "U8", "I16", "F64"][seed % 5]]
    base, target = block(rng, dtype, 2000, SHARES[seed % 4], "weights")
    coded, _ = encode("context", base, target, dtype, BlockLayout(50, 3))
    for _ in range(40):
        damaged = mutate(rng, coded)
        try:
            out, changed = decode("context", damaged, base.copy(), dtype)
            ours = (out.tobytes(), changed) if changed else None
        except ValueError as error:
            assert "\n" not in str(error)
            ours = None
        try:
            theirs = minimal(damaged, base, dtype) if damaged else None
        except READER.PatchError as error:
            assert error.kind == "format"
            theirs = None
        assert ours == theirs


def words_of(coded: bytes) -> tuple[bytes, bytes]:
    size, at = coded[1] & 127, 2
    if coded[1] > 127:
        size, at = size | coded[2] << 7, 3
    return coded[at : at + size], coded[at + size :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: b"\x00" + c[1:], "form 0, expected 1 or 2"),
        (lambda c: b"\x03" + c[1:], "form 3, expected 1 or 2"),
        (lambda c: c + b"\x00", "end with a zero"),
        (lambda c: c + b"\x00" * 40 + b"\x01", "left over"),
        (lambda c: c[:1] + write_varint(len(words_of(c)[0]) + 1) + words_of(c)[0] + b"\x00" + words_of(c)[1], "raw bits"),
        (lambda c: c[:2], "are needed"),
    ],
)
def test_refusals_of_the_adaptive_form(change, words: str) -> None:
    dtype = DTYPES["BF16"]
    base, target = block(np.random.default_rng(1), dtype, 2000, 0.01, "weights")
    coded, _ = encode("context", base, target, dtype)
    assert coded[0] == context.ADAPTIVE
    with pytest.raises(ValueError, match=words):
        decode("context", change(coded), base.copy(), dtype)


def test_the_static_form_is_not_for_eight_bytes() -> None:
    with pytest.raises(ValueError, match="form 2, expected 1 or 2, and 1 for units of 8 bytes"):
        decode("context", b"\x02\x00" + bytes(16), np.zeros(80, np.uint8), DTYPES["F64"])

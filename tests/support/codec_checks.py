"""What holds for every codec: the files of tests of each codec run these on it."""

from __future__ import annotations

import numpy as np

from ckptdiff import kernels
from ckptdiff.codecs import CODECS, apply_change
from ckptdiff.format.digests import xxh128
from ckptdiff.format.dtypes import DTYPES, Dtype, Replacement
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from tests.support.checkpoints import carrier, changed_units

Case = tuple[str, np.ndarray, np.ndarray]
"""A dtype, and the bytes of a base block and of a target block."""


def encode(codec: str, base: np.ndarray, target: np.ndarray, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS) -> tuple[bytes, int]:
    """The coded form of a block, and how many units changed."""
    positions, zigzags = kernels.changes.changes_of(base, target, dtype)
    change = Replacement(target) if codec == "raw" else (positions, zigzags)
    return CODECS[codec].pack(base, change, dtype, layout), len(positions)


def decode(codec: str, coded: bytes | bytearray, base: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, int]:
    """The target of a block, and how many units changed; the base may be changed in place."""
    before = xxh128(base)
    target, changed, leaf = apply_change(CODECS[codec].unpack(memoryview(coded), base, len(base), dtype), base, dtype)
    assert (leaf or before) == xxh128(target)
    return target, changed


def check_that_decoding_undoes_encoding(codec: str, case: Case) -> None:
    """The target comes back, both directions count the changed units, and the same blocks have the same coded form."""
    name, base, target = case
    coded, changed = encode(codec, base.copy(), target.copy(), DTYPES[name])
    assert changed == changed_units((name, (), base.tobytes()), (name, (), target.tobytes()))
    decoded, counted = decode(codec, coded, base.copy(), DTYPES[name])
    assert decoded.tobytes() == target.tobytes() and counted == changed
    assert encode(codec, base, target, DTYPES[name])[0] == coded


def check_a_whole_block(codec: str, name: str) -> None:
    """A block of 2 MiB: few changes with wide gaps, and a change of every unit."""
    rng, unit = np.random.default_rng(3), f"<u{carrier(name)}"
    base = np.frombuffer(rng.bytes(1 << 21), unit)
    sparse = base.copy()
    sparse[[0, 1, 300, 70_000, len(base) - 1]] ^= 0x55
    for target in (sparse, np.invert(base)):
        coded, changed = encode(codec, base.view(np.uint8), target.view(np.uint8), DTYPES[name])
        decoded, _ = decode(codec, coded, base.view(np.uint8).copy(), DTYPES[name])
        assert decoded.tobytes() == target.tobytes() and changed == np.count_nonzero(base != target)


def accepts(codec: str, coded: bytes, base: np.ndarray, name: str) -> bool:
    """Whether a coded form is accepted; if not, the error must be a ValueError, and the base as it was."""
    given = base.copy()
    try:
        decoded, changed = decode(codec, coded, given, DTYPES[name])
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        assert given.tobytes() == base.tobytes(), "a refused block changed the base"
        return False
    assert decoded.dtype == np.uint8 and decoded.shape == base.shape
    assert changed <= len(base) // carrier(name)
    return True


def check_any_bytes(codec: str, coded: bytes, name: str, count: int) -> None:
    """Decoding arbitrary bytes gives a block of the right size or a ValueError."""
    accepts(codec, coded, np.arange(count * carrier(name), dtype=np.uint8), name)


def check_damage(codec: str, case: Case, edits: list[tuple[int, int]], cut: float) -> None:
    """A coded form with bytes changed and its end cut off gives a block or a ValueError; a byte left over is always refused.

    Args:
        edits: Positions (taken modulo the length) and the bytes that are put there.
        cut: Share of the coded form that is kept.
    """
    name, base, target = case
    coded = bytearray(encode(codec, base, target, DTYPES[name])[0])
    assert not accepts(codec, bytes(coded) + b"\x00", base, name)
    for position, byte in edits if coded else []:
        coded[position % len(coded)] = byte
    accepts(codec, bytes(coded[: round(cut * len(coded))]), base, name)

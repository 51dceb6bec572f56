"""The exact casts of spec section 8, by numpy and by arithmetic on numbers, and pairs of tensors that they relate."""

from __future__ import annotations

import numpy as np

from tests.support.checkpoints import BITS, TensorData, random_tensor, tensor


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


def f32_as_f16(bits: np.ndarray) -> np.ndarray:
    """F32 to F16 by numpy; NaN by its bits: quiet, with the high bits of the mantissa."""
    with np.errstate(invalid="ignore", over="ignore"):
        half = bits.astype("<u4").view("<f4").astype("<f2").view("<u2")
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    half[nan] = ((bits[nan] >> 16) & 0x8000) | 0x7E00 | ((bits[nan] >> 13) & 0x3FF)
    return half


ALL_16 = np.arange(1 << 16, dtype="<u2")

TIES = [
    *(0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x3F817FFF, 0x3F818001, 0xBF808000, 0xBF818000, 0x7F7FFFFF),
    *(0x7F7F7FFF, 0x7F7F8000, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000),
    *(0x33000000, 0x33000001, 0x32FFFFFF, 0x33800000, 0x387FC000, 0x387FE000, 0x387FFFFF, 0x38800000, 0x38801000, 0x38803000, 0x38800FFF),
    *(0x477FE000, 0x477FEFFF, 0x477FF000, 0x477FFFFF, 0xC77FF000, 0x33400000, 0x33C00000, 0xB3000001, 0x7F802000, 0x7F801FFF, 0xFFFFE000),
    *(0x00008000, 0x00018000, 0x00000001, 0x80008000, 0x80000001, 0x007FFFFF, 0x00800000, 0, 0x80000000, 0x7F80FFFF, 0xFF807FFF),
]


def cast_bits(cast: str, bits: np.ndarray) -> np.ndarray:
    """Bits of one dtype as those of another; ``cast``: the names of both."""
    source, target = cast.split("-")
    wide = bits.astype("<u4") if source == "F32" else f16_as_f32(bits) if source == "F16" else bits.astype("<u4") << 16
    return wide if target == "F32" else f32_as_f16(wide) if target == "F16" else f32_as_bf16(wide)


def cast_pairs() -> dict[str, tuple[TensorData, TensorData]]:
    rng = np.random.default_rng(11)
    wide = np.concatenate([np.array(TIES, "<u4"), rng.integers(0, 1 << 32, 1 << 14, dtype=np.uint32)]).astype("<u4")
    halves = np.concatenate([(ALL_16.astype("<u4") << 16) | low for low in (0x7FFF, 0x8000, 0x8001)]).astype("<u4")
    wide = np.concatenate([wide, halves])
    pairs = {}
    for cast in ("BF16-F32", "F16-F32", "F32-BF16", "F32-F16", "F16-BF16", "BF16-F16"):
        source, target = cast.split("-")
        bits = wide if source == "F32" else ALL_16
        shape = wide.shape if source == "F32" else (256, 256)
        pairs[cast] = tensor(source, shape, bits), tensor(target, shape, cast_bits(cast, bits))
    return pairs


CASTS = cast_pairs()


def wide_pair(rng: np.random.Generator, cast: str, units: int) -> tuple[TensorData, TensorData]:
    """A base of random bits and its exact cast."""
    source, target = cast.split("-")
    base = random_tensor(rng, source, [units, 1])
    bits = np.frombuffer(base[2], f"<u{BITS[source] // 8}")
    return base, tensor(target, [units, 1], cast_bits(cast, bits))

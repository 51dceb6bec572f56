"""Constants of XXH3-128 with seed 0, for the kernels and the torch devices that hash where the library cannot.

Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Input of more than :data:`MAX_SHORT` bytes goes through eight
accumulators of 64 bits, by stripes of 64 bytes; 16 stripes are a step, after which the accumulators are scrambled. Shorter input takes
another way, which is left to the library.
"""

from __future__ import annotations

import struct

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
"""192 bytes that are mixed into the input: ``kSecret`` of the source."""
PRIMES_32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
"""``PRIME32_1`` to ``PRIME32_3`` of the source."""
PRIMES_64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
"""``PRIME64_1`` to ``PRIME64_5`` of the source."""
AVALANCHE_MULTIPLIER = 0x165667919E3779F9
"""``PRIME_MX1`` of the source, for the last mixing of each half of the digest."""
INITIAL_SUMS = (PRIMES_32[2], *PRIMES_64[:4], PRIMES_32[1], PRIMES_64[4], PRIMES_32[0])
"""The eight accumulators before any input."""
STEP_BYTES = 1024
"""Bytes of a step."""
MAX_SHORT = 240
"""Input of up to so many bytes is hashed another way."""

STRIPE_OFFSET = 8
"""The words of the secret that stripe k of a step takes begin at byte 8 k."""
SCRAMBLE_OFFSET = 128
"""Where the words begin that scramble the accumulators after a step."""
LAST_STRIPE_OFFSET = 121
"""Where the words begin that the last 64 bytes of the input take."""
LOW_HALF_OFFSET, HIGH_HALF_OFFSET = 11, 117
"""Where the words begin that turn the accumulators into either half of the digest."""


def secret_words(offset: int) -> tuple[int, ...]:
    """Eight words of the secret, from a byte on."""
    return struct.unpack_from("<8Q", SECRET, offset)

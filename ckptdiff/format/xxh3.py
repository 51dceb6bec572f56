"""Constants of XXH3-128, for the places where the library's calls do not serve: a torch device, and kernels.

https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Input of more than
:data:`SHORT` bytes goes through eight accumulators, from ``START`` on,
in steps of :data:`STEP` bytes, each of 16 stripes.
"""

from __future__ import annotations

import struct

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
START = (P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0])
STEP = 1024
KEY_STRIPE, KEY_STEP, KEY_LAST, KEY_LOW, KEY_HIGH = 8, 128, 121, 11, 117
"""Where in the secret stands what a stripe, a step, the very last stripe and the two halves of the digest take: the k-th stripe at 8 k."""
SHORT = 240
AVALANCHE = 0x165667919E3779F9
MASK = (1 << 64) - 1


def words(offset: int) -> tuple[int, ...]:
    """Eight words of the secret."""
    return struct.unpack_from("<8Q", SECRET, offset)

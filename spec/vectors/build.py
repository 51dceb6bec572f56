# SPDX-License-Identifier: Apache-2.0
"""Builds the conformance vectors of ckptdiff version 1: python build.py [DIR].

Independent of every reader and writer: the standard library and xxhash only. Each call of ``vector`` below is one
file. All zstd frames are made by hand out of raw, RLE or repeating blocks (three real ones are kept as hex), so the
bytes do not depend on a zstd library. A scenario's faults are functions given for one layer (``table=``, ``meta=``, ``head=``...);
what lies further out (digests, offsets, totals, sizes) is computed after them, so that one rule only is broken.
"""

import hashlib
import json
import math
import re
import struct
import sys
from collections import Counter, namedtuple
from fractions import Fraction
from functools import cache
from pathlib import Path

import xxhash

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
BLOCK = 1 << 21
DROP = object()
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
        "F8_E5M2": 8, "F8_E4M3": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
        "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
CARRIER = {name: 4 if name == "C64" else max(1, bits // 8) for name, bits in BITS.items()}
INTEGER = {"BOOL", "U8", "I8", "F8_E8M0", "U16", "I16", "U32", "I32", "U64", "I64", "F4", "F6_E2M3", "F6_E3M2"}


# ---- Section 2 ------------------------------------------------------------------------------------------------------

def canonical(value):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def xxh64(data):
    return xxhash.xxh3_64_digest(data)


def xxh128(data):
    return xxhash.xxh3_128_digest(data)


def hex128(data):
    return xxh128(data).hex()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def frame(content, magic=True, size=None, state_size=True, checksum=b"", dictionary=b"", window=None):
    """A zstd frame of raw blocks. ``size`` states another content size than the true one."""
    size = len(content) if size is None else size
    single = state_size and window is None
    dictionary_flag = {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    out = bytes([(0xC0 if state_size else 0) | single << 5 | bool(checksum) << 2 | dictionary_flag])
    if not single:
        out += bytes([window if window is not None else 0x38])  # 0x38: 2^17 bytes
    out += dictionary + (size.to_bytes(8, "little") if state_size else b"")
    return (b"\x28\xb5\x2f\xfd" if magic else b"") + out + blocks_raw(content) + checksum


def blocks_raw(content):
    parts = [content[i:i + 65536] for i in range(0, len(content), 65536)] or [b""]
    return b"".join((len(p) << 3 | (i == len(parts) - 1)).to_bytes(3, "little") + p
                    for i, p in enumerate(parts))


def frame_rle(byte, length, magic=True):
    """A zstd frame whose content is one byte repeated."""
    out = (b"\x28\xb5\x2f\xfd" if magic else b"") + b"\xe0" + length.to_bytes(8, "little")
    while length:
        run = min(length, 65536)
        length -= run
        out += (run << 3 | 2 | (length == 0)).to_bytes(3, "little") + byte
    return out


def frame_repeating(content, period):
    """A zstd frame of content that repeats ``period`` many times somewhere: one match of at most 2^17 bytes a block."""
    many = re.search(b"(?:%s){9,}" % re.escape(period), content)
    begin, end = many.start() + len(period), many.end()
    out = b"\x28\xb5\x2f\xfd\xe0" + len(content).to_bytes(8, "little") + (begin << 3).to_bytes(3, "little") + content[:begin]
    parts = -(-(end - begin) // 131072)
    assert begin < 65536 and len(content) - end < 65536
    offset = len(period) + 3  # as sequences count it
    code = offset.bit_length() - 1
    for i in range(parts):
        length = (end - begin) * (i + 1) // parts - (end - begin) * i // parts
        assert 65539 <= length <= 131072  # what a match length of code 52 may be
        bits = (1 << code | offset - (1 << code)) << 16 | length - 65539  # below the bit that ends them, the offset's first
        sequence = b"\x00\x01\x54" + bytes([0, code, 52]) + bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        out += (len(sequence) << 3 | 4).to_bytes(3, "little") + sequence
    return out + (len(content) - end << 3 | 1).to_bytes(3, "little") + content[end:]


# ---- Sections 3 and 4: tensors, weight files, identity --------------------------------------------------------------

Tensor = namedtuple("Tensor", "dtype shape data")


def T(dtype, shape, data):
    data = bytes.fromhex(data) if isinstance(data, str) else data
    assert len(data) == math.prod(shape) * BITS[dtype] // 8, (dtype, shape, data)
    return Tensor(dtype, shape, data)


def header(tensors, metadata={"format": "pt"}, pad=8):
    """A safetensors header, which lays the tensors end to end."""
    members, at = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, t in tensors.items():
        members[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
    raw = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % pad)


def weights(tensors, head=None):
    head = header(tensors) if head is None else head
    return struct.pack("<Q", len(head)) + head + b"".join(t.data for t in tensors.values())


def tensor_digest(data):
    return xxh128(b"".join(xxh128(data[i:i + BLOCK]) for i in range(0, len(data), BLOCK)))


def identity(scopes):
    state, scopes = xxhash.xxh3_128(), {scope: tensors for scope, tensors in scopes.items() if tensors}
    for scope in sorted(scopes, key=str.encode):
        for name in sorted(scopes[scope], key=str.encode):
            t = scopes[scope][name]
            state.update(canonical(["" if len(scopes) == 1 else scope, name, t.dtype, t.shape,
                                    tensor_digest(t.data).hex()]) + b"\n")
    return state.hexdigest()


# ---- Section 8: adapting the base -----------------------------------------------------------------------------------

FLOATS = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23)}  # bits of exponent and mantissa


def number_of(a, dtype):
    """The number of a pattern without its sign; that of infinity is the first that is too large."""
    exponent_bits, bits = FLOATS[dtype]
    e, mantissa, bias = a >> bits, a & (1 << bits) - 1, (1 << exponent_bits - 1) - 1
    return (mantissa + (e > 0) * (1 << bits)) * Fraction(2) ** (max(e, 1) - bias - bits)


def nearest(value, dtype):
    """The pattern whose number is nearest to a value, the even one of two: patterns are in the order of their numbers."""
    exponent_bits, bits = FLOATS[dtype]
    low, high = 0, (1 << exponent_bits) - 1 << bits  # zero and infinity
    if value >= number_of(high, dtype):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if number_of(middle, dtype) <= value else (low, middle)
    twice, between = 2 * value, number_of(low, dtype) + number_of(high, dtype)
    return high if twice > between or twice == between and low & 1 else low


@cache
def cast_unit(x, base, target):
    (e0, m0), (e1, m1) = FLOATS[base], FLOATS[target]
    sign, a = x >> e0 + m0 << e1 + m1, x & (1 << e0 + m0) - 1
    infinity = ((1 << e0) - 1) << m0
    if a <= infinity:
        return sign | ((1 << e1) - 1 << m1 if a == infinity else nearest(number_of(a, base), target))
    mantissa = a - infinity  # of NaN: its upper bits stay, and a narrower one is quiet
    mantissa = mantissa << m1 - m0 if m1 > m0 else mantissa >> m0 - m1 | 1 << m1 - 1
    return sign | (1 << e1) - 1 << m1 | mantissa


def cast(data, base, target):
    if base == target or not {base, target} <= set(FLOATS):
        assert CARRIER[base] == CARRIER[target]
        return data
    c, d = CARRIER[base], CARRIER[target]
    units = [int.from_bytes(data[i:i + c], "little") for i in range(0, len(data), c)]
    if {base, target} == {"F16", "BF16"}:
        units, base = [cast_unit(x, base, "F32") for x in units], "F32"
    return b"".join(cast_unit(x, base, target).to_bytes(d, "little") for x in units)


def adapt(old, name, t, dtype=None, pieces=None):
    """The adapted base of the target tensor ``t``."""
    dtype = dtype or t.dtype
    c, units = CARRIER[dtype], len(t.data) // CARRIER[t.dtype]
    runs = [bytes(c * n) if key is None else old[key].data[c * first:c * (first + n)] for key, first, n in pieces or [[name, 0, units]]]
    assert all(key is None or old[key].dtype == dtype for key, _, _ in pieces or [[name, 0, 0]])
    assert pieces is None or sum(map(len, runs)) == c * sum(n for _, _, n in pieces)
    made = cast(b"".join(runs), dtype, t.dtype)
    return made + bytes(len(t.data) - len(made))


# ---- Section 7: codecs ----------------------------------------------------------------------------------------------

def plane(data):
    return b"\0" + data if data else b""


def plane_zstd(framed):
    return varint(len(framed)) + framed


def planes(values, width):
    return [bytes(v >> 8 * k & 255 for v in values) for k in range(width)]


def escaped(values, w, width):
    escape = 256 ** w - 1
    low = planes(values if w == width else [min(v, escape) for v in values], w)
    high = [] if w == width else planes([v - escape for v in values if v >= escape], width)
    return b"".join(map(plane, low + high))


def sparse(gaps, values, width, g=1, w=1, n=None, widths=None):
    """One block; ``values`` are z - 1."""
    return (varint(len(gaps) if n is None else n) + bytes([w << 4 | g if widths is None else widths])
            + escaped(gaps, g, 3) + escaped(values, w, width))


def distances(old, new, dtype):
    """The gaps and the values z - 1 between two runs of units."""
    c = CARRIER[dtype]
    m = 8 * c
    half = 1 << m - 1

    def order(x):
        return x if dtype in INTEGER else x + half if x < half else 2 ** m - 1 - x
    gaps, values, last = [], [], -1
    for i in range(len(new) // c):
        b, t = (int.from_bytes(side[i * c:i * c + c], "little") for side in (old, new))
        if b != t:
            d = (order(t) - order(b) + half) % 2 ** m - half
            values.append((2 * d if d >= 0 else -2 * d - 1) - 1)
            gaps.append(i - last - 1)
            last = i
    return gaps, values


def sparse_of(old, new, dtype, g=1, w=1):
    gaps, values = distances(old, new, dtype)
    return sparse(gaps, values, CARRIER[dtype], g, w)


class Bits:
    """Raw bits (7.5.1), lowest first."""

    def __init__(self):
        self.value = self.size = 0

    def put(self, value, k):
        assert 0 <= value < 1 << k
        self.value |= value << self.size
        self.size += k
        return self

    def bytes(self):
        return self.value.to_bytes((self.size + 7) // 8, "little")


SHARES = [math.floor(2 ** (32 - k / 256)) for k in range(257)]


def share(a):
    k, part = a >> 16 & 255, a & 0xFFFF
    return SHARES[k] - ((SHARES[k] - SHARES[k + 1]) * part >> 16) >> (a >> 24)


class RangeCoder:
    """7.5.2 backwards. ``low`` is one large integer, so that carries need no care."""

    def __init__(self):
        self.low, self.range, self.words = 0, 2 ** 64 - 1, 4

    def narrow(self, start, range_):
        self.low, self.range = self.low + start, range_
        while self.range < 1 << 48:
            self.low, self.range, self.words = self.low << 16, self.range << 16, self.words + 1

    def bit(self, context, bit):
        p, n = context
        bound = (self.range >> 16) * max(p >> 6, 1)
        context[:] = p + (((bit << 22) - p) * (655360 // (10 * n + 16)) >> 16), min(n + 1, 255)
        self.narrow(0 if bit else bound, bound if bit else self.range - bound)

    def distance(self, contexts, value, m, bits):
        k = value.bit_length() - 1
        for i in range(min(k + 1, m - 1)):
            self.bit(contexts.setdefault(i, [1 << 21, 0]), int(i < k))
        node = 1
        for j in range(min(k, 3)):
            bit = value >> k - 1 - j & 1
            self.bit(contexts.setdefault((k, node), [1 << 21, 0]), bit)
            node = 2 * node + bit
        rest = k - min(k, 3)
        bits.put(value & (1 << rest) - 1, rest)

    def bytes(self):
        for cut in range(16 * self.words, -1, -8):  # as few bytes as tell the range
            value = -(-self.low >> cut) << cut
            if value < self.low + self.range:
                return value.to_bytes(2 * self.words, "big").rstrip(b"\0")


def class_of(unit, dtype):
    shift = {"F16": 10, "BF16": 7, "F32": 23, "C64": 23, "F64": 52}.get(dtype, 8 * CARRIER[dtype] - 8)
    return unit >> shift & (31 if dtype == "F16" else 255)


def moves(old, new, dtype):
    """Classes of all units, and (position, distance, side) of the changed ones."""
    c = CARRIER[dtype]
    units = [int.from_bytes(old[i:i + c], "little") for i in range(0, len(old), c)]
    found, at = [], -1
    for gap, value in zip(*distances(old, new, dtype)):
        at += gap + 1
        z = value + 1
        negative = dtype not in INTEGER and units[at] >> 8 * c - 1
        found.append((at, (z + 1) // 2, z & 1 ^ negative))
    return [class_of(unit, dtype) for unit in units], found


def context_block(form, bits, rest):
    raw = bits.bytes() if isinstance(bits, Bits) else bits
    return bytes([form]) + varint(len(raw)) + raw + rest


def rate_of(units, changed):
    """One whose chance of a change is near the share of units that changed: which one is a writer's choice."""
    if not changed:
        return 0
    return min(range(1, 51), key=lambda r: abs(1 - share(2 + (r - 1) % 2 << 2 + (r - 1 >> 1)) / 2 ** 32 - changed / units))


def adaptive(old, new, dtype, span=None, rates=None, move=None, raw=None, coded=None, leave=None,
             over=False, full=False):
    """7.5.2. ``span``: lo and hi; ``rates``: of each class; ``move`` changes a (distance, side); ``raw`` and ``coded`` the bytes.
    ``leave``: the code ends, after the first "change" or "run", where range is cut off when the next run begins; "last run": only where
    that run ends with the block, else there is no result. ``over``: one byte more than a decoder takes; ``full``: just as many."""
    classes, changed = moves(old, new, dtype)
    m, coder, bits, contexts = 8 * CARRIER[dtype], RangeCoder(), Bits(), {}
    positions = {at: (distance, side) for at, distance, side in changed}
    moved = [classes[at] for at in positions]
    lo, hi = span or (min(moved), max(moved))
    rates = rates or [rate_of(classes.count(c), moved.count(c)) for c in range(lo, hi + 1)]
    bits.put(lo, 8).put(hi, 8).put(rates[0], 6)
    for before, rate in zip(rates, rates[1:]):
        step = rate - max(before - 1, 0)
        number(bits, 2 * step if step >= 0 else -2 * step - 1)
    weights = {lo + i: 2 + (r - 1) % 2 << 2 + (r - 1 >> 1) if r else 0 for i, r in enumerate(rates)}
    a, stayed, seen, expected, pace = 0, 0, 0, 0, 1 << 16

    def ended():
        assert coder.range % 2 ** 32
        return context_block(1, bits, (coder.low + coder.range - 1).to_bytes(2 * coder.words, "big").rstrip(b"\0"))

    for i, c in enumerate(classes):
        weight, high = weights.get(c, 0), coder.range >> 32
        if i not in positions:
            a, stayed = a + weight, stayed + weight
            if a * pace >> 16 >= 1 << 26:
                coder.narrow(0, high * share(a * pace >> 16))
                a = 0
                if leave == "run" or leave == "last run" and i == len(classes) - 1:
                    return ended()
            continue
        bound = high * share((a + weight) * pace >> 16)
        coder.narrow(bound, high * share(a * pace >> 16) - bound)
        seen += (weight * share(weight) // (2 ** 32 - share(weight)) >> 8) - (seen >> 4)
        expected += min(stayed >> 8, 1 << 19) - (expected >> 4)
        pace = (seen + (24 << 16) << 16) // (expected + (24 << 16))
        if c not in contexts:
            near = min(contexts, key=lambda other: (abs(other - c), other), default=None)
            contexts[c] = [{k: [p, min(n, 1)] for k, (p, n) in kind.items()} for kind in contexts.get(near, [{}, {}])]
        distance, side = move(*positions[i]) if move else positions[i]
        coder.distance(contexts[c][0], distance, m, bits)
        if distance < 8:
            bits.put(side, 1)
        else:
            coder.bit(contexts[c][1].setdefault(distance.bit_length() - 1, [1 << 21, 0]), side)
        a = stayed = 0
        if leave == "change":
            return ended()
    if leave == "last run":
        return None
    taken = 2 * coder.words
    coder.narrow(0, (coder.range >> 32) * share(a * pace >> 16))
    rest = coder.bytes().ljust(taken, b"\0") + b"\1" if over else coder.bytes()
    if full:
        rest = (coder.low + coder.range - 1 >> 16 * coder.words - 8 * taken).to_bytes(taken, "big")
        assert rest[-1]
    return context_block(1, edit(bits.bytes(), raw), edit(rest, coded))


def number(bits, e):
    k = (e + 1).bit_length() - 1
    bits.put((1 << k) - 1, k + 1).put(e + 1 - (1 << k), k)


def static(old, new, dtype, level_bits=(0, 0), width=1, phase=0, rows=(), columns=(), groups=None, tables=None, span=None,
           states=None, words=None, raw=None, map_=None, turned=False, end=1 << 16, early=False):
    """7.5.3. ``groups``: of each context; ``tables``: for each group (common, {token: (b, low bits)}, perhaps another last), None for equal
    ones, "fit" for those of the tokens. ``end``: what state 0 ends at; ``early``: it begins too small, with a word more."""
    classes, changed = moves(old, new, dtype)
    bits, tokens, tail = Bits(), [0] * len(classes), []
    for at, distance, side in changed:
        side ^= turned
        if distance < 8:
            tokens[at] = distance
            tail.append((side, 1))
        else:
            k = distance.bit_length() - 1
            tokens[at] = 8 + 8 * (k - 3) + 4 * side + (distance >> k - 2 & 3)
            tail.append((distance & (1 << k - 2) - 1, k - 2))
    lo, hi = span or (min(classes), max(classes))
    r, c = level_bits
    bits.put(lo, 8).put(hi, 8).put(r, 3).put(c, 3)
    if r or c:
        bits.put(width, 22).put(phase, 22)
        for level in rows:
            bits.put(level, r)
        for level in columns:
            bits.put(level, c)
    levels = 2 ** r + 2 ** c - 1
    groups = [0] * ((hi - lo + 1) * levels) if groups is None else groups
    bits.put(max(groups), 6)
    before = 0
    for group in groups if map_ is None else []:
        number(bits, 2 * (group - before) if group >= before else 2 * (before - group) - 1)
        before = group

    def group_of(i):
        level = rows[(phase + i) // width] + columns[(phase + i) % width] if r or c else 0
        return groups[(min(max(classes[i], lo), hi) - lo) * levels + level]
    where = [group_of(i) for i in range(len(tokens))]
    if tables == "fit":
        counts = Counter(zip(where, tokens))
        tables = [fitted({t: n for (g, t), n in counts.items() if g == group}) for group in range(max(groups) + 1)]
    if map_:
        map_(bits)
    last = max(tokens)
    plain = (0, {t: (4, 0) for t in range(1, last + 1)})  # 8 of 2^14 each, token 0 the rest
    slots = []
    for common, codes, *other_last in [plain] * (max(groups) + 1) if tables is None else tables:
        top = other_last[0] if other_last else max([common, *codes])
        bits.put(top, 8).put(common, 8)
        f = {}
        for t in range(top + 1):
            if t != common:
                b, low = codes.get(t, (0, 0))
                bits.put(b, 4)
                j = min(b - 1, 3)
                if j > 0:
                    bits.put(low, j)
                f[t] = (2 ** j + low) << b - 1 - j if b else 0
        f[common] = 2 ** 14 - sum(f.values())
        slots.append({t: (f[t], sum(f[x] for x in range(t))) for t in f})
    for value, k in tail:
        bits.put(value, k)
    x, out = [end] + [1 << 16] * 3, []
    for i in reversed(range(len(tokens))):
        f, start = slots[where[i]][tokens[i]]
        f = f if f > 0 else 1  # where a table is broken on purpose
        if x[i % 4] >> 18 >= f or early and i == 0:
            out.append(x[i % 4] & 0xFFFF)
            x[i % 4] >>= 16
        x[i % 4] = (x[i % 4] // f << 14) + x[i % 4] % f + start
    first = b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in x)
    stream = b"".join(word.to_bytes(2, "little") for word in reversed(out))
    return context_block(2, edit(bits.bytes(), raw), edit(first, states) + edit(stream, words))


def fitted(counts):
    """A table for tokens that occur so often: four significant bits of each share, the commonest the rest."""
    common, total, codes = max(counts, key=counts.get, default=0), sum(counts.values()), {}
    for t, n in counts.items():
        if t != common:
            f = max(n * 16000 // total, 1)
            b = f.bit_length()
            j = min(b - 1, 3)
            codes[t] = (b, (f >> b - 1 - j) - 2 ** j)
    return common, codes


def raw_of(data, dtype):
    c = CARRIER[dtype]
    return b"".join(plane(data[k::c]) for k in range(c))


# ---- Sections 5 and 6: patch files ----------------------------------------------------------------------------------
# An entry is a function (base tensors, target tensors) -> (members, digests, payload or None).

def same(name, /, **base):
    """``base``: dtype and pieces."""
    return lambda _, new: ({**describe(name, new[name]), "kind": "same", **({"base": base} if base else {})}, tensor_digest(new[name].data), None)


def delta(name, /, codec="sparse", blocks=None, changed=None, g=1, w=1, base_digest=None, **base):
    """``blocks``: the coded blocks, if not the true ones; ``base``: dtype and pieces."""
    def make(old, new):
        t = new[name]
        before = adapt(old, name, t, **base)
        coded = blocks
        if coded is None:
            coded = [sparse_of(before, t.data, t.dtype, g, w) if codec == "sparse" else raw_of(t.data, t.dtype)]
        n = len(distances(before, t.data, t.dtype)[0]) if changed is None else changed
        payload = b"".join(coded)
        return ({**describe(name, t), "kind": "delta", **({"base": base} if base else {}), "codec": codec, "changed": n,
                 "blocks": [len(b) for b in coded]},
                tensor_digest(t.data) + (base_digest or tensor_digest(before)) + xxh64(payload), payload)
    return make


def new(name, blocks=None):
    def make(_, target):
        t = target[name]
        coded = blocks if blocks is not None else [raw_of(t.data, t.dtype)] if t.data else []
        payload = b"".join(coded)
        return ({**describe(name, t), "kind": "new", "codec": "raw", "blocks": [len(b) for b in coded]},
                tensor_digest(t.data) + xxh64(payload), payload)
    return make


def copy(name, of):
    return lambda _, target: ({**describe(name, target[name]), "kind": "copy", "of": of}, b"", None)


def uncounted(entry):
    """The same entry, which does not count."""
    def make(old, new):
        members, digests, payload = entry(old, new)
        return {**members, "counts": False}, digests, payload
    return make


def names_of(entry):
    """The names that an entry keeps from being removed."""
    return {entry["name"], *(key for key, _, _ in entry.get("base", {}).get("pieces", ()) if key is not None)}


def describe(name, t):
    return {"name": name, "dtype": t.dtype, "shape": t.shape}


def units(entry):
    try:
        return math.prod(entry["shape"]) * BITS[entry["dtype"]] // 8 // CARRIER[entry["dtype"]]
    except (KeyError, TypeError):
        return 0


def totals_of(table):
    entries = [e for e in table["tensors"] if isinstance(e, dict)]
    return {**{kind: sum(e.get("kind") == kind for e in entries) for kind in ("same", "delta", "new", "copy")},
            "removed": len(table.get("removed", [])), "units": sum(map(units, entries)),
            "changed": sum(int(e.get("changed", 0)) for e in entries if e.get("kind") == "delta")}


def edit(value, fault):
    """Let ``fault`` change ``value``: a function that changes it in place or returns another; or a constant."""
    if fault is None:
        return value
    if not callable(fault):
        return fault
    result = fault(value)
    return value if result is None else result


Patch = namedtuple("Patch", "bytes meta output")


def patch_file(base, target, entries, *, path="base.safetensors", base_scope="base", scope=None, removed=None,
               identities=None, info={}, target_header=None, extra_digests=b"", base_files=None, report=None,
               table=None, table_json=None, digests=None, table_content=None, table_frame=None, stored_header=None,
               header_frame=None, target_faults=None, meta=None, meta_text=None, payloads=None, layout=None, head=None,
               padding=None, file=None):
    """The bytes of a patch file from ``base`` to ``target``. All arguments from ``table`` on are faults."""
    made = [entry(base, target) for entry in entries]
    removed = sorted(set(base).difference(*(names_of(e) for e, _, _ in made))) if removed is None else removed
    table_ = edit({"removed": removed, "tensors": [e for e, _, _ in made]}, table)
    raw = edit(canonical(table_), table_json)
    content = struct.pack("<I", len(raw)) + raw + edit(b"".join(d for _, d, _ in made), digests)
    table_bytes = edit(frame(edit(content, table_content)), table_frame)
    target_head = header(target) if target_header is None else target_header
    header_bytes = edit(frame(edit(target_head, stored_header)), header_frame)
    output = weights(target, target_head)
    old_identity, new_identity = identities or (identity({"": base}), identity({"": target}))
    data = [("ckptdiff/table", table_bytes), ("ckptdiff/header/" + path.split("/")[-1], header_bytes)]
    data += [("ckptdiff/report", report)] if report is not None else []
    data += [("ckptdiff/payloads", b"".join(payload for _, _, payload in made if payload is not None))]
    data = edit(data, payloads)
    size = 8 + len(edit(target_head, stored_header)) + sum(len(t.data) for t in target.values())
    metadata = {
        "format": "ckptdiff", "version": 1, "table": hex128(table_bytes), "header": hex128(header_bytes),
        "base": {"identity": old_identity, "scope": base_scope, **({"files": base_files} if base_files is not None else {})},
        "target": {"identity": new_identity, "scope": path[:-12] if scope is None else scope, "path": path,
                   "size": size, "sha256": sha256(output)},
        "totals": totals_of(table_), "info": info, **({"report": hex128(report)} if report is not None else {})}
    metadata = with_digest(metadata, meta)
    text = edit(canonical(metadata), meta_text).decode()
    members, at = {"__metadata__": {"ckptdiff": text}}, 0
    for name, stored in data:
        members[name] = {"dtype": "U8", "shape": [len(stored)], "data_offsets": [at, at + len(stored)]}
        at += len(stored)
    members = edit(members, layout)
    raw = edit(json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode(), head)
    raw += b" " * (-len(raw) % 8) if padding is None else padding
    return Patch(edit(struct.pack("<Q", len(raw)) + raw + b"".join(stored for _, stored in data), file), metadata, output)


def with_digest(metadata, fault):
    metadata = edit(metadata, fault)
    if metadata.get("digest") is DROP:
        del metadata["digest"]
    else:
        metadata.setdefault("digest", hex128(canonical(metadata)))
    return metadata


# ---- Section 9: patch folders ---------------------------------------------------------------------------------------

def indexes_of(files):
    """The scope and the weight_map (name -> path) of each index, in order of path."""
    found = []
    for path in sorted(files, key=str.encode):
        folder, slash, name = path.rpartition("/")
        listing = re.fullmatch(r"([^/]+)\.safetensors\.index(\.[^./]+)?\.json", name)
        if listing:
            shards = json.loads(files[path])["weight_map"]
            found.append((folder + slash + listing[1] + (listing[2] or ""), {key: folder + slash + shards[key] for key in shards}))
    return found


def scope_of_numbered(path):
    """What rule 2 makes of a name."""
    folder, slash, name = path.rpartition("/")
    shard = re.fullmatch(r"(.+)-\d{5,}-of-\d{5,}(\.[^.]+)?\.safetensors", name, re.A)
    if not shard:
        return None
    stem = shard[1][:-12] if shard[1].endswith(".safetensors") and len(shard[1]) > 12 else shard[1]
    return folder + slash + stem + (shard[2] or "")


def scope_ids(files):
    """Section 3.1: the scope of each weight file."""
    paths, indexes = [p for p in files if p.endswith(".safetensors")], indexes_of(files)
    ids = {p: next((scope for scope, shards in indexes if p in shards.values()), None) for p in paths}
    listed = set(ids.values())
    ids = {p: ids[p] or (None if scope_of_numbered(p) in listed else scope_of_numbered(p)) for p in paths}
    ruled = set(ids.values())
    return {p: ids[p] or (p if p[:-12] in ruled else p[:-12]) for p in paths}


def scopes_of(files):
    """Scope -> the tensors that count, by name."""
    ids, indexes, held = scope_ids(files), indexes_of(files), {}
    for path in sorted(ids, key=str.encode):
        scope = held.setdefault(ids[path], {})
        for name in files[path]:
            scope.setdefault(name, []).append(path)
    return {scope: {name: files[next((shards[name] for other, shards in indexes if other == scope and shards.get(name) in paths), paths[0])][name]
                    for name, paths in names.items()} for scope, names in held.items()}


def same_file(path):
    return lambda old, new: ({"path": path, "kind": "same", **stat(new[path])}, None)


def new_file(path, framed=None):
    def make(_, target):
        stored = frame(target[path]) if framed is None else framed
        return ({"path": path, "kind": "new", **stat(target[path]), "stored": len(stored), "digest": hex128(stored)},
                stored)
    return make


def delta_file(path, framed=None):
    def make(old, target):
        item, stored = new_file(path, framed)(old, target)
        return {**item, "kind": "delta", "base_sha256": sha256(old[path])}, stored
    return make


def stat(data):
    return {"size": len(data), "sha256": sha256(data)}


def file_bytes(files):
    return {path: weights(content) if isinstance(content, dict) else content for path, content in files.items()}


def patch_folder(base, target, shards, files=(), *, pairs={}, shard={}, index=None, index_text=None, parts=None,
                 removed=None):
    """The files of a patch folder. ``shards``: path -> entries; ``pairs``: target scope -> base scope. Faults:
    ``shard``: path -> arguments of patch_file; ``index``, ``index_text``, ``parts`` (the stored files)."""
    old_scopes, new_scopes, ids = scopes_of(base), scopes_of(target), scope_ids(target)
    identities, stored, listed, all_totals, first = (identity(old_scopes), identity(new_scopes)), {}, [], [], set()
    pairs = {scope: pairs.get(scope, scope if scope in old_scopes else next(iter(old_scopes))) for scope in ids.values()}
    used = {}
    for path, entries in shards.items():
        pair = pairs[ids[path]]
        for entry in entries:
            used.setdefault(pair, set()).update(names_of(entry(old_scopes.get(pair, {}), target[path])[0]))
    for path, entries in sorted(shards.items()):
        scope, pair = ids[path], pairs[ids[path]]
        gone = [] if pair in first else sorted(set(old_scopes.get(pair, {})) - used.get(pair, set()))
        first.add(pair)
        options = {"removed": gone, "identities": identities, "scope": scope, "base_scope": pair, **shard.get(path, {})}
        patch = patch_file(old_scopes.get(pair, {}), target[path], entries, path=path, **options)
        stored["patch/" + path] = patch.bytes
        all_totals.append(patch.meta["totals"])
        listed.append({"target": path, "path": "patch/" + path, **stat(patch.bytes), "digest": patch.meta["digest"]})
    items = []
    old_bytes, new_bytes = file_bytes(base), file_bytes(target)
    for item, framed in sorted((make(old_bytes, new_bytes) for make in files), key=lambda made: made[0]["path"]):
        items.append(item)
        if framed is not None:
            stored[f"files/{item['path']}.zst"] = framed
    document = {
        "format": "ckptdiff-index", "version": 1, "info": {}, "target": {"identity": identities[1]},
        "base": {"identity": identities[0], "files": [
            {"path": p, **stat(old_bytes[p])} for p in sorted(old_bytes) if p.endswith(".safetensors")]},
        "shards": listed, "files": items, "removed": sorted(set(base) - set(target)) if removed is None else removed,
        "totals": {key: sum(t[key] for t in all_totals) for key in (
            "same", "delta", "new", "copy", "removed", "units", "changed")}}
    stored["ckptdiff.json"] = edit(canonical(with_digest(document, index)), index_text)
    return edit(stored, parts)


# ---- Vector files ---------------------------------------------------------------------------------------------------

WRITTEN = set()


Generated = namedtuple("Generated", "seed count carrier first shift step sign")


@cache
def generated(units):
    """Units that a vector does not hold, but how they are made (README.md)."""
    s, out = units.seed, []
    for _ in range(units.count):
        s = (s * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        p = (s >> 48) * (s >> 32 & 65535) >> 16
        out.append((units.first + (p >> units.shift) * units.step + (s >> 31 & 1) * units.sign) % 256 ** units.carrier)
    return b"".join(unit.to_bytes(units.carrier, "little") for unit in out)


def vector(name, expect, comment, base, *patches, output=None, units=None):
    """``expect``: success, or the kinds of which a reader may give any. ``base`` and ``patches``: the bytes of a file, or path -> bytes of a folder. ``units``: how the last bytes of the base, a file, are made."""
    lines, body = [f"expect: {expect}", f"comment: {comment}"], b""
    for label, item in [("base", base)] + [("patch" + (str(i) if i > 1 else ""), p) for i, p in enumerate(patches, 1)]:
        item = item.bytes if isinstance(item, Patch) else item
        files = {label + ".safetensors": item} if isinstance(item, bytes) else {
            f"{label}/{path}": item[path] for path in sorted(item)}
        for path, data in files.items():
            if units and label == "base":
                assert data.endswith(generated(units))
                data = data[:-units.count * units.carrier]
            lines.append(f"part: {path} {len(data)}")
            if units and label == "base":
                lines.append(f"units: {path} {' '.join(map(str, units))}")
            body += data
    if expect == "success":
        results = {".": output} if isinstance(output, bytes) else output
        lines += [f"output: {path} {sha256(results[path])}" for path in sorted(results)]
    assert name not in WRITTEN, name
    WRITTEN.add(name)
    (OUT / f"{name}.vector").write_bytes("\n".join(lines).encode() + b"\n\n" + body)


def ok(name, comment, base, target, entries, made=None, **options):
    """A success with one patch file."""
    patch = patch_file(base, target, entries, **options)
    vector("ok_" + name, "success", comment, weights(base), patch, output=patch.output, units=made)


# A small patch with an entry of each kind; w holds the example of section 7.4.
W_OLD, W_NEW = "803f" * 8, "803f813f803f803f803f803f7e3f803f"
BASE = {"a": T("U8", [4], "01020304"), "w": T("BF16", [8], W_OLD)}
TARGET = {"a": BASE["a"], "w": T("BF16", [8], W_NEW), "n": T("U8", [3], "070809"), "c": T("U8", [3], "070809")}
ENTRIES = [same("a"), delta("w"), new("n"), copy("c", "n")]
A, W, N, C = range(4)  # places of the entries
BASE_FILE = weights(BASE)


def basic(**faults):
    return patch_file(BASE, TARGET, ENTRIES, **faults)


# A smaller one, for the faults that need no more: a delta and a new tensor.
TWO_BASE = {"w": T("U8", [2], "0102")}
TWO_TARGET = {"w": T("U8", [2], "0103"), "n": T("U8", [1], "09")}
TWO_HEADER = header(TWO_TARGET, metadata=None, pad=1)


def two(**faults):
    return patch_file(TWO_BASE, TWO_TARGET, [delta("w"), new("n")], target_header=TWO_HEADER, **faults)


def bad(name, expect, comment, patch=two, **faults):
    """A small patch with one fault."""
    vector(name, expect, comment, weights(TWO_BASE if patch is two else BASE), patch(**faults))


def bad_entry(name, expect, comment, which, /, **members):
    """The patch of four entries with members of one entry set to other values, or dropped."""
    def fault(table):
        entry = table["tensors"][which]
        entry.update(members)
        for key in [k for k in entry if entry[k] is DROP]:
            del entry[key]
    bad(name, expect, comment, basic, table=fault)


def bad_block(name, comment, *blocks, dtype="U8", old=bytes(8), target=None, codec="sparse", changed=1):
    """A patch of one tensor whose payload breaks a rule of section 7."""
    target = target or bytes([1]) + old[1:]
    shape = [len(old) * 8 // BITS[dtype]]
    base = {"t": T(dtype, shape, old)}
    patch = patch_file(base, {"t": T(dtype, shape, target)}, [delta("t", codec, blocks=list(blocks), changed=changed)])
    vector(name, "format", comment, weights(base), patch)


def setter(*path_and_value):
    """A fault: set (or drop) the member at a path of keys."""
    *path, value = path_and_value

    def fault(document):
        for key in path[:-1]:
            document = document[key]
        if value is DROP and path != ["digest"]:
            del document[path[-1]]
        else:
            document[path[-1]] = value
    return fault


def swap(old, new_text):
    """A fault: replace one piece of the bytes by another."""
    def fault(data):
        assert old in data, old
        return data.replace(old, new_text, 1)
    return fault


# ---- Section 5: the container ---------------------------------------------------------------------------------------

def container_vectors():
    f, payloads = "format", "ckptdiff/payloads"
    whole = len(two().bytes)
    head = struct.unpack("<Q", two().bytes[:8])[0]
    for at, what in ((0, "an empty file"), (7, "inside the length"), (100, "inside the header"),
                     (8 + head, "after the header"), (whole - 1, "one byte before the end")):
        bad(f"container_truncated_at_{at}" if at < 101 else "container_truncated_after_header" if at == 8 + head
            else "container_truncated_by_one_byte", f, f"The patch file is cut: {what}.", file=lambda b, at=at: b[:at])
    bad("container_trailing_byte", f, "One byte follows the last payload.", file=lambda b: b + b"\0")
    bad("container_length_huge", f, "The header's length is 2^64 - 1.", file=lambda b: b"\xff" * 8 + b[8:])
    bad("container_length_over_limit", f, "The header's length is 2^25 + 1.",
        file=lambda b: struct.pack("<Q", (1 << 25) + 1) + b[8:])
    bad("container_header_with_space", f, "The patch's header holds a space between two members.",
        head=swap(b',"ckptdiff/payloads"', b', "ckptdiff/payloads"'))
    bad("container_header_padded_too_much", f, "The header is padded with eight spaces more than needed.",
        head=lambda b: b + b" " * (-len(b) % 8 + 8))
    bad("container_header_not_padded", f, "The header is padded with one space too many.",
        head=lambda b: b + b" " * (-len(b) % 8 + 1), padding=b"")
    bad("container_header_padded_with_newline", f, "The header is padded with newlines.",
        head=lambda b: b + b"\n" * (-len(b) % 8 or 8))
    bad("container_header_ends_with_newline", f, "The last byte of the header's padding is a newline, not a space.",
        head=lambda b: b + b"\n".rjust(-len(b) % 8))
    bad("container_header_begins_with_space", f, "The header begins with a space, not with an opening brace.",
        head=lambda b: b" " + b)
    bad("container_header_not_utf8", f, "The header is not UTF-8.", head=swap(b"ckptdiff/payloads", b"ckptdiff/\xff"))
    bad("container_header_not_json", f, "The header lacks its closing brace.", head=lambda b: b[:-1])
    bad("container_header_repeats_key", f, "The header has the key ckptdiff/payloads twice.",
        head=swap(b',"ckptdiff/payloads"', b',"ckptdiff/payloads":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"ckptdiff/payloads"'))
    bad("container_header_escapes_needlessly", f, "The header spells the p of ckptdiff/payloads as an escape.",
        head=swap(b'"ckptdiff/payloads"', b'"ckptdiff/\\u0070ayloads"'))
    bad("container_keys_in_other_order", f, "A member has shape before dtype.",
        head=lambda b: re.sub(rb'"dtype":"U8",("shape":\[\d+\])', rb'\1,"dtype":"U8"', b, count=1))
    bad("container_offset_is_float", f, "An offset is written as 0.0.", head=swap(b'"data_offsets":[0,', b'"data_offsets":[0.0,'))
    bad("container_offset_is_minus_zero", f, "An offset is written as -0.", head=swap(b'"data_offsets":[0,', b'"data_offsets":[-0,'))
    bad("container_offset_is_boolean", f, "An offset is false.", head=swap(b'"data_offsets":[0,', b'"data_offsets":[false,'))
    bad("container_dtype_not_u8", f, "The payloads have the dtype I8.",
        layout=setter(payloads, "dtype", "I8"))
    bad("container_shape_of_two_dimensions", f, "The payloads have the shape [1, n].",
        layout=lambda m: m[payloads].update(shape=[1] + m[payloads]["shape"]))
    bad("container_shape_disagrees_with_offsets", f, "The payloads' shape is one more than their bytes.",
        layout=lambda m: m[payloads].update(shape=[m[payloads]["shape"][0] + 1]))

    def shift(by):
        def fault(members):
            members[payloads]["data_offsets"] = [x + by for x in members[payloads]["data_offsets"]]
        return fault
    bad("container_hole", f, "One byte lies between the header and the payloads.", layout=shift(1),
        file=lambda b: b + b"\0")
    bad("container_overlap", f, "The payloads begin in the last byte of the header.", layout=shift(-1),
        file=lambda b: b[:-1])
    bad("container_payloads_before_header", f, "The payloads stand before the target's header.",
        payloads=lambda data: [data[0], data[2], data[1]])
    bad("container_members_in_other_order", f, "The offsets are right, but the members do not stand in their order.",
        layout=lambda m: {k: m[k] for k in sorted(m, key=lambda k: (k != "__metadata__", k != payloads))})
    bad("container_payloads_missing", f, "There are no ckptdiff/payloads.", payloads=lambda data: data[:2])
    bad("container_payloads_too_short", f, "The payloads are a byte shorter than the table's blocks.",
        payloads=lambda data: data[:2] + [(payloads, data[2][1][:-1])])
    bad("container_payloads_too_long", f, "The payloads are a byte longer than the table's blocks.",
        payloads=lambda data: data[:2] + [(payloads, data[2][1] + b"\0")])
    bad("container_tensor_for_nothing", f, "There is a tensor that nothing asks for.",
        payloads=lambda data: data + [("tensor/x", b"\0")])
    bad("container_table_missing", f, "There is no ckptdiff/table.", payloads=lambda data: data[1:])
    bad("container_header_missing", f, "There is no ckptdiff/header/FILE.", payloads=lambda data: data[:1] + data[2:])
    bad("container_header_name_wrong", f, "FILE is not the last component of target.path.",
        payloads=lambda data: [data[0], ("ckptdiff/header/other", data[1][1])] + data[2:])
    bad("container_no_metadata", f, "The patch has no __metadata__.", layout=setter("__metadata__", DROP))
    bad("container_metadata_other_key", f, "__metadata__ has a key beside ckptdiff.",
        layout=setter("__metadata__", "format", "pt"))
    vector("container_is_not_a_patch", f, "The patch is a common safetensors file.", BASE_FILE, BASE_FILE)


# ---- Section 5.1: the metadata --------------------------------------------------------------------------------------

def nested(depth):
    """Arrays in each other."""
    return [nested(depth - 1)] if depth > 1 else []


def metadata_vectors():
    f, u = "format", "unsupported"
    bad("metadata_with_space", f, "The metadata holds a space.", meta_text=swap(b'"version":1', b'"version": 1'))
    bad("metadata_keys_unsorted", f, "The members of the metadata are not sorted.",
        meta_text=lambda b: b[:-len(b',"version":1}')].replace(b"{", b'{"version":1,', 1) + b"}")
    bad("metadata_repeats_key", f, "The metadata has version twice.",
        meta_text=swap(b'"version":1', b'"version":1,"version":1'))
    bad("metadata_version_float", f, "The version is 1.0.", meta_text=swap(b'"version":1', b'"version":1.0'))
    bad("metadata_version_true", f, "The version is true.", meta=setter("version", True))
    bad("metadata_version_2", u, "The version is 2.", meta=setter("version", 2))
    bad("metadata_version_minus_1", u, "The version is -1.", meta=setter("version", -1))
    bad("metadata_version_missing", f, "There is no version.", meta=setter("version", DROP))
    bad("metadata_format_wrong", f, "The format is another.", meta=setter("format", "ckptdiff-index"))
    bad("metadata_format_missing", f, "There is no format.", meta=setter("format", DROP))
    bad("metadata_not_an_object", f, "The metadata is a list.", meta_text=lambda b: b"[" + b + b"]")
    bad("metadata_unknown_member", u, "The metadata has an unknown member.", meta=setter("comment", "hello"))
    bad("metadata_unknown_member_of_base", u, "base has an unknown member.", meta=setter("base", "path", "x"))
    bad("metadata_unknown_total", u, "totals has an unknown member.", meta=setter("totals", "other", 0))
    bad("metadata_digest_wrong", "integrity", "The digest of the metadata is another.", meta=setter("digest", "0" * 32))
    bad("metadata_digest_short", f, "The digest of the metadata has 31 digits.", meta=setter("digest", "0" * 31))
    bad("metadata_digest_missing", f, "There is no digest.", meta=setter("digest", DROP))
    for name in ("table", "base", "totals", "info"):
        bad(f"metadata_{name}_missing", f, f"There is no member {name}.", meta=setter(name, DROP))
    bad("metadata_base_scope_missing", f, "base has no scope.", meta=setter("base", "scope", DROP))
    bad("metadata_table_digest_wrong", "integrity", "The digest of the table is another.", meta=setter("table", "0" * 32))
    bad("metadata_header_digest_wrong", "integrity", "The digest of the header is another.", meta=setter("header", "0" * 32))
    bad("metadata_digest_upper_case", f, "The digest of the table is in upper case.",
        meta=lambda m: m.update(table=m["table"].upper()))
    bad("metadata_lone_surrogate", f, "A string of info is an unpaired surrogate.", info={"x": "@"},
        meta_text=swap(b'"x":"@"', b'"x":"\\ud800"'))
    bad("metadata_nan_in_info", f, "info holds NaN.", info={"x": 0}, meta_text=swap(b'"x":0', b'"x":NaN'))
    bad("metadata_float_in_info", f, "info holds a float.", info={"x": 0}, meta_text=swap(b'"x":0', b'"x":0.5'))
    for name, value in (("2_53", 1 << 53), ("minus_2_53", -(1 << 53)), ("2_64", 1 << 64)):
        bad(f"metadata_integer_{name}", f, f"info holds the integer {value}.", info={"x": value})
    bad("metadata_nested_65", f, "Arrays in info nest 65 deep, the metadata and info counted.", info={"x": nested(63)})
    vector("ok_metadata_at_limits", "success", "info holds 2^53 - 1 and its negative, and arrays that nest 64 deep.", BASE_FILE,
           basic(info={"high": (1 << 53) - 1, "low": 1 - (1 << 53), "x": nested(62)}), output=basic().output)
    bad("metadata_base_file_over_limit", f, "base.files has a file of 2^40 + 1 bytes.", base_files=[
        {"path": "base.safetensors", "size": (1 << 40) + 1, "sha256": "0" * 64}])
    bad("metadata_base_file_2_63", f, "base.files has a file of 2^63 bytes.", base_files=[
        {"path": "base.safetensors", "size": 1 << 63, "sha256": "0" * 64}])
    vector("ok_metadata_base_file_at_limit", "success", "base.files has a file of 2^40 bytes.", weights(TWO_BASE), two(base_files=[
        {"path": "base.safetensors", "size": 1 << 40, "sha256": "0" * 64}]), output=two().output)
    bad("metadata_base_repo_257_bytes", f, "info.base_repo has 257 bytes.", info={"base_repo": "r" * 257})
    bad("metadata_scope_1025_bytes", f, "target.scope has 1,025 bytes.", scope="s" * 1025)
    vector("ok_metadata_texts_at_limits", "success", "info.base_repo has 256 bytes, target.scope 1,024.", weights(TWO_BASE),
           two(info={"base_repo": "r" * 256}, scope="s" * 1024), output=two().output)
    bad("metadata_target_size_over_limit", f, "target.size is 2^40 + 1.", meta=setter("target", "size", (1 << 40) + 1))
    bad("metadata_escaped_letter", f, "A letter of info is written as an escape.", info={"x": "é"},
        meta_text=swap("é".encode(), b"\\u00e9"))
    bad("metadata_tied_not_an_object", f, "info.tied is a list.", info={"tied": ["w"]})
    bad("metadata_tied_not_strings", f, "info.tied holds an integer.", info={"tied": {"head": 0}})
    bad("metadata_path_unsafe", f, "target.path climbs out of its folder.", path="../base.safetensors")
    bad("metadata_scope_null_with_base", f, "base.scope is null, but there are entries that need a base.", base_scope=None)
    bad("metadata_base_files_unsorted", f, "base.files are not sorted.", base_files=[
        {"path": p, "size": 1, "sha256": "0" * 64} for p in ("b.safetensors", "a.safetensors")])
    bad("metadata_base_files_empty", f, "base.files is empty, but the target was a file and there are entries that need a base.", base_files=[])
    bad("metadata_target_identity_wrong", f, "base.files is there, and target.identity is not that of the table.",
        base_files=[{"path": "base.safetensors", "size": 1, "sha256": "0" * 64}], meta=setter("target", "identity", "0" * 32))
    bad("metadata_target_sha256_null", f, "target.sha256 is null instead of left out.", meta=setter("target", "sha256", None))
    bad("metadata_target_size_wrong", f, "target.size is one too large.",
        meta=lambda m: m["target"].update(size=m["target"]["size"] + 1))
    for name in ("removed", "units", "changed"):
        bad(f"metadata_totals_{name}_wrong", f, f"totals.{name} does not agree with the table.",
            meta=lambda m, name=name: m["totals"].update({name: m["totals"][name] + 1}))
    bad("metadata_totals_missing_member", f, "totals has no member units.", meta=setter("totals", "units", DROP))


# ---- Section 5.4: the report ----------------------------------------------------------------------------------------

# Only what a reader checks that rebuilds files: the JSON lacks most that report.schema.json asks for.
REPORT = frame(b'{"schema":"ckptdiff-report/1"}')


def report_vectors():
    f, member = "format", "ckptdiff/report"
    bad("report_digest_wrong", "integrity", "The digest of the report is another.", report=REPORT, meta=setter("report", "0" * 32))
    bad("report_digest_short", f, "The digest of the report has 31 digits.", report=REPORT, meta=setter("report", "0" * 31))
    bad("report_digest_null", f, "The member report is null.", meta=setter("report", None))
    bad("report_not_stated", f, "There is a report, but no member of the metadata for it.", report=REPORT, meta=setter("report", DROP))
    bad("report_missing", f, "The metadata has a digest of a report that is not there.", meta=setter("report", hex128(REPORT)))
    bad("report_before_header", f, "The report stands before the target's header.", report=REPORT,
        payloads=lambda data: [data[0], data[2], data[1], data[3]])
    bad("report_after_payloads", f, "The report stands after the payloads.", report=REPORT,
        payloads=lambda data: [data[0], data[1], data[3], data[2]])
    bad("report_too_large", f, "The report has more than 2^24 bytes, by the header.", report=REPORT,
        layout=lambda m: m[member].update(shape=[2**24 + 1], data_offsets=[
            m[member]["data_offsets"][0], m[member]["data_offsets"][0] + 2**24 + 1]))
    vector("report_in_second_shard", f, "The patch file of the second shard has a report.", file_bytes(FOLDER_OLD),
           folder(shard={M2: {"report": REPORT}}))
    vector("ok_report", "success", "A report stands between header and payloads.", BASE_FILE, basic(report=REPORT), output=basic().output)
    vector("ok_folder_report", "success", "The first shard's patch file has a report.", file_bytes(FOLDER_OLD),
           folder(shard={M1: {"report": REPORT}}), output=file_bytes(FOLDER_NEW))


# ---- Section 6: the table -------------------------------------------------------------------------------------------

def table_vectors():
    f, u = "format", "unsupported"
    bad("table_frame_no_content_size", f, "The table's frame does not state its content size.",
        table_frame=lambda _: frame(table_bytes(), state_size=False))
    bad("table_frame_content_size_too_small", f, "The table's frame states one byte less than it holds.",
        table_frame=lambda _: frame(table_bytes(), size=len(table_bytes()) - 1))
    bad("table_frame_content_size_too_large", f, "The table's frame states one byte more than it holds.",
        table_frame=lambda _: frame(table_bytes(), size=len(table_bytes()) + 1))
    bad("table_frame_content_size_over_limit", f, "The table's frame states a content of 2^25 + 1 bytes.",
        table_frame=lambda _: frame(table_bytes(), size=(1 << 25) + 1))
    bad("table_frame_content_size_huge", f, "The table's frame states a content of 2^62 bytes.",
        table_frame=lambda _: frame(table_bytes(), size=1 << 62))
    bad("table_frame_trailing_byte", f, "A byte follows the table's frame.", table_frame=lambda b: b + b"\0")
    bad("table_frame_twice", f, "The table is two frames.",
        table_frame=lambda _: frame(table_bytes()[:9]) + frame(table_bytes()[9:]))
    bad("table_frame_then_skippable", f, "A skippable frame follows the table's.",
        table_frame=lambda b: b + b"\x50\x2a\x4d\x18" + struct.pack("<I", 1) + b"x")
    bad("table_frame_truncated", f, "The table's frame lacks its last byte.", table_frame=lambda b: b[:-1])
    bad("table_frame_asks_for_dictionary", f, "The table's frame names the dictionary 7.",
        table_frame=lambda _: frame(table_bytes(), dictionary=b"\x07"))
    bad("table_frame_bad_checksum", f, "The table's frame has a wrong checksum.",
        table_frame=lambda _: frame(table_bytes(), checksum=b"abcd"))
    bad("table_not_zstd", f, "The table is stored without zstd.", table_frame=lambda _: table_bytes())
    bad("table_empty", f, "The table has no bytes.", table_frame=lambda _: b"")
    bad("table_length_past_end", f, "The JSON's length is more than the table holds.",
        table_content=lambda b: b"\xff\xff\xff\x0f" + b[4:])
    bad("table_length_one_short", f, "The JSON's length is one too small.",
        table_content=lambda b: struct.pack("<I", struct.unpack("<I", b[:4])[0] - 1) + b[4:])
    bad("table_digests_one_byte_short", f, "The table's digests lack their last byte.", digests=lambda d: d[:-1])
    bad("table_digests_one_byte_long", f, "A byte follows the table's digests.", digests=lambda d: d + b"\0")
    bad("table_json_with_space", f, "The table's JSON has a space.", table_json=swap(b'"removed":[]', b'"removed": []'))
    bad("table_json_keys_unsorted", f, "An entry has kind before dtype.",
        table_json=swap(b'"dtype":"U8","kind":"new"', b'"kind":"new","dtype":"U8"'))
    bad("table_json_repeats_key", f, "An entry has its kind twice.",
        table_json=swap(b'"kind":"new"', b'"kind":"new","kind":"new"'))
    bad("table_json_byte_order_mark", f, "The table's JSON begins with a byte-order mark.",
        table_json=lambda b: b"\xef\xbb\xbf" + b)
    bad("table_json_nested_deeply", f, "An entry's shape is 2,000 lists in each other.",
        table_json=swap(b'"shape":[1]', b'"shape":' + b"[" * 2000 + b"]" * 2000))
    bad("table_unknown_member", u, "The table has an unknown member.", table=setter("other", []))
    bad("table_removed_missing", f, "The table has no list of removed names.", table=setter("removed", DROP))
    bad("table_removed_is_a_base", f, "A removed name is the base of an entry.", removed=["w"])
    bad("table_removed_is_in_target", f, "A removed name is that of a new tensor.", removed=["n"])
    bad("table_removed_name_empty", f, "A removed name is empty.", removed=[""])
    bad("table_removed_name_too_long", f, "A removed name has 4,097 bytes.", removed=["x" * 4097])
    wide = {**TWO_BASE, "x": TWO_BASE["w"], "y": TWO_BASE["w"]}
    for name, removed, comment in (("unsorted", ["y", "x"], "are not sorted"), ("repeated", ["x", "x", "y"], "repeat one")):
        vector(f"table_removed_{name}", f, f"The removed names {comment}.", weights(wide),
               patch_file(wide, TWO_TARGET, [delta("w"), new("n")], removed=removed))

    bad_entry("table_entry_unknown_kind", u, "An entry is of a kind that is unknown.", A, kind="moved")
    bad_entry("table_entry_unknown_codec", u, "An entry's codec is unknown.", W, codec="lz4")
    bad_entry("table_entry_unknown_dtype", u, "An entry's dtype is unknown.", A, dtype="U4")
    bad_entry("table_entry_unknown_member", u, "An entry has an unknown member.", A, comment="hello")
    bad_entry("table_entry_unknown_member_of_base", u, "An entry's base has an unknown member.", A, base={"kind": "x"})
    for which, kind, members in ((A, "same", "kind"), (W, "delta", "changed"),
                                 (N, "new", "blocks"), (C, "copy", "of")):
        for member in members.split():
            bad_entry(f"table_entry_{kind}_without_{member}", f, f"An entry of kind {kind} has no {member}.", which,
                      **{member: DROP})
    bad_entry("table_entry_same_with_codec", f, "An entry of kind same has a codec.", A, codec="raw")
    bad_entry("table_entry_new_with_base", f, "An entry of kind new has a base.", N, base={"pieces": [["a", 0, 1]]})
    bad_entry("table_entry_new_sparse", f, "An entry of kind new is coded sparse.", N, codec="sparse")
    bad_entry("table_entry_new_context", f, "An entry of kind new is coded context.", N, codec="context")
    bad_entry("table_entry_base_empty", f, "An entry's base is an empty object.", A, base={})
    bad_entry("table_entry_copy_with_base", f, "An entry of kind copy has a base.", C, base={"pieces": [["a", 0, 1]]})
    bad_entry("table_entry_base_dtype_own", f, "An entry's base has the entry's own dtype.", A, base={"dtype": "U8"})
    bad_entry("table_entry_base_dtype_unknown", u, "The dtype of an entry's base is unknown.", A, base={"dtype": "U4"})
    bad_entry("table_entry_name_empty", f, "An entry's name is empty.", A, name="")
    bad_entry("table_entry_name_too_long", f, "An entry's name has 4,097 bytes.", A, name="a" * 4097)
    bad_entry("table_entry_shape_negative", f, "An entry's shape has a negative number.", A, shape=[-4])
    bad_entry("table_entry_shape_boolean", f, "An entry's shape has true for 1.", A, shape=[4, True])
    bad_entry("table_entry_shape_too_large", f, "An entry's dimension is 2^48 + 1.", A, shape=[(1 << 48) + 1])
    bad_entry("table_entry_tensor_too_large", f, "An entry's tensor is of 2^49 bytes.", A, shape=[1 << 48, 2])
    bad_entry("table_entry_shape_too_large_before_zero", f, "An entry's dimensions have a product above 2^48, but for a zero.", A,
              shape=[1 << 40, 1 << 40, 0])
    bad_entry("table_entry_shape_33_dimensions", f, "An entry has 33 dimensions.", A, shape=[1] * 32 + [4])
    wide_old, wide_new = ({"r": T("U8", [1] * 31 + [2], data), "z": T("U8", [1 << 48, 0], b"")} for data in ("0102", "0103"))
    ok("shapes_at_limits", "Tensors of 32 dimensions, and of a dimension of 2^48.", wide_old, wide_new, [same("z"), delta("r")][::-1])
    bad_entry("table_entry_half_a_byte", f, "An entry's tensor is of one and a half bytes.", A, dtype="F4", shape=[3])
    bad_entry("table_entry_changed_0", f, "An entry of kind delta has no unit that changed.", W, changed=0)
    bad_entry("table_entry_changed_over_units", f, "More units changed than there are.", W, changed=9)
    size = len(sparse_of(BASE["w"].data, TARGET["w"].data, "BF16"))
    bad_entry("table_entry_two_blocks_for_one", f, "A tensor of one block has two, of the right sum.", W, blocks=[1, size - 1])
    bad_entry("table_entry_no_blocks", f, "A tensor of one block has none.", W, blocks=[])
    bad_entry("table_entry_blocks_sum_wrong", f, "The sum of the blocks is not the payload's size.", W, blocks=[size - 1])
    bad_entry("table_entry_block_over_limit", f, "A block's coded size is over the limit.", W, blocks=[(1 << 24) + 1])
    bad_entry("table_copy_of_copy", f, "A copy is of another copy, its own.", C, of="c")
    bad_entry("table_copy_of_missing", f, "A copy is of a tensor that the target does not have.", C, of="x")
    bad_entry("table_copy_of_other_shape", f, "A copy is of a tensor of another shape.", C, of="a")
    more = {**TARGET, "d": TARGET["c"]}
    vector("table_copy_of_other_copy", f, "A copy is of a tensor which is a copy itself.", BASE_FILE,
           patch_file(BASE, more, ENTRIES + [copy("d", "c")]))
    other = {"n": TARGET["n"], "c": T("I8", [3], TARGET["c"].data)}
    vector("table_copy_of_other_dtype", f, "A copy is of a tensor of another dtype.", BASE_FILE,
           patch_file(BASE, other, [new("n"), copy("c", "n")]))
    bad("table_entries_repeat_name", f, "Two entries have the same name.", basic, table=lambda t: t["tensors"][C].update(name="n"))
    bad("table_entry_too_few", f, "The table lacks the target's last tensor.", basic, table=lambda t: t["tensors"].__delitem__(C))
    bad("table_digest_of_payload_wrong", "integrity", "A payload is not that of its digest.",
        payloads=lambda d: d[:2] + [(d[2][0], d[2][1][:-1] + b"\x7f")] + d[3:])


def table_bytes(patch=two):
    """The decoded table of a small patch."""
    found = []
    patch(table_content=found.append)
    return found[0]


# ---- Section 5.2: the target's header -------------------------------------------------------------------------------

def header_vectors():
    f = "format"
    true = header(TARGET)
    bad("header_frame_no_content_size", f, "The header's frame does not state its content size.", basic,
        header_frame=lambda _: frame(true, state_size=False))
    bad("header_frame_content_size_wrong", f, "The header's frame states a byte more than it holds.", basic,
        header_frame=lambda _: frame(true, size=len(true) + 1))
    bad("header_frame_content_size_over_limit", f, "The header's frame states 2^25 + 1 bytes.", basic,
        header_frame=lambda _: frame(true, size=(1 << 25) + 1))
    bad("header_frame_trailing_byte", f, "A byte follows the header's frame.", header_frame=lambda b: b + b"\0")

    def decoded(name, comment, text):
        bad("header_" + name, f, comment, basic, stored_header=text)
    decoded("other_name", "The decoded header has another name than the table.", swap(b'"n":', b'"m":'))
    decoded("other_dtype", "The decoded header has another dtype than the table.", swap(b'"U8","shape":[3]', b'"I8","shape":[3]'))
    decoded("other_shape", "The decoded header has another shape than the table, of the same size.",
            swap(b'"shape":[8],', b'"shape":[2,4],'))
    decoded("hole", "There is a hole between two tensors of the decoded header.", swap(b"[23,26]", b"[24,27]"))
    decoded("overlap", "Two tensors of the decoded header overlap.", swap(b"[23,26]", b"[22,25]"))
    decoded("offsets_not_from_0", "The decoded header's data begins at 1.",
            lambda b: re.sub(rb"\[(\d+),(\d+)\]\}", lambda m: b"[%d,%d]}" % (int(m[1]) + 1, int(m[2]) + 1), b))
    decoded("offsets_backwards", "A tensor of the decoded header ends before it begins.", swap(b"[23,26]", b"[26,23]"))
    decoded("size_disagrees", "A tensor's offsets hold another size than its shape.", swap(b"[23,26]", b"[23,27]"))
    decoded("repeats_key", "The decoded header has a tensor twice.", swap(b'"n":', b'"n":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"n":'))
    decoded("metadata_not_text", "A value of the decoded __metadata__ is a number.", swap(b'"pt"', b"1"))
    decoded("extra_member", "A tensor of the decoded header has a fourth member.", swap(b'"shape":[8]', b'"shape":[8],"x":0'))
    decoded("shape_float", "A shape of the decoded header has a float.", swap(b'"shape":[8]', b'"shape":[8.0]'))
    decoded("no_brace", "The decoded header begins with a space.", lambda b: b" " + b)
    decoded("ends_with_form_feed", "A form feed follows the decoded header's JSON.", lambda b: b.rstrip(b" ") + b"\f")
    decoded("metadata_null", "The decoded header's __metadata__ is null.", swap(b'{"format":"pt"}', b"null"))
    for name, end in (("newline", b"\n"), ("tab", b"  \t")):
        ok(f"header_ends_with_{name}", f"The target's header ends with a {name} behind its JSON.", BASE, TARGET, ENTRIES,
           target_header=true.rstrip(b" ") + end)
    decoded("lone_surrogate", "A string of the decoded header is an unpaired surrogate.", swap(b'"pt"', b'"\\udc00"'))
    decoded("not_utf8", "The decoded header is not UTF-8.", swap(b'"pt"', b'"\xc3"'))
    decoded("empty", "The decoded header has no bytes.", lambda b: b"")
    decoded("tensor_more", "The decoded header has an empty tensor that the table lacks.",
            lambda b: b.rstrip(b" ")[:-1] + b',"e":{"dtype":"U8","shape":[0],"data_offsets":[26,26]}}')
    empty = {"e": T("U8", [0], b""), "f": T("U8", [0], b""), "g": T("U8", [1], "05")}
    vector("header_empty_tensors_in_other_order", f, "Two empty tensors at one offset stand in the table in another order "
           "than in the header.", BASE_FILE, patch_file(BASE, empty, [new("f"), new("e"), new("g")]))


# ---- Section 7: codecs ----------------------------------------------------------------------------------------------

def codec_vectors():
    one = sparse([0], [1], 1)  # position 0, z - 1 = 1: d = +1
    bad_block("sparse_n_0", "A block says that no unit changed.", b"\0\x11", changed=1)
    bad_block("sparse_n_over_units", "A block says that nine of its eight units changed.", sparse([0] * 9, [1] * 9, 1),
              changed=8)
    bad_block("sparse_g_0", "The width of the gaps is 0.", sparse([0], [1], 1, widths=0x10))
    bad_block("sparse_g_4", "The width of the gaps is 4.", b"\x01\x14" + b"\0\0" * 4 + b"\0\x01")
    bad_block("sparse_w_0", "The width of the values is 0.", sparse([0], [1], 1, widths=0x01))
    bad_block("sparse_w_over_carrier", "The width of the values is 2, the carrier's 1.", b"\x01\x21" + b"\0\0" + b"\0\x01\0\0")
    bad_block("sparse_position_past_end", "The changed unit is the ninth of eight.", sparse([8], [1], 1))
    bad_block("sparse_second_position_past_end", "The second changed unit is past the end.", sparse([0, 7], [1, 1], 1), changed=2)
    bad_block("sparse_gap_escape_past_end", "An escaped gap leads past the end.", sparse([255], [1], 1))
    bad_block("sparse_gap_overflow", "An escaped gap is 2^24.",
              b"\x01\x11" + b"\0\xff" + b"\0\x01\0\xff\0\xff" + b"\0\x01")
    bad_block("sparse_value_overflow", "An escaped value is 2^16, in a carrier of 16 bits.",
              b"\x01\x11" + b"\0\0" + b"\0\xff" + b"\0\x01\0\xff", dtype="U16", target=b"\x01" + bytes(7))
    bad_block("sparse_value_overflow_64_bits", "An escaped value is 2^64.",
              b"\x01\x11" + b"\0\0" + b"\0\xff" + b"\0\x01" + b"\0\xff" * 7, dtype="U64", target=b"\x01" + bytes(7))
    bad_block("sparse_z_overflow", "z - 1 is 2^8 - 1.", sparse([0], [255], 1))
    bad_block("sparse_z_overflow_64_bits", "z - 1 is 2^64 - 1.", sparse([0], [2 ** 64 - 1], 8, w=8), dtype="I64",
              target=b"\x01" + bytes(7))
    bad_block("sparse_left_over_byte", "A byte is left over after a block.", one + b"\0")
    bad_block("sparse_truncated", "The last byte of a block is missing.", one[:-1])
    bad_block("sparse_changed_differs", "The n of all blocks do not sum to changed.", one, changed=2)
    bad_block("sparse_no_change_at_all", "All blocks have the size 0, but changed is 1.", b"")
    bad_block("varint_not_minimal", "n is written in two bytes where one is enough.", b"\x81\x00" + one[1:])
    bad_block("varint_six_bytes", "A varint has six bytes.", b"\x81\x80\x80\x80\x80\x00" + one[1:])
    bad_block("varint_2_to_32", "A varint is 2^32.", b"\x80\x80\x80\x80\x10" + one[1:])
    bad_block("varint_2_to_32_and_1", "n is 2^32 + 1, of which the lower 32 bits are right.", b"\x81\x80\x80\x80\x10" + one[1:])
    bad_block("varint_2_to_35_and_1", "n is 2^35 + 1, in six bytes.", b"\x81\x80\x80\x80\x80\x01" + one[1:])
    bad_block("varint_truncated", "A block ends inside a varint.", b"\x80")
    bad_block("plane_z_varint_not_minimal", "A plane's z is 0 written in two bytes.", b"\x01\x11" + b"\x80\0\0" + b"\0\x01")
    bad_block("plane_z_past_end", "A plane's frame is longer than the block.", b"\x01\x11" + b"\0\0" + b"\x7f\x01")

    def planes_of(name, comment, framed):
        """A raw block whose only plane is this frame."""
        bad_block("plane_" + name, comment, plane_zstd(framed), codec="raw", target=b"\1" * 8, changed=8)
    planes_of("content_short", "A plane's frame holds seven bytes of eight.", frame(b"\1" * 7, magic=False))
    planes_of("content_long", "A plane's frame holds nine bytes for eight.", frame(b"\1" * 9, magic=False))
    planes_of("content_long_no_size", "A plane's frame, which states no size, holds nine bytes for eight.",
              frame(b"\1" * 9, magic=False, state_size=False))
    planes_of("content_size_lies_low", "A plane's frame states seven bytes, but holds eight.",
              frame(b"\1" * 8, magic=False, size=7))
    planes_of("content_size_true_for_plane_only", "A plane's frame states the plane's eight bytes, but holds seven.",
              frame(b"\1" * 7, magic=False, size=8))
    planes_of("content_size_huge", "A plane's frame states 2^60 bytes.", frame(b"\1" * 8, magic=False, size=1 << 60))
    planes_of("content_size_zero", "A plane's frame states no bytes and holds none.", frame(b"", magic=False))
    planes_of("window_too_large", "A plane's frame has a window of 2^21 + 2^18 bytes.",
              frame(b"\1" * 8, magic=False, state_size=False, window=0x59))
    planes_of("bomb", "A plane's frame, which states no size, holds 1 MiB for eight bytes.",
              b"\x00\x38" + frame_rle(b"\1", 1 << 20, magic=False)[9:])
    planes_of("with_magic", "A plane's frame has its magic number.", frame(b"\1" * 8))
    planes_of("trailing_byte", "A byte follows a plane's frame, within z.", frame(b"\1" * 8, magic=False) + b"\0")
    planes_of("two_frames", "A plane is two frames.", frame(b"\1" * 4, magic=False, state_size=False)
              + frame(b"\1" * 4, state_size=False))
    planes_of("checksum", "A plane's frame has a checksum, a right one.",
              frame(b"\1" * 8, magic=False, checksum=(xxhash.xxh64_intdigest(b"\1" * 8) & 0xFFFFFFFF).to_bytes(4, "little")))
    planes_of("dictionary", "A plane's frame names a dictionary.", frame(b"\1" * 8, magic=False, dictionary=b"\x01"))
    planes_of("reserved_bit", "A plane's frame has the reserved bit set.",
              bytes([0xE8]) + frame(b"\1" * 8, magic=False)[1:])
    planes_of("frame_truncated", "A plane's frame lacks its last byte.", frame(b"\1" * 8, magic=False)[:-1])
    bad_block("raw_block_empty", "A raw block has no bytes.", b"", codec="raw", target=b"\1" * 8, changed=8)
    bad_block("raw_left_over_byte", "A byte is left over after a raw block.", plane(b"\1" * 8) + b"\0", codec="raw",
              target=b"\1" * 8, changed=8)
    bad_block("raw_one_plane_of_two", "A raw block of 16-bit units has one plane.", plane(b"\1" * 4), dtype="U16", codec="raw",
              target=b"\1\0" * 4, changed=4)
    bad_block("raw_changed_differs", "An entry coded raw says that seven units changed; it is eight.", plane(b"\1" * 8),
              codec="raw", target=b"\1" * 8, changed=7)
    base = {"t": T("U8", [8], bytes(8))}
    wrong = patch_file(base, {"t": T("U8", [8], b"\2" + bytes(7))}, [delta("t", blocks=[one], changed=1)])
    vector("result_digest_of_delta_wrong", "integrity", "A delta is well formed, but gives another tensor than its digest's.",
           weights(base), wrong)
    wrong = patch_file(base, {"t": T("U8", [2], "0101")}, [new("t", [plane(b"\1\2")])])
    vector("result_digest_of_new_wrong", "integrity", "A new tensor is well formed, but is not that of its digest.",
           weights(base), wrong)


# ---- Section 10: bases and chains -----------------------------------------------------------------------------------

def sample(dtype, n, seed, most=5, share=3):
    """Two runs of n units from a small generator of numbers, the second with one unit in ``share`` moved."""
    c, state, old, new = CARRIER[dtype], seed, [], []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        unit = (state >> 20) % 256 ** c if c < 4 else (0x3C << 8 * c - 8) + (state >> 40) % 2 ** 20
        old.append(unit)
        new.append((unit + 1 + (state >> 8) % most) % 256 ** c if (state >> 50) % share == 0 else unit)
    return tuple(b"".join(unit.to_bytes(c, "little") for unit in side) for side in (old, new))


def context_vectors():  # section 7.5
    def good(name, comment, dtype, old, new_, coder=adaptive, **options):
        shape = [len(old) * 8 // BITS[dtype]]
        ok("context_" + name, comment, {"t": T(dtype, shape, old)}, {"t": T(dtype, shape, new_)},
           [delta("t", "context", blocks=[coder(old, new_, dtype, **options)], changed=len(distances(old, new_, dtype)[0]))])
    for dtype in ("U8", "I16", "BF16", "F16", "F32", "U32", "F64", "I64", "C64", "F8_E4M3", "F4"):
        good(f"adaptive_{dtype.lower()}", f"The adaptive form, {dtype}.", dtype, *sample(dtype, 60, 7))
        if CARRIER[dtype] < 8:
            good(f"static_{dtype.lower()}", f"The static form, {dtype}.", dtype, *sample(dtype, 60, 8), coder=static)
    specials = [0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 1, 0x8001, 0x3F80]
    old, new_ = (b"".join(x.to_bytes(2, "little") for x in side) for side in (specials, specials[1:] + specials[:1]))
    good("adaptive_specials", "Zeros, infinities, NaN: the largest distances.", "BF16", old, new_)
    good("static_specials", "The same in the static form.", "BF16", old, new_, coder=static)
    ends = [bytes(8), b"\xff" * 8, b"\0" * 7 + b"\x80", b"\xff" * 7 + b"\x7f"]
    pairs = [(a, b) for a in ends for b in ends if a != b]
    for dtype in ("U64", "F64"):
        good(f"adaptive_ends_{dtype.lower()}", "The ends of 64 bits: raw bits of more than 32 at once.", dtype,
             b"".join(a for a, _ in pairs), b"".join(b for _, b in pairs))
    good("adaptive_wide_span", "lo and hi are wider than the classes that changed.", "BF16", *sample("BF16", 60, 9), span=(0, 255))
    many = sample("U16", 400, 10, 40000, 2)
    good("adaptive_many", "Many changes in many classes, far apart.", "U16", *many)
    good("adaptive_long_runs", "Runs of more than four octaves, at a pace that falls and rises.", "U8", *sample("U8", 300, 14, 5, 40),
         span=(0, 255), rates=[40] * 256)
    good("adaptive_extreme_rates", "The lowest rate and the highest, each for what is hardly likely with it.", "U8",
         bytes([1, 2] * 30), bytes([1, 2] * 20 + [3, 2] * 10), rates=[1, 50], span=(1, 2))
    good("static_many", "The same in the static form.", "U16", *many, coder=static)
    rows = {"level_bits": (1, 2), "width": 7, "phase": 3, "rows": [1, 0, 1, 0, 1, 1, 0, 0, 1], "columns": [3, 0, 1, 2, 3, 0, 0]}
    span = sorted({class_of(x, "U8") for x in sample("U8", 60, 11)[0]})
    contexts = (span[-1] - span[0] + 1) * 5
    three = [(0, {t: (5 + t, 0) for t in range(1, 6)}), (2, {0: (13, 5), 1: (1, 0), 3: (2, 1), 4: (3, 2), 5: (4, 7)}),
             (5, {t: (8, t) for t in range(5)})]
    good("static_rows", "Levels of rows and columns, three groups, tables of all widths.", "U8", *sample("U8", 60, 11), coder=static,
         groups=[i % 3 for i in range(contexts)], tables=three, **rows)
    good("static_rows_only", "Levels of rows, none of columns.", "U8", *sample("U8", 60, 11), coder=static, level_bits=(2, 0), width=60,
         phase=59, rows=[2, 3], columns=[0] * 60, groups=[0] * ((span[-1] - span[0] + 1) * 4))
    good("static_clamped", "Classes below lo and above hi count as these.", "U8", *sample("U8", 60, 12), coder=static, span=(100, 101))

    def bad_context(name, comment, coder=adaptive, dtype="U8", seed=13, changed=None, old=None, new_=None, **faults):
        if old is None:
            old, new_ = sample(dtype, 60, seed)
        coded = faults.pop("block", None) or coder(old, new_, dtype, **faults)
        shape = [len(old) * 8 // BITS[dtype]]
        base = {"t": T(dtype, shape, old)}
        n = len(distances(old, new_, dtype)[0]) if changed is None else changed
        patch = patch_file(base, {"t": T(dtype, shape, new_)}, [delta("t", "context", blocks=[coded], changed=n)])
        vector("context_" + name, "format", comment, weights(base), patch)
    whole = adaptive(*sample("U8", 60, 13), "U8")
    single = {"old": bytes(4), "new_": b"\1\0\0\0"}
    for form in (0, 3):
        bad_context(f"form_{form}", f"A block has the form {form}.", block=bytes([form]) + whole[1:])
    bad_context("static_of_8_bytes", "Units of 8 bytes are in the static form.", dtype="U64", block=b"\x02\x00" + bytes(20))
    bad_context("only_form", "A block ends after its form.", block=b"\x01")
    bad_context("raw_past_end", "More raw bytes are stated than there are.", block=whole[:1] + b"\x7f" + whole[2:])
    bad_context("adaptive_no_head", "A block has no raw bits, and so no head.", block=b"\x01\x00\x05")
    bad_context("adaptive_span_reversed", "lo is above hi.", block=b"\x01\x03\x05\x04\x01\x80")
    bad_context("adaptive_rate_too_large", "The rate of lo is 51.", rates=[51], **single)
    bad_context("adaptive_next_rate_too_large", "The rate of a class is 51.", rates=[50, 51], span=(0, 1), **single)
    bad_context("adaptive_rate_negative", "The rate of a class is -1.", rates=[1, -1], span=(0, 1), **single)
    bad_context("adaptive_code_too_large", "The first eight range coded bytes are 2^64 - 1.", coded=lambda b: b"\xff" * 8 + b[8:])
    bad_context("adaptive_code_leaves_range", "After a change code is above the range's upper part.", leave="change", **single)
    bad_context("adaptive_code_leaves_range_in_run", "After a run of four octaves code is above the range's upper part.", leave="run",
                old=bytes(40), new_=bytes(39) + b"\1", rates=[40])
    bad_context("adaptive_zero_at_end", "The last range coded byte is 0.", coded=lambda b: b + b"\0")
    bad_context("adaptive_left_over", "Range coded bytes are left over.", coded=lambda b: b + bytes(12) + b"\1")
    bad_context("raw_left_over", "A raw byte is left over.", raw=lambda b: b + b"\0")
    bad_context("raw_missing", "The last raw byte is missing.", raw=lambda b: b[:-1])
    bad_context("raw_padding", "A raw bit behind the last, the only one, is set.", raw=lambda b: bytes([b[0] | 0x80]), **single)
    bad_context("adaptive_distance_too_large", "A distance is 2^(m-1), but up.", old=b"\0" * 4, new_=b"\0\x80\0\0",
                move=lambda distance, side: (distance, 1 - side))
    bad_context("adaptive_nothing", "A block that is not empty changes nothing.", block=context_block(1, Bits().put(0, 16).put(20, 6), b""), **single)
    bad_context("adaptive_changed_differs", "Another number of units changes.", changed=1)

    def bad_static(name, comment, **faults):
        bad_context("static_" + name, comment, coder=static, **faults)
    groups = [0] * 256
    bad_static("span_reversed", "lo is above hi.", raw=lambda b: bytes([b[1], b[0]]) + b[2:], span=(0, 255), groups=groups)
    flat = {"level_bits": (1, 0), "span": (0, 255), "groups": [0] * 512, "columns": [0] * 60}
    bad_static("width_0", "Rows have no width.", **{**flat, "width": 60, "rows": [0]}, raw=lambda b: set_bits(b, 22, 22, 0))
    bad_static("width_over_units", "A row is wider than the block.", **{**flat, "width": 61, "rows": [0], "columns": [0] * 61})
    bad_static("phase_is_width", "The phase is the width.", **{**flat, "width": 60, "rows": [0]}, raw=lambda b: set_bits(b, 44, 22, 60))
    bad_static("group_too_large", "A context has a group that there is not.", span=(0, 255), groups=groups, map_=lambda b: number(b, 2))
    bad_static("group_negative", "A context has the group -1.", span=(0, 255), groups=groups, map_=lambda b: number(b, 1))
    bad_static("number_too_large", "A step has sixteen ones.", span=(0, 255), groups=groups, map_=lambda b: b.put(0xFFFF, 16).put(0, 17))
    one = {t: (4, 0) for t in range(1, 6)}
    bad_static("table_last_too_large", "A table's last token is T.", tables=[(0, {**one, 48: (1, 0)})])
    bad_static("table_common_over_last", "A table's commonest token is above its last.", raw=lambda b: set_bits(b, COMMON_AT, 8, 6),
               span=(0, 255), groups=groups)
    bad_static("table_sum_too_large", "The frequencies leave nothing for the commonest token.", tables=[(0, {**one, 1: (14, 7), 2: (12, 7)})])
    bad_static("table_last_is_0", "The frequency of a table's last token is 0.", tables=[(0, {**one, 6: (0, 0)})])
    bad_static("states_short", "Three bytes of states are missing.", states=lambda b: b[:13], words=lambda b: b"")
    rare = Bits().put(0, 22).put(0, 7).put(1, 8).put(1, 8).put(1, 4)  # token 0 has the frequency 1
    states = b"".join((1 << k).to_bytes(4, "little") for k in (16, 31, 31, 31))
    bad_static("words_missing_of_each_state", "The first state lacks a word after a unit, and all four after another.", block=context_block(2, rare, states),
               old=bytes(12), new_=b"\1" + bytes(11))
    bad_static("state_missing", "A state and all words are missing.", states=lambda b: b[:12], words=lambda b: b"")
    bad_static("state_too_small", "A state is below 2^16.", states=lambda b: b[:4] + b"\xff\xff\0\0" + b[8:])
    bad_static("half_a_word", "Half a word is left over.", words=lambda b: b + b"\0")
    bad_static("word_left_over", "A word is left over.", words=lambda b: b + b"\0\0")
    bad_static("word_missing", "The last word is missing.", words=lambda b: b[:-2], old=LONG[0], new_=LONG[1], dtype="U16")
    bad_static("words_missing", "All words are missing.", words=lambda b: b"", old=LONG[0], new_=LONG[1], dtype="U16")
    bad_static("state_at_end", "A state does not end at 2^16.", states=lambda b: (int.from_bytes(b[:4], "little") + 1).to_bytes(4, "little") + b[4:],
               tables=[(0, {1: (4, 0)})], **single)
    bad_static("distance_too_large", "A distance is 2^(m-1), but up.", old=b"\0" * 4, new_=b"\0\x80\0\0", turned=True)
    bad_static("nothing", "A block that is not empty changes nothing.", block=static(bytes(4), bytes(4), "U8"), **single)


# ---- Section 7.5: dense blocks, whose bases are generated, and faults that one check alone finds --------------------

CLASS_BITS = {"F16": 10, "BF16": 7, "F32": 23, "C64": 23, "F64": 52}


def dense_base(dtype, count, seed):
    """Units of 8 classes, or of 16, the lower of them commoner; floats of both signs."""
    c, shift = CARRIER[dtype], CLASS_BITS.get(dtype, 8 * CARRIER[dtype] - 8)
    first = (0x3C << 8 * c - 8) if dtype in CLASS_BITS else 0x30 << shift
    step = 1 << shift + 3 >> 16
    fewer = 13 - shift if shift < 13 else 0
    if dtype not in CLASS_BITS and c == 1:
        step, fewer = 1, 12  # each byte is a class
    return Generated(seed, count, c, first, fewer, max(step, 1), 0 if dtype in INTEGER else 1 << 8 * c - 1)


def dense_moves(old, dtype, seed, share_of, odd):
    """The units moved: one in ``share_of`` (more of the lower classes), mostly by little, now and then by any octave (one in ``odd``)."""
    c, s = CARRIER[dtype], seed
    m, half = 8 * c, 1 << 8 * c - 1

    def order(x):  # its own inverse but for the direction
        return x if dtype in INTEGER else x + half if x < half else 2 * half - 1 - x

    def back(x):
        return x if dtype in INTEGER else x - half if x >= half else 2 * half - 1 - x
    new, at = bytearray(old), 0
    for i in range(0, len(old), c):
        s = (s * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        if (s >> 40) % (share_of << (i // c * 4 // (len(old) // c)) % 3) == 0:
            k = min(((s >> 20 & 0xFFFF) | 1 << 15).bit_length() - 1 - ((s >> 20 & 0xFFFF).bit_length() - 1 if s >> 20 & 0xFFFF else 0), m - 1)
            if (s >> 3) % odd == 0:
                k, at = at % m, at + 1  # each octave in turn
            distance = (1 << k) + (s >> 5) % (1 << k)
            x = int.from_bytes(old[i:i + c], "little")
            up = s >> 4 & 1 and distance < half
            moved = back((order(x) + (distance if up else -distance)) % (2 * half))
            new[i:i + c] = moved.to_bytes(c, "little")
    return bytes(new)


def context_dense():
    def good(name, comment, dtype, units, new_, coder=adaptive, **options):
        old = generated(units)
        shape = [len(old) * 8 // BITS[dtype]]
        ok("context_" + name, comment, {"t": T(dtype, shape, old)}, {"t": T(dtype, shape, new_)},
           [delta("t", "context", blocks=[coder(old, new_, dtype, **options)], changed=len(distances(old, new_, dtype)[0]))], made=units)
    many = {"U8": 100_000, "BF16": 131_072, "F32": 100_000}
    for seed, dtype in enumerate(("U8", "BF16", "F32", "F16", "U32", "F64", "I64", "C64", "I16", "F8_E4M3", "F4", "F6_E2M3"), 100):
        units = dense_base(dtype, many.get(dtype, 24_000), seed)
        old = generated(units)
        good(f"dense_adaptive_{dtype.lower()}", f"The adaptive form of many units with many changes in every octave, {dtype}.", dtype, units,
             dense_moves(old, dtype, seed, 14, 24))
    for seed, dtype in enumerate(("U8", "BF16", "F32", "F16", "U32", "C64", "I16", "F8_E5M2", "F4"), 120):
        units = dense_base(dtype, many.get(dtype, 24_000), seed)
        old = generated(units)
        classes = moves(old, old, dtype)[0]
        span, n = max(classes) - min(classes) + 1, units.count
        r, c, width, count = {"U8": (7, 5, 333, 64), "BF16": (3, 3, 256, 40), "F32": (3, 3, 500, 5), "I16": (3, 0, 77, 33)}.get(dtype, (0, 2, 100, 8))
        phase = {"BF16": 0}.get(dtype, width - 1)
        rows = [i * 5 % 2 ** r for i in range(-(-(phase + n) // width))]
        columns = [i * 3 % 2 ** c for i in range(width)]
        contexts = span * (2 ** r + 2 ** c - 1)
        good(f"dense_static_{dtype.lower()}", f"The static form of many units with many changes in every octave, levels of {r} and {c} bits, "
             f"{count} groups, {dtype}.", dtype, units, dense_moves(old, dtype, seed, 13 if dtype in many else 6, 60), static, level_bits=(r, c), width=width, phase=phase,
             rows=rows, columns=columns, groups=[i * count // contexts for i in range(contexts)][::-1], tables="fit")
    same_class = Generated(0, 20_000, 1, 7, 0, 0, 0)
    steps = [1] * 6000 + [2] * 6000 + ([1] * 9 + [2] * 9 + [3]) * 200
    good("adaptive_equal_bits", "Thousands of equal bits in one context, then the other bit.", "U8", same_class,
         bytes(7 + d for d in steps) + bytes([7]) * (20_000 - len(steps)), rates=[50])
    good("adaptive_equal_sides", "Thousands of equal sides in one context, then the other.", "U8", same_class,
         bytes([7 + 8]) * 6000 + bytes([7 + 8, 7 - 7 - 1 & 255] * 100) + bytes([7]) * 13_800, rates=[50])
    old = bytes([1] * 8 + [1, 2, 1] * 200)
    turned_ = bytes(x ^ 4 << i % 5 if i > 8 and (i * i + i // 7) % 6 == 0 else x for i, x in enumerate(old))
    for name, comment, options in (("sum_of_two", "Two quiet units of weight 2^25 end a run, at a pace of 2^16.", {}),
                                   ("sum_of_eight", "Eight quiet units of weight 2^23 end a run, at a pace of 2^16.", {"rates": [41, 41]}),
                                   ("all_bytes", "A decoder takes just as many range coded bytes as there are.", {"full": True})):
        ok("context_adaptive_" + name, comment, {"t": T("U8", [len(old)], old)}, {"t": T("U8", [len(old)], turned_)},
           [delta("t", "context", blocks=[adaptive(old, turned_, "U8", span=(1, 2), **{"rates": [45, 45], **options})],
                  changed=sum(a != b for a, b in zip(old, turned_)))])
    quiet = Generated(0, 70_000, 1, 5, 0, 0, 0)
    rare = bytearray(generated(quiet))
    for i in (3, 5, 16, 28, 41, 55, 30_000, 30_001, 69_999):
        rare[i] = 6
    good("adaptive_rare", "A change that is hardly likely takes two renormalisations at once; runs are long.", "U8", quiet, bytes(rare), rates=[1])
    good("adaptive_quiet", "Changes at the lowest pace.", "U8", quiet, bytes(rare), rates=[30])
    good("static_one_token", "Every unit changes, and alike: a table of one token.", "BF16", Generated(0, 3000, 2, 0x3F80, 0, 0, 0),
         b"\x81\x3f" * 3000, static, tables="fit")


def context_single_checks():
    """Each of these would decode to what its digests say if the one check that refuses it were missing."""
    def bad_(name, comment, coded, dtype, old, new_, made=None, blocks=None):
        shape = [len(old) * 8 // BITS[dtype]]
        patch = patch_file({"t": T(dtype, shape, old)}, {"t": T(dtype, shape, new_)},
                           [delta("t", "context", blocks=blocks or [coded], changed=len(distances(old, new_, dtype)[0]))])
        vector("context_" + name, "format", comment, weights({"t": T(dtype, shape, old)}), patch, units=made)
    last = bytes(3) + b"\1"
    bad_("adaptive_code_leaves_range_at_end", "After the last unit, which changed, code is above the range's upper part.",
         adaptive(bytes(4), last, "U8", leave="change"), "U8", bytes(4), last)
    for n in range(2, 400):
        coded = adaptive(bytes(n), b"\1" + bytes(n - 1), "U8", rates=[44], leave="last run")
        if coded:
            break
    bad_("adaptive_code_leaves_range_in_last_run", "After a run of four octaves that ends with the block code is above the range's upper part.",
         coded, "U8", bytes(n), b"\1" + bytes(n - 1))
    old, new_ = sample("U8", 60, 13)
    bad_("adaptive_one_byte_over", "One range coded byte is left over.", adaptive(old, new_, "U8", over=True), "U8", old, new_)
    bad_("adaptive_only_zero", "The only range coded byte is 0.", context_block(1, Bits().put(0, 16).put(50, 6).put(0, 1), b"\0"), "U8", b"\0", b"\1")
    span, groups = (0, 255), [0] * 256
    flat = {"level_bits": (1, 0), "span": span, "groups": [0] * 512}
    bad_("static_phase_is_width_only", "The phase is the width, and all else is as if it could be.",
         static(old, new_, "U8", **flat, width=60, phase=60, rows=[0, 1], columns=[0] * 60), "U8", old, new_)
    bad_("static_phase_over_width", "The phase is above the width, and all else is as if it could be.",
         static(old, new_, "U8", **flat, width=20, phase=30, rows=[0, 1, 0, 1, 0], columns=[0] * 20), "U8", old, new_)
    bad_("static_state_ends_elsewhere", "The first state ends at 2^16 + 1.", static(old, new_, "U8", end=(1 << 16) + 1), "U8", old, new_)
    bad_("static_state_begins_small", "The first state is below 2^16; a word fills it up.",
         static(bytes(8), bytes(7) + b"\1", "U8", early=True, tables=[(0, {1: (6, 0)})]), "U8", bytes(8), bytes(7) + b"\1")
    unused = [c for c in range(256) if c not in old][0]
    for name, comment, there, back_ in (("group_too_large", "A context that no unit has is of a group that there is not.", 2, 1),
                                        ("group_negative", "A context that no unit has is of the group -1.", 1, 2)):
        def put(bits, there=there, back_=back_):
            for c in range(256):
                number(bits, there if c == unused else back_ if c == unused + 1 else 0)
        bad_(f"static_{name}_unused", comment, static(old, new_, "U8", span=span, groups=groups, map_=put), "U8", old, new_)
    six = {t: (8, t) for t in range(1, 6)}
    bad_("static_table_common_behind_last", "A table's commonest token is one behind its last, and takes no slot of a token that there is.",
         static(old, new_, "U8", tables=[(6, {**six, 0: (13, 0)}, 5)]), "U8", old, new_)
    two_old, two_new = sample("U8", 60, 15, 2)
    full = {0: (14, 0), 1: (13, 0), 2: (12, 0), 3: (11, 0), 4: (11, 0)}
    bad_("static_table_nothing_left", "The frequencies leave 0 for the commonest token, which does not occur.",
         static(two_old, two_new, "U8", tables=[(5, {**full, 6: (0, 0)}, 5)]), "U8", two_old, two_new)
    bad_("static_table_common_0", "The frequencies leave 0 for the commonest token, which is not the last and does not occur.",
         static(two_old, two_new, "U8", tables=[(3, {0: (14, 0), 1: (13, 0), 2: (12, 0), 4: (12, 0)})]), "U8", two_old, two_new)
    for name, dtype, block in (("adaptive", "U64", context_block(1, Bits().put(0, 16).put(0, 6), b"")),
                               ("static", "U32", context_block(2, Bits().put(0, 16).put(0, 6).put(0, 6).put(0, 1).put(0, 16), b"\0\0\1\0" * 4))):
        c = CARRIER[dtype]
        units = Generated(0, BLOCK // c + 1, c, 0, 0, 0, 0)
        old_ = generated(units)
        new_last = old_[:-c] + b"\1" + bytes(c - 1)
        second = adaptive(bytes(c), b"\1" + bytes(c - 1), dtype)
        bad_(f"{name}_nothing_in_one_block", "The first of two blocks is not empty, but changes nothing.", None, dtype, old_, new_last, units,
             blocks=[block, second])



def set_bits(data, at, k, value):
    number_ = int.from_bytes(data, "little")
    number_ = number_ & ~((1 << k) - 1 << at) | value << at
    return number_.to_bytes(len(data), "little")


LONG = sample("U16", 400, 10, 40000, 2)
COMMON_AT = 8 + 8 + 6 + 6 + 256 + 8  # behind lo, hi, level bits, groups, 256 steps of one bit, and last


def base_vectors():
    def other(name, comment, base, expect="wrong_base"):
        vector(name, expect, comment, base if isinstance(base, (bytes, dict)) else weights(base), basic())
    other("base_lacks_tensor", "The base has no tensor w.", weights({"a": BASE["a"]}))
    other("base_other_dtype", "The base's a is of another dtype.", weights({**BASE, "a": T("I8", [4], BASE["a"].data)}))
    other("base_other_digest_of_same", "The base's a, which stays the same, has other bytes.",
          weights({**BASE, "a": T("U8", [4], "01020305")}))
    other("base_other_digest_of_delta", "The base's w has other bytes.", weights({**BASE, "w": T("BF16", [8], "813f" * 8)}))
    other("base_is_target_already", "The base is the target.", weights(TARGET), "already_target")
    other("base_is_target_in_part", "The base's w is the target's, but a is another's.",
          weights({**TARGET, "a": T("U8", [4], "ffffffff")}), "already_target")
    pair = {"b": T("U8", [2], "0000"), "w": BASE["w"]}
    pair_new = {"b": T("U8", [2], "0001"), "w": TARGET["w"]}
    vector("base_has_one_delta_of_two", "wrong_base", "The base has the target's w, but neither b.",
           weights({"b": T("U8", [2], "0505"), "w": TARGET["w"]}), patch_file(pair, pair_new, [delta("b"), delta("w")]))
    other("base_truncated", "The base is no safetensors file: its last byte is missing.", BASE_FILE[:-1], "checkpoint")
    folder = {"x/m.safetensors": BASE_FILE, "y/m.safetensors": BASE_FILE}
    other("base_lacks_scope", "The base has two scopes, and the patch's is neither.", folder)
    head = header(BASE).rstrip(b" ")
    for name, end in (("newline", b"\n"), ("tab", b" \t"), ("carriage_return", b"\r")):
        vector(f"ok_base_header_ends_with_{name}", "success", f"The base's header ends with a {name.replace('_', ' ')} behind its JSON.",
               weights(BASE, head + end), basic(), output=basic().output)
    other("base_header_begins_with_newline", "The base's header begins with a newline.", weights(BASE, b"\n" + head), "checkpoint")
    other("base_header_ends_with_form_feed", "A form feed follows the JSON of the base's header.", weights(BASE, head + b"\f"), "checkpoint")

    third, entries = {**TWO_TARGET, "n": T("U8", [1], "0a")}, [same("w"), delta("n")]
    first, second, start = two(), patch_file(TWO_TARGET, third, entries), weights(TWO_BASE)
    vector("ok_chain_of_two", "success", "Two patch files, applied one after the other.", start, first, second,
           output=second.output)
    vector("chain_in_wrong_order", "wrong_base", "The patches of a chain are given in the wrong order.", start, second,
           first)
    vector("chain_same_patch_twice", "wrong_base", "A patch follows itself.", start, first, first)
    broken = patch_file(TARGET, third, entries, file=lambda b: b + b"\0")
    vector("chain_second_patch_broken", "format", "The second patch of a chain has a trailing byte.", start, first, broken)
    liar = patch_file(TARGET, third, entries,
                      identities=(identity({"": TWO_BASE}), identity({"": third})))
    vector("chain_identity_differs", "wrong_base", "The second patch fits in its tensors, but states another base identity.",
           start, first, liar)


# ---- Sections 6, 8 and 10: bases made of pieces ---------------------------------------------------------------------

def chain_of(*steps):
    """Tensors, then (entries, tensors) for each patch: the patches, which fit each other."""
    patches, before = [], steps[0]
    for entries, after in steps[1:]:
        patches.append(patch_file(before, after, entries))
        before = after
    return patches


LIMIT = 1 << 20  # pieces of a table


def many_pieces(more, **options):
    """A patch with so many pieces more than a table may have: all but one of an entry t, the last of an entry u."""
    n = LIMIT + more - 1
    base = {"a": T("U8", [1], "01")}
    target = {"t": T("U8", [n], b"\1" * n), "u": T("U8", [2], "0100")}
    found = []
    return base, patch_file(base, target, [same("t", pieces=[["a", 0, 1]] * n), same("u", pieces=[["a", 0, 1]])],
                            table_content=lambda content: found.append(content) or b"",
                            table_frame=lambda _: frame_repeating(found[0], b'["a",0,1],'), **options)


def piece_rejections():
    f, u, top = "format", "unsupported", 1 << 48

    def bad_pieces(name, comment, pieces, expect=f, **base):
        """The entry a, four units of U8, with these pieces."""
        bad_entry("table_piece" + name, expect, comment, A, base={"pieces": pieces, **base})
    bad_pieces("s_empty", "An entry has an empty list of pieces.", [])
    bad_pieces("s_null", "The pieces of an entry are null.", None)
    bad_pieces("s_not_a_list", "The pieces of an entry are an object.", {})
    bad_pieces("_not_a_list", "A piece is the name of a tensor.", ["w"])
    bad_pieces("_of_two", "A piece has no number of units.", [["w", 0]])
    bad_pieces("_of_four", "A piece has a fourth item.", [["w", 0, 1, 0]])
    bad_pieces("_name_empty", "The name of a piece is empty.", [["", 0, 1]])
    bad_pieces("_name_too_long", "The name of a piece has 4,097 bytes.", [["w" * 4097, 0, 1]])
    bad_pieces("_name_is_a_number", "The name of a piece is a number.", [[0, 0, 1]])
    bad_pieces("_first_negative", "A piece begins at -1.", [["w", -1, 2]])
    bad_pieces("_first_boolean", "A piece begins at false.", [["w", False, 2]])
    bad_pieces("_first_is_a_text", "A piece begins at a text.", [["w", "0", 2]])
    bad_pieces("_units_0", "A piece has no units.", [["w", 0, 0], ["a", 0, 1]])
    bad_pieces("_units_negative", "A piece has -1 units.", [["w", 0, -1], ["a", 0, 1]])
    bad_pieces("_units_boolean", "A piece has true units.", [["w", 0, True]])
    bad_pieces("_units_null", "A piece has null units.", [["w", 0, None]])
    bad_pieces("_ends_past_2_48", "A piece ends at 2^48 + 1.", [["w", top, 1]])
    bad_pieces("_longer_than_the_entry", "A piece is of five units, for an entry of four.", [["w", 0, 5]])
    bad_pieces("s_longer_than_the_entry", "Pieces are of five units together, for an entry of four.", [["w", 0, 3], ["w", 0, 2]])
    bad_pieces("s_longer_with_zeros", "Pieces are of five units together, zeros counted, for an entry of four.",
               [["w", 0, 2], [None, 0, 2], ["w", 0, 1]])
    bad_pieces("s_of_zeros_only", "The only piece of an entry is of zeros.", [[None, 0, 4]])
    bad_pieces("_of_zeros_with_first", "A piece of zeros begins at 1.", [[None, 1, 1], ["w", 0, 1]])
    bad_pieces("_of_zeros_without_units", "A piece of zeros has no units.", [[None, 0, 0], ["w", 0, 1]])
    bad_pieces("s_end_in_zeros", "The last piece of an entry is of zeros.", [["w", 0, 1], [None, 0, 1]])
    bad_pieces("s_zeros_twice", "Two pieces of zeros stand beside each other.", [[None, 0, 1], [None, 0, 1], ["w", 0, 1]])
    bad_pieces("s_say_the_default", "An entry's only piece is the tensor of its own name, from unit 0, with the entry's units.", [["a", 0, 4]])
    bad_pieces("s_say_the_default_with_dtype", "The same beside a dtype.", [["a", 0, 4]], dtype="I8")
    bad_pieces("s_could_be_one", "A piece begins where the piece before it ends, in the same tensor.", [["w", 0, 1], ["w", 1, 1]])
    bad_pieces("s_could_be_one_behind_others", "The last two of four pieces could be one.",
               [["w", 0, 1], [None, 0, 1], ["w", 1, 1], ["w", 2, 1]])
    bad_pieces("s_and_unknown_member", "A base has pieces and an unknown member.", [["w", 0, 4]], u, first=0)
    vector("table_pieces_of_empty_tensor", f, "An entry without units has a piece.", BASE_FILE, patch_file(
        BASE, {"a": T("U8", [0], b"")}, [same("a")], table=lambda t: t["tensors"][0].update(base={"pieces": [["w", 0, 1]]})))
    base, patch = many_pieces(1)
    vector("table_pieces_too_many", f, "The entries of a table have 2^20 + 1 pieces together.", weights(base), patch)
    base, patch = many_pieces(0)
    vector("ok_pieces_at_limit", "success", "The entries of a table have 2^20 pieces together.", weights(base), patch, output=patch.output)

    for base, target in (("F64", "F32"), ("F32", "F64"), ("F16", "F8_E5M2"), ("U8", "F16"), ("BF16", "U32"), ("C64", "BF16")):
        old, t = ({"t": T(dtype, [1], bytes(BITS[dtype] // 8))} for dtype in (base, target))
        vector(f"table_cast_{base}_to_{target}".lower(), f, f"There is no rule for {base} as the base of {target}.", weights(old),
               patch_file(old, t, [same("t", dtype=base)]))

    old = {"x": T("U8", [2], "0102")}
    vector("table_removed_is_a_piece", f, "A removed name is that of a piece.", weights(old), patch_file(
        old, {"y": old["x"]}, [same("y", pieces=[["x", 0, 2]])], removed=["x"]))
    two_old, two_new = {M1: {"a": BASE["a"], "x": BASE["a"]}, M2: {"w": BASE["w"]}}, {M1: {"a": BASE["a"]}, M2: {"y": BASE["a"]}}
    vector("folder_removed_is_piece_of_other_file", f, "A name removed in the first file is a piece in the second.", file_bytes(two_old),
           patch_folder(two_old, two_new, {M1: [same("a")], M2: [same("y", pieces=[["x", 0, 4]])]}, shard={M1: {"removed": ["w", "x"]}}))


def rows_of(data, row, chosen):
    """These rows of a table of bytes, and the pieces that say so: of neighbours one."""
    pieces = []
    for k in chosen:
        if pieces and pieces[-1][1] + pieces[-1][2] == k * row:
            pieces[-1][2] += row
        else:
            pieces.append(["table", k * row, row])
    return b"".join(data[k * row:k * row + row] for k in chosen), pieces


def turned(data, at=-1):
    """The same bytes with a bit of one turned."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def piece_successes():
    a = {"a": T("U8", [6], "010203040506")}
    ok("pieces_renamed_cut_and_extended", "Tensors of another name: whole in another shape, cut at both ends, extended by zeros.", a,
       {"whole": T("U8", [2, 3], "010203040506"), "cut": T("U8", [3], "020304"), "longer": T("U8", [8], "0304050600000000"),
        "near": T("U8", [8], "0304050700000009")},
       [same("whole", pieces=[["a", 0, 6]]), same("cut", pieces=[["a", 1, 3]]), same("longer", pieces=[["a", 2, 4]]),
        delta("near", pieces=[["a", 2, 4]])])
    ok("pieces_of_own_name", "Pieces of the base tensor of the entry's own name: its end, its beginning, its halves exchanged.",
       {"a": a["a"], "b": a["a"], "c": a["a"]},
       {"a": T("U8", [5], "0203040506"), "b": T("U8", [6], "010203000000"), "c": T("U8", [6], "040506010203")},
       [same("a", pieces=[["a", 1, 5]]), same("b", pieces=[["b", 0, 3]]), same("c", pieces=[["c", 3, 3], ["c", 0, 3]])])
    q, k, v = (T("BF16", [2, 2], sample("BF16", 4, seed)[0]) for seed in (31, 32, 33))
    qkv, apart = {"q": q, "k": k, "v": v}, [["q", 0, 4], ["k", 0, 4], ["v", 0, 4]]
    joined = T("BF16", [6, 2], q.data + k.data + v.data)
    moved = T("BF16", [3, 2, 2], turned(turned(joined.data, 4), 16))
    ok("pieces_fused", "Three tensors become one: as it is, and with changes.", qkv, {"qkv": joined, "moved": moved},
       [same("qkv", pieces=apart), delta("moved", pieces=apart)])
    ok("pieces_split", "One tensor becomes three, of which one changes.", {"qkv": joined}, {"q": q, "k": T("BF16", [2, 2], turned(k.data)), "v": v},
       [same("q", pieces=[["qkv", 0, 4]]), delta("k", pieces=[["qkv", 4, 4]]), same("v", pieces=[["qkv", 8, 4]])])
    zeros = T("U8", [9], "000102000003040000")
    between = [[None, 0, 1], ["a", 0, 2], [None, 0, 2], ["a", 2, 2]]
    ok("pieces_with_zeros_between", "Zeros before, between and behind runs of a tensor.", a, {"z": zeros, "d": T("U8", [9], "000102000103040001")},
       [same("z", pieces=between), delta("d", pieces=between)])
    table = sample("U8", 40 * 3, 34)[0]
    state, chosen = 35, []
    for row in range(40):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        chosen += [row] * (state >> 60 & 1)
    kept, pieces = rows_of(table, 3, chosen)
    ok("pieces_rows_at_random", "Rows of a table are left out at random: as it is, and with a change and five new rows.",
       {"table": T("U8", [40, 3], table)},
       {"table": T("U8", [len(chosen), 3], kept), "more": T("U8", [len(chosen) + 5, 3], turned(kept, 7) + bytes(range(15)))},
       [same("table", pieces=pieces), delta("more", pieces=pieces)])
    ok("pieces_repeat_and_overlap", "Runs of one tensor repeat and overlap.", a,
       {"r": T("U8", [12], "010203010203020304030405"), "s": T("U8", [4], "06060606")},
       [same("r", pieces=[["a", 0, 3], ["a", 0, 3], ["a", 1, 3], ["a", 2, 3]]), same("s", pieces=[["a", 5, 1]] * 4)])
    wide = {"x": T("F32", [3], b"".join(bytes.fromhex(text)[::-1] for text in ("3f808000", "7f800001", "00008000"))),
            "y": T("F32", [2], b"".join(bytes.fromhex(text)[::-1] for text in ("3f818000", "c0000000")))}
    narrow = b"".join(bytes.fromhex(text)[::-1] for text in ("3f82", "c000", "0000", "3f80", "7fc0", "0000"))
    several = [["y", 0, 2], [None, 0, 1], ["x", 0, 2]]
    ok("pieces_cast", "Pieces of F32 make a tensor of BF16, with zeros between and behind.", wide,
       {"s": T("BF16", [6], narrow), "d": T("BF16", [6], turned(narrow, 0))},
       [same("s", dtype="F32", pieces=several), delta("d", dtype="F32", pieces=several)])
    halves = {"h": T("F16", [3], "003c00bc0100")}
    n = BLOCK // 4
    far = [["h", 0, 3], [None, 0, n - 4], ["h", 0, 3]]
    spread = adapt(halves, "", T("F32", [n + 3], bytes(4 * n + 12)), "F16", far)
    ok("pieces_across_blocks", "A cast run lies across the end of a block: as it is, and with a change behind it.", halves,
       {"s": T("F32", [n + 3], spread), "d": T("F32", [n + 3], turned(spread))},
       [same("s", dtype="F16", pieces=far), delta("d", dtype="F16", pieces=far, changed=1, blocks=[
           b"", sparse_of(spread[BLOCK:], turned(spread)[BLOCK:], "F32", w=4)])])
    n = BLOCK - 1
    odd = [["a", 0, 4], [None, 0, n - 6], ["a", 1, 5]]
    ok("pieces_across_blocks_of_bytes", "A run of an odd number of bytes lies across the end of a block.", a,
       {"t": T("U8", [n + 5], adapt(a, "", T("U8", [n + 5], bytes(n + 5)), None, odd))}, [same("t", pieces=odd)])

    for carrier, pairs in ((1, "U8 F8_E4M3, F4 U8, U8 F4, F8_E8M0 F8_E5M2, BOOL I8, F6_E2M3 U8, F4 F8_E4M3FNUZ"), (2, "U16 BF16, F16 I16"),
                           (4, "U32 F32, F32 C64, C64 I32"), (8, "I64 F64, U64 I64")):
        base, target, entries = {}, {}, []
        data = sample({1: "U8", 2: "U16", 4: "U32", 8: "U64"}[carrier], 24 // carrier * 2, 36 + carrier)[0]
        for i, pair in enumerate(pairs.split(", ")):
            old, made = pair.split()
            base[f"s{i}"] = T(old, [len(data) * 8 // BITS[old]], data)
            for name, content in ((f"s{i}", data), (f"d{i}", turned(data)), (f"p{i}", data[24:] + data[:24])):
                target[name] = T(made, [len(data) * 8 // BITS[made]], content)
            entries += [same(f"s{i}", dtype=old), delta(f"d{i}", dtype=old, pieces=[[f"s{i}", 0, 48 // carrier]], w=carrier),
                        same(f"p{i}", dtype=old, pieces=[[f"s{i}", 24 // carrier, 24 // carrier], [f"s{i}", 0, 24 // carrier]])]
        ok(f"bits_as_they_are_{8 * carrier}", f"Dtypes with units of {8 * carrier} bits stand for each other, bits as they are.",
           base, target, entries)

    first = {"x/m.safetensors": {"t": a["a"]}, "y/m.safetensors": {"t": T("U8", [6], "111213141516")}}
    second = {"x/m.safetensors": {"u": T("U8", [3], "010203")}, "y/m.safetensors": {"t": T("U8", [3], "141516"), "u": T("U8", [2], "1112")}}
    vector("ok_folder_pieces_of_own_scope", "success", "Two scopes hold the same name, and each takes pieces of its own.", file_bytes(first),
           patch_folder(first, second, {"x/m.safetensors": [same("u", pieces=[["t", 0, 3]])], "y/m.safetensors": [
               same("t", pieces=[["t", 3, 3]]), same("u", pieces=[["t", 0, 2]])]}), output=file_bytes(second))
    first = {M1: {"q": q, "k": k}, M2: {"v": v, "w": BASE["w"], "gone": a["a"]}}
    second = {M1: {"w": BASE["w"], "tied": joined}, M2: {"qkv": joined, "k": T("BF16", [2, 2], turned(k.data))}}
    vector("ok_folder_pieces_of_several_files", "success", "A tensor is made of pieces that lie in two files, and another is a copy of it.",
           file_bytes(first), patch_folder(first, second, {M1: [same("w"), copy("tied", "qkv")], M2: [same("qkv", pieces=apart), delta("k")]}),
           output=file_bytes(second))

    # Chains.
    steps = chain_of(qkv, ([delta("all", pieces=apart)], {"all": moved}), ([
        same("q", pieces=[["all", 0, 8]]), delta("rest", pieces=[["all", 8, 4]])], {
        "q": T("BF16", [4, 2], moved.data[:16]), "rest": T("BF16", [2, 2], turned(moved.data[16:]))}))
    vector("ok_chain_of_two_with_pieces", "success", "Three tensors become one, which is split in two.", weights(qkv), *steps, output=steps[-1].output)
    shift, shifted = [["t", 6, 6], ["t", 0, 6]], [{"t": T("U8", [4, 3], bytes(range(12)))}]
    for _ in range(3):
        last = shifted[-1]["t"].data
        shifted.append({"t": T("U8", [4, 3], turned(last[6:] + last[:6], 3))})
    steps = chain_of(shifted[0], *(([delta("t", pieces=shift)], tensors) for tensors in shifted[1:]))
    vector("ok_chain_of_three_with_pieces", "success", "The halves of a tensor change places in each patch, and a unit changes.",
           weights(shifted[0]), *steps, output=steps[-1].output)
    up = T("F32", [4], b"".join(bytes.fromhex(text)[::-1] for text in ("3f800000", "40000001", "c0000000", "3f808001")))
    down = T("BF16", [4], cast(up.data, "F32", "BF16"))
    back = T("F32", [6], cast(down.data[4:] + down.data[:4], "BF16", "F32") + bytes(8))
    steps = chain_of({"t": up}, ([same("t", dtype="F32")], {"t": down}), ([delta("u", dtype="BF16", pieces=[["t", 2, 2], ["t", 0, 2]], w=4)], {
        "u": T("F32", [6], turned(back.data))}), ([same("v", pieces=[["u", 4, 2], ["u", 0, 4]])], {
            "v": T("F32", [2, 3], turned(back.data)[16:] + back.data[:16])}))
    vector("ok_chain_of_three_with_casts", "success", "A tensor is cast down, then up with its halves exchanged, then moved once more.",
           weights({"t": up}), *steps, output=steps[-1].output)
    steps = chain_of({"t": a["a"]}, ([same("u", pieces=[["t", 2, 4]]), copy("c", "u")], {"u": T("U8", [4], "03040506"), "c": T("U8", [4], "03040506")}), (
        [delta("u", pieces=[["c", 1, 3], ["u", 0, 2]])], {"u": T("U8", [5], "0405060305")}))
    vector("ok_chain_of_pieces_of_a_copy", "success", "A piece is of a tensor which the patch before makes as a copy.",
           weights({"t": a["a"]}), *steps, output=steps[-1].output)


def piece_bases():
    """Bases that fit, that do not, and that are the target already (section 10)."""
    wrong, already = "wrong_base", "already_target"
    old = {"x": T("U8", [4], "01020304"), "y": T("U8", [4], "05060708"), "z": T("U8", [2], "0900")}
    made = {"xy": T("U8", [7], "01020306070809"), "z": T("U8", [2], "0901")}
    fused = patch_file(old, made, [delta("xy", pieces=[["x", 0, 3], ["y", 1, 3]]), delta("z")])

    def fits(name, comment, **tensors):
        vector("ok_base_" + name, "success", comment, weights({**old, **tensors}), fused, output=fused.output)
    fits("longer_than_what_is_used", "The base's tensors are longer than the pieces of them, and differ elsewhere.",
         x=T("U8", [2, 3], "010203ffffff"), y=T("U8", [5], "ff060708ff"))
    fits("longer_than_the_target", "The base tensor of the entry's own name is longer than the entry.", z=T("U8", [3], "0900ff"))
    fits("shorter_by_zeros", "The base tensor of the entry's own name lacks a zero, which it is extended by.", z=T("U8", [1], "09"))
    fits("of_other_shapes", "The base's tensors have other shapes.", x=T("U8", [2, 2], "01020304"), z=T("U8", [1, 2, 1], "0900"))

    def other(name, expect, comment, **tensors):
        vector("base_" + name, expect, comment, weights({k: t for k, t in {**old, **tensors}.items() if t}), fused)
    other("lacks_piece", wrong, "The base lacks the tensor of a piece.", y=None)
    other("piece_of_other_dtype", wrong, "The base's tensor of a piece has another dtype.", y=T("I8", [4], "05060708"))
    other("piece_too_short", wrong, "The base's tensor of a piece has a unit less than the piece needs.", y=T("U8", [3], "050607"))
    other("one_of_two_pieces_differs", wrong, "One of two pieces has other bytes in the base.", y=T("U8", [4], "05060709"))
    other("pieces_exchanged", wrong, "The tensors of two pieces are exchanged in the base.", x=old["y"], y=old["x"])
    other("holds_one_delta_of_pieces", wrong, "The base has the target's tensor of one delta, but not of the other.", x=None, xy=made["xy"])
    other("is_target_beside_pieces", already, "The base lacks a piece, but has what all deltas give, beside others.", x=None, **made)
    vector("base_is_target_of_pieces", already, "The base is the target, and lacks the tensors of pieces.", weights(made), fused)
    vector("base_piece_at_2_48", wrong, "A piece ends at 2^48, where no tensor of the base does.", BASE_FILE, basic(
        table=lambda t: t["tensors"][A].update(base={"pieces": [["a", (1 << 48) - 1, 1]]})))
    plain = {"t": T("U8", [8], bytes(8))}
    vector("base_extended_is_not_the_target", wrong, "A base extended by zeros is not the target that stays the same.", weights(plain),
           patch_file(plain, {"t": T("U8", [9], b"\0" * 8 + b"\1")}, [same("t")]))
    vector("base_digest_is_of_whole_tensor", wrong, "A delta states the digest of a base tensor as it is, not of what is made of it.",
           weights(old), patch_file(old, {"x": T("U8", [3], "010204")}, [delta("x", base_digest=tensor_digest(old["x"].data))]))

    def turn(name, expect, comment, base, given, target, entries, **options):
        vector("base_" + name, expect, comment, weights(given), patch_file(base, target, entries, **options))
    renamed = {"old": T("U8", [4], "01020304")}, {"new": T("U8", [4], "01020305")}, [delta("new", pieces=[["old", 0, 4]])]
    turn("is_target_of_rename", already, "The base is the target, whose tensor had another name.", renamed[0], renamed[1], *renamed[1:])
    turn("holds_target_under_old_name", wrong, "The base has the target's bytes under the base's name.", renamed[0],
         {"old": renamed[1]["new"]}, *renamed[1:])
    turn("holds_target_in_another_shape", wrong, "The base has the target's tensor, but in another shape.", renamed[0],
         {"new": T("U8", [2, 2], "01020305")}, *renamed[1:])
    turn("holds_target_in_another_dtype", wrong, "The base has the target's tensor, but in another dtype.", renamed[0],
         {"new": T("I8", [4], "01020305")}, *renamed[1:])
    turn("is_target_without_delta", wrong, "The base is the target, but no entry is of kind delta.", {"old": old["x"]}, {"new": old["x"]},
         {"new": old["x"]}, [same("new", pieces=[["old", 0, 4]])])
    up = {"t": T("F32", [2], "0000803f01008040")}, {"t": T("BF16", [2], "803f8140")}
    turn("is_target_of_cast", already, "The base is the target, whose tensor had another dtype.", up[0], up[1], up[1], [delta("t", dtype="F32")])
    turn("is_cast_already", wrong, "The base has the target's dtype, but not its bytes.", up[0], {"t": T("BF16", [2], "803f8040")}, up[1],
         [delta("t", dtype="F32")])
    turn("is_target_with_fewer_rows", already, "The base is the target, which has too few rows for a piece.", {"t": old["x"]},
         {"t": T("U8", [2], "0305")}, {"t": T("U8", [2], "0305")}, [delta("t", pieces=[["t", 2, 2]])])
    before = {"x/m.safetensors": {"t": old["x"]}, "y/m.safetensors": {"t": old["y"]}}
    after = {"p/m.safetensors": {"t": T("U8", [4], "01020305")}, "q/m.safetensors": {"t": T("U8", [4], "05060709")}}
    moved = patch_folder(before, after, {path: [delta("t")] for path in after}, pairs={"p/m": "x/m", "q/m": "y/m"})
    vector("folder_base_is_target_of_other_scopes", already, "The base is the target, and lacks the scopes that the patch is made from.",
           file_bytes(after), moved)
    vector("folder_base_is_target_in_other_scopes", wrong, "The base has what the deltas give, but each in the other's scope.", file_bytes(
        {"p/m.safetensors": after["q/m.safetensors"], "q/m.safetensors": after["p/m.safetensors"]}), moved)
    before = {"m.safetensors": {"v": old["x"]}, "note.txt": b"old"}
    after = {"m.safetensors": {"v": old["x"], "w": T("U8", [4], "01020305")}, "note.txt": b"new"}
    vector("folder_base_is_target_by_its_files", already, "The base is the target: only its files tell, as the pieces are in it too.",
           file_bytes(after), patch_folder(before, after, {"m.safetensors": [same("v"), delta("w", pieces=[["v", 0, 4]])]}, [delta_file("note.txt")]))

    # Chains.
    steps = [{"w": T("U8", [4], data)} for data in ("01020304", "01020305", "01020306")]
    chain = chain_of(steps[0], *(([delta("w")], step) for step in steps[1:]))
    vector("chain_base_is_last_target", already, "The base of a chain is what its last patch gives.", weights(steps[2]), *chain)
    vector("chain_base_is_first_target", wrong, "The base of a chain is what its first patch gives.", weights(steps[1]), *chain)
    end = {"v": steps[1]["w"]}
    chain = chain_of(steps[0], ([delta("w")], steps[1]), ([same("v", pieces=[["w", 0, 4]])], end))
    vector("chain_base_is_target_without_delta", wrong, "The base of a chain is what its last patch gives, which has no entry of kind delta.",
           weights(end), *chain)

    def second(name, expect, comment, entries, after, base):
        """A chain whose second patch takes what the first does not give."""
        given = {"w": T("U8", [4], "01020305"), "v": T("U8", [2], "0809")}
        patch = patch_file(base, after, entries, identities=(identity({"": given}), identity({"": after})))
        vector("chain_" + name, expect, comment, weights({"w": steps[0]["w"], "x": given["v"]}),
               patch_file({"w": steps[0]["w"], "x": given["v"]}, given, [delta("w"), same("v", pieces=[["x", 0, 2]])]), patch)
    second("piece_missing", wrong, "A piece is of a tensor that the patch before leaves out.", [same("v", pieces=[["x", 0, 2]])],
           {"v": T("U8", [2], "0809")}, {"x": T("U8", [2], "0809")})
    second("piece_too_short", wrong, "A piece has more units than the patch before gives.", [same("u", pieces=[["v", 1, 2]])],
           {"u": T("U8", [2], "090a")}, {"v": T("U8", [3], "08090a")})
    second("piece_of_other_dtype", wrong, "A piece is of another dtype in what the patch before gives.", [same("u", dtype="I8", pieces=[["v", 0, 2]])],
           {"u": T("U8", [2], "0809")}, {"v": T("I8", [2], "0809")})
    second("piece_of_other_digest", wrong, "Two pieces are not what the patch before gives.", [delta("u", pieces=[["v", 0, 2], ["w", 2, 1]])],
           {"u": T("U8", [3], "080904")}, {"v": T("U8", [2], "0809"), "w": T("U8", [4], "01020205")})
    second("base_is_target_but_does_not_follow", already, "The second patch takes other bytes than the first gives, but gives what the base has.",
           [delta("w")], {"w": steps[0]["w"]}, {"w": T("U8", [4], "01020207")})


# ---- Section 9: folders ---------------------------------------------------------------------------------------------

M1, M2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
CONFIG_OLD = b'{"hidden_size": 64, "layers": 2, "name": "tiny tiny tiny tiny tiny tiny"}\n'
CONFIG_NEW = b'{"hidden_size": 64, "layers": 3, "name": "tiny tiny tiny tiny tiny tiny"}\n'
CONFIG_DELTA = bytes.fromhex("28b52ffd204a5d0000187b332c020001c2e60e6c")  # from zstd 1.5, level 19
LISTING = json.dumps({"weight_map": {"a": M1, "w": M2, "n": M1, "c": M2}}).encode()
FOLDER_OLD = {M1: {"a": BASE["a"]}, M2: {"w": BASE["w"]}, "model.safetensors.index.json": LISTING,
              "config.json": CONFIG_OLD, "tokenizer/vocab.txt": b"a b c", "notes.txt": b"gone"}
FOLDER_NEW = {M1: {"a": BASE["a"], "n": TARGET["n"]}, M2: {"w": TARGET["w"], "c": TARGET["c"]},
              "model.safetensors.index.json": LISTING, "config.json": CONFIG_NEW, "tokenizer/vocab.txt": b"a b c",
              "README.md": b"hello\n"}
SHARDS = {M1: [same("a"), new("n")], M2: [delta("w"), copy("c", "n")]}
FILES = [same_file("model.safetensors.index.json"), delta_file("config.json", CONFIG_DELTA),
         same_file("tokenizer/vocab.txt"), new_file("README.md")]


def folder(**faults):
    return patch_folder(FOLDER_OLD, FOLDER_NEW, SHARDS, FILES, **faults)


# The broken folders are of a smaller one.
SMALL_OLD = {"m.safetensors": {"a": BASE["a"]}, "keep.txt": b"keep", "edit.txt": b"old text", "gone.txt": b""}
SMALL_NEW = {"m.safetensors": {"a": BASE["a"], "n": TARGET["n"]}, "keep.txt": b"keep", "edit.txt": b"new text",
             "made.txt": b"made"}
SMALL_SHARDS = {"m.safetensors": [same("a"), new("n")]}
SMALL_FILES = [same_file("keep.txt"), delta_file("edit.txt"), new_file("made.txt")]
EDIT, KEEP, MADE = range(3)  # places in the index's files


# And one without weights, for the faults of the index and its files.
TEXT_OLD, TEXT_NEW = ({p: b for p, b in files.items() if p != "m.safetensors"} for files in (SMALL_OLD, SMALL_NEW))


def small(**faults):
    return patch_folder(SMALL_OLD, SMALL_NEW, SMALL_SHARDS, SMALL_FILES, **faults)


def texts(**faults):
    return patch_folder(TEXT_OLD, TEXT_NEW, {}, SMALL_FILES, **faults)


def bad_folder(name, expect, comment, patch=texts, **faults):
    vector("folder_" + name, expect, comment, file_bytes(SMALL_OLD if patch is small else TEXT_OLD), patch(**faults))


def rename_file(old, new_path):
    """A fault: let the index's file have another path, and let it stay sorted."""
    def fault(index):
        next(f for f in index["files"] if f["path"] == old)["path"] = new_path
        index["files"].sort(key=lambda f: f["path"].encode())
    return fault


def folder_vectors():
    f, u, i = "format", "unsupported", "integrity"
    bad_folder("index_missing", f, "There is no ckptdiff.json.", parts=setter("ckptdiff.json", DROP))
    bad_folder("index_with_newline", f, "A newline follows the index.", index_text=lambda b: b + b"\n")
    bad_folder("index_keys_unsorted", f, "Two members of the index are in the wrong order.",
               index_text=swap(b'"format":"ckptdiff-index","info":{}', b'"info":{},"format":"ckptdiff-index"'))
    bad_folder("index_format_wrong", f, "The index has the format of a patch file.", index=setter("format", "ckptdiff"))
    bad_folder("index_version_2", u, "The index has the version 2.", index=setter("version", 2))
    bad_folder("index_unknown_member", u, "The index has an unknown member.", index=setter("other", 1))
    bad_folder("index_unknown_member_of_shard", u, "A shard has an unknown member.", small, index=setter("shards", 0, "other", 1))
    bad_folder("index_unknown_member_of_file", u, "A file has an unknown member.", index=setter("files", 0, "mode", 493))
    bad_folder("index_unknown_kind_of_file", u, "A file is of an unknown kind.", index=setter("files", 0, "kind", "link"))
    bad_folder("index_digest_wrong", i, "The index's digest is another.", index=setter("digest", "0" * 32))
    bad_folder("index_digest_short", f, "The index's digest has 31 digits.", index=setter("digest", "0" * 31))
    for member in ("digest", "base", "shards", "removed"):
        bad_folder(f"index_{member}_missing", f, f"The index has no {member}.", index=setter(member, DROP))
    for member in ("digest",):
        bad_folder(f"shard_without_{member}", f, f"A shard has no {member}.", small, index=setter("shards", 0, member, DROP))
    for member in ("size", "stored", "kind", "base_sha256"):
        bad_folder(f"file_without_{member}", f, f"A file has no {member}.", index=setter("files", EDIT, member, DROP))
    bad_folder("file_same_with_stored", f, "A file of kind same has a stored size.", index=setter("files", KEEP, "stored", 0))
    bad_folder("totals_wrong", f, "The index's totals are not the sum of the shards'.", small, index=setter("totals", "units", 99))
    bad_folder("files_unsorted", f, "The files of the index are not sorted.", index=lambda d: d["files"].reverse())
    bad_folder("file_twice", f, "A file stands twice in the index.", index=lambda d: d["files"].append(d["files"][-1]))
    bad_folder("removed_unsorted", f, "The removed paths are not sorted.", index=setter("removed", ["gone.txt", "a.txt"]))
    bad_folder("removed_is_output", f, "A removed path is an output path.", index=setter("removed", ["keep.txt"]))
    bad_folder("weight_file_among_files", f, "A file of the index is a weight file.", index=rename_file("keep.txt", "keep.safetensors"))

    unsafe = {"parent": "../keep.txt", "parent_inside": "a/../keep.txt", "dot": "a/./keep.txt", "absolute": "/keep.txt",
              "backslash": "a\\keep.txt", "colon": "c:keep.txt", "nul": "keep\0.txt", "newline": "keep\n.txt",
              "delete": "keep\x7f.txt", "git_hook": ".Git/hooks/post-checkout", "unfinished_work": "a/.Ckptdiff-in-place/begun", "own_index": "ckptdiff.json", "empty_component": "a//keep.txt", "empty": "",
              "component_of_251_bytes": "k" * 251, "component_of_252_bytes_of_utf8": "é" * 126,
              "of_1025_bytes": ("k" * 204 + "/") * 5, "of_33_components": "k/" * 32 + "k"}
    unsafe["of_1025_bytes"] = unsafe["of_1025_bytes"][:-1] + "k"
    for name, path in unsafe.items():
        bad_folder(f"path_{name}", f, f"The path of a file is unsafe: {name.replace('_', ' ')}.",
                   index=rename_file("keep.txt", path))
    def stored_below_other(index):
        for item, path in zip((index["files"][EDIT], index["files"][MADE]), ("edit", "edit.zst/made")):
            item["path"] = path
        index["files"].sort(key=lambda item: item["path"].encode())
    bad_folder("stored_place_below_other", f, "files/edit.zst would be a file and a directory.", index=stored_below_other)
    bad_folder("path_is_a_number", f, "The path of a file is a number.", index=lambda d: d["files"].__getitem__(KEEP).update(path=7))
    bad_folder("removed_path_unsafe", f, "A removed path is unsafe.", index=setter("removed", ["../gone.txt"]))
    bad_folder("base_path_unsafe", f, "The path of a base's weight file is unsafe.", small,
               index=setter("base", "files", 0, "path", "/m.safetensors"))
    bad_folder("base_files_empty", f, "The base has no weight file, but a shard has an entry that needs one.", small,
               index=setter("base", "files", []))
    bad_folder("shard_target_unsafe", f, "The target of a shard is unsafe.", small, index=lambda d: d["shards"][0].update(
        target="../m.safetensors", path="patch/../m.safetensors"))
    bad_folder("shard_path_not_under_patch", f, "A shard's patch file is not at patch/TARGET.", small,
               index=setter("shards", 0, "path", "m.safetensors"), parts=lambda p: {
                   (k[6:] if k.startswith("patch/") else k): v for k, v in p.items()})
    bad_folder("path_is_directory_of_another", f, "An output path is the directory of another.",
               index=rename_file("keep.txt", "made.txt/keep.txt"))
    bad_folder("path_is_directory_of_shard", f, "A file's path is a shard's with something added.", small,
               index=rename_file("keep.txt", "m.safetensors/keep.txt"))

    bad_folder("file_over_limit", f, "A file has 2^40 + 1 bytes.", index=setter("files", KEEP, "size", (1 << 40) + 1))
    bad_folder("stored_over_limit", f, "A stored frame has 2^40 + 1 bytes.", index=setter("files", MADE, "stored", (1 << 40) + 1))
    bad_folder("shard_missing", f, "A patch file is missing.", small, parts=setter("patch/m.safetensors", DROP))
    bad_folder("shard_size_wrong", i, "The index states another size of a patch file.", small,
               index=lambda d: d["shards"][0].update(size=d["shards"][0]["size"] + 1))
    bad_folder("shard_digest_wrong", i, "The index states another digest of a patch file.", small, index=setter("shards", 0, "digest", "0" * 32))
    bad_folder("shard_truncated", i, "A patch file lacks its last byte, which its size in the index tells.", small,
               parts=lambda p: p.update({"patch/m.safetensors": p["patch/m.safetensors"][:-1]}))
    bad_folder("shard_broken", f, "A patch file has a trailing byte, which the index knows.", small,
               shard={"m.safetensors": {"file": lambda b: b + b"\0"}})
    bad_folder("shard_of_other_target", f, "A patch file is for another target path.", small,
               shard={"m.safetensors": {"meta": setter("target", "path", "dir/m.safetensors")}})
    for side in ("base", "target"):
        bad_folder(f"shard_{side}_identity_differs", f, f"A patch file's {side} identity is not the index's.", small,
                   shard={"m.safetensors": {"meta": setter(side, "identity", "0" * 32)}})
    bad_folder("target_identity_wrong", f, "Index and patch file state the same target identity, which is not that of the table.", small,
               index=setter("target", "identity", "0" * 32),
               shard={"m.safetensors": {"meta": setter("target", "identity", "0" * 32)}})
    bad_folder("shard_with_base_files", f, "A patch file in a folder has base.files.", small, shard={"m.safetensors": {
        "base_files": [{"path": "m.safetensors", "size": 1, "sha256": "0" * 64}]}})
    bad_folder("stored_file_missing", f, "A file under files/ is missing.", parts=setter("files/made.txt.zst", DROP))
    bad_folder("stored_size_wrong", i, "The index states another stored size of a file.",
               index=lambda d: d["files"][MADE].update(stored=d["files"][MADE]["stored"] + 1))
    bad_folder("stored_digest_wrong", i, "The index states another digest of a stored file.", index=setter("files", MADE, "digest", "0" * 32))
    bad_folder("stored_file_damaged", i, "A bit of a stored file is turned.", parts=lambda p: p.update(
        {"files/made.txt.zst": p["files/made.txt.zst"][:-1] + b"f"}))
    bad_folder("output_sha256_wrong", i, "A new file does not come out with its SHA-256.", index=setter("files", MADE, "sha256", "0" * 64))
    bad_folder("output_size_wrong", i, "A new file does not come out with its size.", index=setter("files", MADE, "size", 5))
    bad_folder("delta_sha256_wrong", i, "A file coded as delta does not come out with its SHA-256.",
               index=setter("files", EDIT, "sha256", "0" * 64))
    bad_folder("delta_file_over_limit", f, "A file coded as delta is stated to be of 2^26 + 1 bytes.",
               index=setter("files", EDIT, "size", (1 << 26) + 1))

    def stored(name, comment, framed, expect=f):
        files = [same_file("keep.txt"), delta_file("edit.txt"), new_file("made.txt", framed)]
        vector("folder_" + name, expect, comment, file_bytes(TEXT_OLD),
               patch_folder(TEXT_OLD, TEXT_NEW, {}, files))
    stored("frame_skippable", "A stored file is a skippable frame.", b"\x50\x2a\x4d\x18\x04\0\0\0made")
    stored("frame_twice", "A stored file is two frames.", frame(b"ma") + frame(b"de"))
    stored("frame_trailing_byte", "A byte follows the frame of a stored file.", frame(b"made") + b"\0")
    stored("frame_truncated", "The frame of a stored file lacks its last byte.", frame(b"made")[:-1])
    stored("frame_window_too_large", "The frame of a stored file has a window of 2^28 bytes.", frame(b"made", window=0x90))
    stored("frame_dictionary", "The frame of a stored file names a dictionary.", frame(b"made", dictionary=b"\x09"))
    stored("frame_content_long", "The frame of a stored file, which states no size, holds more than the file.",
           b"\x28\xb5\x2f\xfd\x00\x38" + frame_rle(b"m", 1 << 20, magic=False)[9:], i)

    def other(name, comment, **changes):
        base = {**TEXT_OLD, **changes.pop("base")}
        vector("folder_base_" + name, "wrong_base", comment,
               {k: v for k, v in file_bytes(base).items() if v is not None}, texts())
    other("lacks_file_of_same", "The base lacks a file that stays the same.", base={"keep.txt": None})
    other("lacks_file_of_delta", "The base lacks a file that a delta needs.", base={"edit.txt": None})
    other("other_file_of_same", "The base's file that is to stay the same is another.", base={"keep.txt": b"kept"})
    other("other_file_of_delta", "The base's file that a delta needs is another.", base={"edit.txt": b"odd text"})
    bad_folder("base_sha256_wrong", "wrong_base", "The index states another SHA-256 of a delta's base file.",
               index=setter("files", EDIT, "base_sha256", "0" * 64))

    two_old, two_new = {M1: {"a": BASE["a"], "x": BASE["a"]}, M2: {"w": BASE["w"]}}, {M1: {"a": BASE["a"]}, M2: {"w": BASE["w"]}}
    entries = {M1: [same("a")], M2: [same("w")]}

    def pair(name, comment, **faults):
        vector("folder_" + name, f, comment, file_bytes(two_old), patch_folder(two_old, two_new, entries, **faults))
    pair("removed_in_second_file", "The second file of a scope has removed names.",
         shard={M1: {"removed": []}, M2: {"removed": ["x"]}})
    pair("removed_is_base_of_other_file", "A name removed in the first file is the base in the second.",
         shard={M1: {"removed": ["w", "x"]}})
    pair("shards_unsorted", "The shards of the index are not sorted.", index=lambda d: d["shards"].reverse())
    twice = {M1: {"a": BASE["a"]}, M2: {"a": BASE["a"]}}
    vector("folder_two_entries_of_one_name_count", f, "Two files of one scope of the target hold the same name, and both entries count.",
           file_bytes({"m.safetensors": {"a": BASE["a"]}}),
           patch_folder({"m.safetensors": {"a": BASE["a"]}}, twice, {M1: [same("a")], M2: [same("a")]}))
    chain = {M1: {"a": BASE["a"], "b": BASE["a"]}, M2: {"c": BASE["a"]}}
    vector("folder_copy_of_copy_in_other_file", f, "A copy is of a copy in another patch file.", file_bytes(
        {"m.safetensors": {"a": BASE["a"]}}), patch_folder({"m.safetensors": {"a": BASE["a"]}}, chain, {
            M1: [same("a"), copy("b", "a")], M2: [copy("c", "b")]}))
    apart = {"x/m.safetensors": {"a": BASE["a"]}, "y/m.safetensors": {"b": BASE["a"]}}
    vector("folder_copy_of_other_scope", f, "A copy is of a tensor of another scope.", file_bytes(
        {"m.safetensors": {"a": BASE["a"]}}), patch_folder({"m.safetensors": {"a": BASE["a"]}}, apart, {
            "x/m.safetensors": [same("a")], "y/m.safetensors": [copy("b", "a")]}))


def folder_successes():
    def good(name, comment, old, target, *parts):
        vector("ok_" + name, "success", comment, file_bytes(old), *parts, output=file_bytes(target))
    long = {"k/" * 31 + "k": b"1", "k" * 250: b"2", "/".join(["m" * 204] * 5): b"3"}
    good("folder_paths_at_limits", "Paths of 32 components, of a component of 250 bytes, of 1,024 bytes.", {"keep.txt": b"keep"},
         {"keep.txt": b"keep", **long}, patch_folder({"keep.txt": b"keep"}, {"keep.txt": b"keep", **long}, {}, [
             same_file("keep.txt"), *map(new_file, long)]))
    good("folder_all_kinds", "A folder with all kinds of tensors and files, and a copy from another shard.",
         FOLDER_OLD, FOLDER_NEW, folder())
    third = {**SMALL_NEW, "made.txt": b"made again"}
    good("folder_chain_of_two", "Two patch folders, applied one after the other.", SMALL_OLD, third, small(), patch_folder(
        SMALL_NEW, third, {"m.safetensors": [same("a"), same("n")]},
        [same_file("keep.txt"), same_file("edit.txt"), delta_file("made.txt")]))
    resharded = {"model.safetensors": {**FOLDER_OLD[M1], **FOLDER_OLD[M2]}}
    good("folder_resharded", "Two shards of one scope become one file.", {M1: FOLDER_OLD[M1], M2: FOLDER_OLD[M2]}, resharded,
         patch_folder({M1: FOLDER_OLD[M1], M2: FOLDER_OLD[M2]}, resharded, {"model.safetensors": [same("a"), same("w")]}))
    alike = {"unet/model.safetensors": {"t": T("U8", [2], "0102")}, "vae/model.safetensors": {"t": T("U8", [2], "0304")}}
    changed = {"unet/model.safetensors": {"t": T("U8", [2], "0103")}, "vae/model.safetensors": {"t": T("U8", [2], "0304")}}
    good("folder_two_scopes", "Two scopes hold the same name.", alike, changed, patch_folder(alike, changed, {
        "unet/model.safetensors": [delta("t")], "vae/model.safetensors": [same("t")]}))
    listed = {"part-a.safetensors": {"a": BASE["a"]}, "part-b.safetensors": {"b": BASE["a"]},
              "odd.safetensors": {"a": T("U8", [1], "63")},
              "model.safetensors.index.fp16.json": json.dumps(
                  {"weight_map": {"a": "part-a.safetensors", "b": "part-b.safetensors"}}).encode()}
    joined = {"model.fp16.safetensors": {"b": BASE["a"], "a": BASE["a"]}, "odd.safetensors": listed["odd.safetensors"]}
    good("folder_scope_by_index", "The base's scope is that of an index of a variant, beside another file.", listed, joined,
         patch_folder(listed, joined, {"model.fp16.safetensors": [same("b"), same("a")], "odd.safetensors": [same("a")]}))
    beside = {"model-00001-of-00001.safetensors": {"a": BASE["a"]}, "model.safetensors": {"a": BASE["w"]}}
    moved = {"model.safetensors": {"a": TARGET["w"]}, "model-00001-of-00001.safetensors": {"a": BASE["a"]}}
    good("folder_scope_of_lone_file_beside_shards", "A lone file whose scope its shards have takes its whole path.", beside, moved,
         patch_folder(beside, moved, {"model-00001-of-00001.safetensors": [same("a")], "model.safetensors": [delta("a")]}))
    single = {"x.safetensors": {"a": BASE["a"]}}
    renamed = {"deep/y-00001-of-00001.safetensors": {"a": BASE["a"]}}
    good("folder_single_scope", "The base's only scope is taken, whatever its id.", single, renamed, patch_folder(
        {"z.safetensors": {"a": BASE["a"]}}, renamed, {"deep/y-00001-of-00001.safetensors": [same("a")]}))
    texts = {"m.safetensors": {"a": BASE["a"]}, "empty.txt": b"", "é/ü.txt": b"umlaut", "w.txt": b"window " * 3}
    good("folder_frames_of_many_sorts", "New files: an empty one, one without content size, one with window and checksum.",
         single, {**texts, "long.bin": bytes(70000)}, patch_folder(single, {**texts, "long.bin": bytes(70000)}, {"m.safetensors": [same("a")]}, [
             new_file("empty.txt"), new_file("é/ü.txt", frame(texts["é/ü.txt"], state_size=False)),
             new_file("long.bin", frame_rle(b"\0", 70000)),
             new_file("w.txt", frame(texts["w.txt"], window=0x88, checksum=(xxhash.xxh64_intdigest(
                 texts["w.txt"]) & 0xFFFFFFFF).to_bytes(4, "little")))]))
    strange = {"m.safetensors": {"a": BASE["a"]}, "d.bin": b"\x37\xa4\x30\xec" + CONFIG_OLD, "e.bin": b""}
    after = {**strange, "d.bin": CONFIG_NEW, "e.bin": b"now"}
    good("folder_delta_of_strange_files", "Deltas whose base begins like a zstd dictionary, and is empty.", strange, after,
         patch_folder(strange, after, {"m.safetensors": [same("a")]}, [delta_file("d.bin", CONFIG_DELTA), delta_file("e.bin")]))
    files_only = {"config.json": b"{}"}
    good("folder_without_weights", "The target has no weight file.", {"m.safetensors": {"a": BASE["a"]}, "config.json": b"{}"},
         files_only, patch_folder({"m.safetensors": {"a": BASE["a"]}, "config.json": b"{}"}, files_only, {}, [same_file("config.json")]))
    good("folder_without_files", "The target has no file at all: an empty folder.", TEXT_OLD, {}, patch_folder(TEXT_OLD, {}, {}))
    extra = small(index=setter("info", {"base_repo": "org/base", "unknown": [None, True, -1, {"é": "\x1f\x7f"}]}),
                   parts=setter("README.md", b"not part of the patch"))
    good("folder_info_and_other_files", "info has unknown members, and the folder a file that the index does not name.",
         SMALL_OLD, SMALL_NEW, extra)
    vector("ok_file_patch_on_folder", "success", "A patch file takes its scope from a base folder with two.", file_bytes(
        {"base.safetensors": BASE, "other.safetensors": {"a": T("U8", [1], "00")}}), basic(), output=basic().output)


# ---- Section 3.1: scopes and doubled names --------------------------------------------------------------------------

M3 = "model-00003-of-00003.safetensors"
LEFT, RIGHT, MOVED = T("U8", [4], "01020304"), T("U8", [4], "11121314"), T("U8", [4], "11121315")


def index_of(**shards):
    return json.dumps({"weight_map": shards}).encode()


def on_folder(name, comment, files, base_scope, taken, target, entries, expect="success", **options):
    """A patch file on a base folder, of one scope of which ``taken`` are the tensors that it was made from."""
    assert expect != "success" or "base_files" in options or scopes_of(files)[base_scope] == taken
    patch = patch_file(taken, target, entries, base_scope=base_scope, **options)
    vector("ok_" * (expect == "success") + name, expect, comment, file_bytes(files), patch, output=patch.output)


def scope_vectors():
    aside, target, entries = {"aside.safetensors": {"a": RIGHT}}, {"a": LEFT, "w": TARGET["w"]}, [same("a"), delta("w")]

    def scope(name, comment, first, second, base_scope, expect="success"):
        on_folder("base_scope_" + name, comment, {first: {"a": LEFT}, second: {"w": BASE["w"]}, **aside}, base_scope,
                  {"a": LEFT, "w": BASE["w"]}, target, entries, expect)
    scope("of_six_digits", "The shards have numbers of five digits, and are of a number of six.", "model-00001-of-000002.safetensors",
          "model-00002-of-000002.safetensors", "model")
    scope("of_seven_digits_and_variant", "The numbers of shards of a variant have seven digits.", "model-0000001-of-0000002.fp16.safetensors",
          "model-0000002-of-0000002.fp16.safetensors", "model.fp16")
    scope("of_stem_with_suffix", "The stem of the shards ends in .safetensors, which is not part of their scope.",
          "x/model.safetensors-00001-of-00002.safetensors", "x/model.safetensors-00002-of-00002.safetensors", "x/model")
    scope("of_four_digits", "The numbers of two files have four digits, so that each is a scope of its own.", "model-0001-of-0002.safetensors",
          "model-0002-of-0002.safetensors", "model", "wrong_base")
    stale = "model-00001-of-00003.safetensors"
    listed = {M1: {"a": LEFT}, M2: {"w": BASE["w"]}, stale: {"a": RIGHT, "x": LEFT}, "model.safetensors.index.json": index_of(a=M1, w=M2)}
    on_folder("base_scope_of_unlisted_shard", "A shard that the index of its scope does not list is a scope of its own.", listed,
              stale[:-12], {"a": RIGHT, "x": LEFT}, {"a": MOVED}, [delta("a")])
    on_folder("base_scope_without_unlisted_shard", "A shard that the index does not list lies beside those of the scope, and has a name of theirs.",
              listed, "model", {"a": LEFT, "w": BASE["w"]}, target, entries)
    on_folder("base_scope_lacks_tensor_of_unlisted_shard", "A tensor is only in a shard that the index of the scope does not list.", listed,
              "model", {"x": LEFT}, {"x": LEFT}, [same("x")], "wrong_base")


def doubled_in_base():
    by_path, by_index = {"a": T("U8", [4], "01020305")}, {"a": MOVED, "b": RIGHT}
    pair = {M1: {"a": T("I8", [2, 2], "01020304"), "x": LEFT}, M2: {"a": RIGHT, "y": LEFT}}  # a tensor that does not count may be of any dtype
    alike = {M1: {"a": LEFT, "x": LEFT}, M2: {"a": RIGHT, "y": LEFT}}
    before = {"model-00000-of-00002.safetensors": {"a": LEFT, "q": LEFT}}

    def doubled(name, comment, files, target, expect="success", base_scope="model", known=(), **indexes):
        """The patch is made from LEFT or RIGHT; ``known``: the paths in base.files."""
        held = {path: content for path, content in files.items() if path in (known or files)}
        taken = {key: t for content in held.values() for key, t in content.items()} | {"a": RIGHT if target is by_index else LEFT}
        listings = {f"{key}.json".replace("_", "."): content for key, content in indexes.items()}
        on_folder("base_doubled_name_" + name, comment, {**files, **listings}, base_scope, taken, target,
                  [delta("a"), same("b", pieces=[["a", 0, 4]])] if target is by_index else [delta("a")], expect,
                  **({"base_files": [{"path": path, **stat(weights(files[path]))} for path in known]} if known else {}))
    doubled("by_index", "Two shards hold the name a, and the index names the second for it.", pair, by_index,
            model_safetensors_index=index_of(x=M1, a=M2, y=M2))
    doubled("by_path", "Two shards hold the name a, and there is no index: that in the first counts.", alike, by_path)
    three = {**alike, M3: {"z": LEFT}}
    doubled("of_an_index_that_errs", "Two shards hold the name a, and the index names a third for it: that in the first counts.", three, by_path,
            model_safetensors_index=index_of(x=M1, y=M2, z=M3, a=M3))
    doubled("that_the_index_lacks", "Two shards hold the name a, which the index does not name: that in the first counts.", three, by_path,
            model_safetensors_index=index_of(x=M1, y=M2, z=M3))
    doubled("not_of_the_index", "The tensor a that the index names has other bytes; that which does not count has the right ones.", alike, by_index,
            "wrong_base", model_safetensors_index=index_of(a=M1, y=M2))
    doubled("not_of_the_first_path", "The tensor a of the first shard has other bytes; that which does not count has the right ones.", alike, by_index,
            "wrong_base")
    doubled("of_two_indexes", "Two indexes give one scope: the first by path tells which a counts.", pair, by_index, base_scope="model.fp16",
            model_fp16_safetensors_index=index_of(a=M2, x=M1), model_safetensors_index_fp16=index_of(a=M1, y=M2))
    doubled("of_second_index", "Two indexes give one scope: only the second by path names a file that holds a.", {**pair, M3: {"z": LEFT}}, by_index,
            base_scope="model.fp16", model_fp16_safetensors_index=index_of(x=M1, y=M2, a=M3), model_safetensors_index_fp16=index_of(a=M2))
    doubled("of_recorded_files", "base.files leaves out a shard that lies before the others; the index, which does not list it, names the second for a.",
            {**pair, **before}, by_index, known=(M1, M2), model_safetensors_index=index_of(a=M2, x=M1))
    doubled("of_index_that_counts", "Of two indexes of one scope the first lists a file that base.files leaves out: the second counts.",
            {**pair, **before}, by_index, known=(M1, M2), base_scope="model.fp16",
            model_fp16_safetensors_index=index_of(a=M1, q=next(iter(before))), model_safetensors_index_fp16=index_of(a=M2, x=M1))
    doubled("of_index_that_does_not_count", "The index, which names the second shard for a, lists a file that base.files leaves out: the first counts.",
            {**alike, **before}, by_path, known=(M1, M2), model_safetensors_index=index_of(a=M2, q=next(iter(before))))


def doubled_in_target():
    f = "format"
    base = {M1: {"a": LEFT, "w": T("U8", [4], "21222324")}, M2: {"x": LEFT}}
    w = T("U8", [4], "21222325")
    first = {"a": LEFT, "w": w, "n": RIGHT, "m": RIGHT}
    counting = [same("a"), delta("w"), new("n"), new("m")]

    def made(second, entries, one=first, ones=counting, **options):
        """The patch, and the target: its second shard holds names of the first, whose entries do not count."""
        target = {M1: one, M2: second}
        return patch_folder(base, target, {M1: ones, M2: entries}, **options), file_bytes(target)

    def good(name, comment, second, entries, *more):
        patch, files = made(second, entries, *more)
        vector("ok_folder_doubled_" + name, "success", comment, file_bytes(base), patch, output=files)
    good("same", "An entry of kind same does not count.", {"a": LEFT, "x": LEFT}, [uncounted(same("a")), same("x")])
    good("same_of_pieces", "An entry that does not count is made of a piece, and has another dtype than the one that counts.",
         {"a": T("I8", [2], "2324"), "x": LEFT}, [uncounted(same("a", dtype="U8", pieces=[["w", 2, 2]])), same("x")])
    good("delta", "An entry of kind delta does not count.", {"w": T("U8", [4], "20222324")}, [uncounted(delta("w"))])
    good("new", "An entry of kind new does not count.", {"a": MOVED}, [uncounted(new("a"))])
    good("copy_of_own_name", "An entry that does not count is a copy of that of its own name, which does.", {"w": w, "n": RIGHT},
         [uncounted(copy("w", "w")), uncounted(copy("n", "n"))])
    good("copy_of_another", "An entry that does not count is a copy of a tensor of another name.", {"w": RIGHT}, [uncounted(copy("w", "n"))])
    good("name_that_is_copied", "A copy is of a doubled name: of that in the other file, which counts.", {"n": MOVED, "c": RIGHT},
         [uncounted(new("n")), copy("c", "n")])
    listing = index_of(a=M1, w=M2, m=M1)
    target = {M1: first, M2: {"w": T("U8", [4], "31323334"), "c": T("U8", [4], "31323334")}, "model.safetensors.index.json": listing}
    second = patch_folder(base, target, {M1: [same("a"), uncounted(delta("w")), new("n"), new("m")], M2: [new("w"), copy("c", "w")]},
                          [new_file("model.safetensors.index.json")])
    vector("ok_folder_doubled_by_index", "success", "The index names the second file for a name: the entry of the first does not count.",
           file_bytes(base), second, output=file_bytes(target))
    last = {"m.safetensors": {"w": T("U8", [4], "31323335"), "v": T("U8", [2], "3132")}}
    vector("ok_chain_of_doubled_name", "success", "The second patch takes a doubled name of what the first gives: that in the second file counts.",
           file_bytes(base), second, patch_folder(target, last, {"m.safetensors": [delta("w"), same("v", pieces=[["w", 0, 2]])]}),
           output=file_bytes(last))
    other, fault = {**target, "model.safetensors.index.json": index_of(a=M1, w=M1, m=M2)}, setter("base", "identity", identity(scopes_of(target)))
    vector("chain_of_doubled_name_that_does_not_count", "wrong_base", "The second patch takes the tensor of a doubled name that does not count.",
           file_bytes(base), second, patch_folder(other, {"m.safetensors": {"w": w}}, {"m.safetensors": [same("w")]}, index=fault,
                                                  shard={"m.safetensors": {"meta": fault}}))

    vector("ok_chain_of_doubled_name_as_stated", "success", "The entry of the second file counts, without an index in the target that says so.",
           file_bytes(base), patch_folder(base, target, {M1: [same("a"), uncounted(delta("w")), new("n"), new("m")], M2: [new("w"), copy("c", "w")]}),
           patch_folder(target, {"m.safetensors": {"v": T("U8", [2], "3132")}}, {"m.safetensors": [same("v", pieces=[["w", 0, 2]])]}),
           output=file_bytes({"m.safetensors": {"v": T("U8", [2], "3132")}}))

    def bad_pair(name, comment, *parts, counted=None, **options):
        """``counted``: the tensors that target.identity is made of."""
        if counted:
            fault = setter("target", "identity", identity({"model": counted}))
            options = {"index": fault, "shard": {m: {"meta": fault} for m in (M1, M2)}}
        vector("folder_" + name, f, comment, file_bytes(base), made(*parts, **options)[0])
    bad_pair("no_entry_of_a_name_counts", "Of two entries of one name in a scope none counts.", {"a": MOVED}, [uncounted(new("a"))], first,
             [uncounted(same("a")), *counting[1:]], counted={key: first[key] for key in "wnm"})
    bad_pair("only_entry_of_a_name_does_not_count", "The only entry of a name does not count.", {"x": LEFT}, [uncounted(same("x"))], counted=first)
    shards = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    three = dict(zip(shards, ({"a": LEFT}, {"a": MOVED}, {"a": LEFT})))
    third = patch_folder(base, three, dict(zip(shards, ([same("a")], [uncounted(new("a"))], [uncounted(new("a"))]))))
    vector("ok_folder_name_of_three_files", "success", "Of three entries of one name in a scope one counts.", file_bytes(base), third, output=file_bytes(three))
    vector("folder_two_of_three_entries_count", f, "Of three entries of one name in a scope two count.", file_bytes(base), patch_folder(
        base, three, dict(zip(shards, ([same("a")], [uncounted(new("a"))], [new("a")])))))
    bad_pair("copy_of_doubled_name_that_is_a_copy", "A copy is of a doubled name whose entry that counts is a copy.", {"m": MOVED, "c": MOVED},
             [uncounted(new("m")), copy("c", "m")], first, [*counting[:3], copy("m", "n")])
    bad_pair("copy_of_own_name_that_is_a_copy", "An entry that does not count is a copy of its own name, whose entry that counts is a copy.",
             {"m": RIGHT}, [uncounted(copy("m", "m"))], first, [*counting[:3], copy("m", "n")])
    bad_pair("copy_of_doubled_name_of_other_shape", "A copy has the shape of an entry that does not count, not of the one that does.",
             {"n": T("U8", [2, 2], RIGHT.data), "c": T("U8", [2, 2], RIGHT.data)}, [uncounted(new("n")), copy("c", "n")])
    bad_pair("identity_of_entry_that_does_not_count", "target.identity is made with the entry that does not count.", {"a": MOVED}, [uncounted(new("a"))],
             counted={**first, "a": MOVED})

    bad_entry("table_entry_counts_true", f, "An entry's counts is true.", A, counts=True)
    bad_entry("table_entry_counts_null", f, "An entry's counts is null.", A, counts=None)
    bad_entry("table_entry_counts_0", f, "An entry's counts is 0.", A, counts=0)
    rest = {key: t for key, t in TARGET.items() if key != "a"}
    vector("table_entry_does_not_count_in_lone_patch_file", f, "A patch file with base.files has an entry that does not count.", BASE_FILE,
           patch_file(BASE, TARGET, [uncounted(same("a")), *ENTRIES[1:]], identities=(identity({"": BASE}), identity({"": rest})),
                      base_files=[{"path": "base.safetensors", **stat(BASE_FILE)}]))
    alone = patch_file(BASE, TARGET, [uncounted(same("a")), *ENTRIES[1:]])
    vector("ok_patch_file_of_folder_alone", "success", "A patch file without base.files, of a folder, has an entry that does not count.", BASE_FILE,
           alone, output=alone.output)
    vector("table_copy_of_own_name_alone", f, "An entry that does not count is a copy of its own name, and no entry of it counts.", BASE_FILE,
           patch_file(BASE, TARGET, [*ENTRIES[:C], uncounted(copy("c", "c"))]))

    already = "already_target"
    patch, files = made({"w": MOVED, "x": LEFT}, [uncounted(delta("w")), same("x")])
    vector("folder_base_is_target_but_for_what_does_not_count", already, "The base has what every delta gives that counts.",
           {**files, M2: weights({"w": RIGHT, "x": LEFT})}, patch)
    patch, files = made({"w": MOVED, "x": LEFT}, [uncounted(delta("w")), same("x")], first, [same("a"), *map(new, ("w", "n", "m"))])
    vector("folder_base_is_target_without_delta_that_counts", "wrong_base", "The base is the target, but the only entry of kind delta does not count.",
           files, patch)
    files = file_bytes({M1: {**first, "w": MOVED}, M2: {"w": w}})
    patch, _ = made({"w": MOVED}, [uncounted(delta("w"))])
    vector("folder_base_holds_target_where_it_does_not_count", "wrong_base", "The base has what a delta gives in a tensor that does not count.",
           files, patch)


def removed_by_base_scope():
    base = {"m.safetensors": {"a": LEFT, "b": RIGHT, "x": LEFT}, "v.safetensors": {"a": RIGHT, "z": LEFT}}
    target = {"p/m.safetensors": {"a": LEFT, "c": RIGHT}, "q/m.safetensors": {"a": LEFT, "b": MOVED}, "r/v.safetensors": {"a": RIGHT}}
    entries = {"p/m.safetensors": [same("a"), new("c")], "q/m.safetensors": [same("a"), delta("b")], "r/v.safetensors": [same("a")]}
    pairs = {"p/m": "m", "q/m": "m", "r/v": "v"}

    def paired(name, expect, comment, entries=entries, target=target, **removed):
        shard = {f"{key}.safetensors".replace("_", "/"): {"removed": names} for key, names in removed.items()}
        vector("ok_" * (expect == "success") + "folder_" + name, expect, comment, file_bytes(base),
               patch_folder(base, target, entries, pairs=pairs, shard=shard), output=file_bytes(target))
    paired("two_scopes_of_one_base_scope", "success", "Two scopes are paired with one of the base: what neither uses is removed in the first file of both, what the third lacks in its own.")
    paired("removed_in_second_scope", "format", "Of two scopes with one base scope the second has the removed names.", p_m=[], q_m=["x"])
    paired("removed_in_both_scopes", "format", "Of two scopes with one base scope both have the removed names.", q_m=["x"])
    paired("removed_is_name_of_other_scope", "format", "A removed name is that of an entry of another scope with the same base scope.", p_m=["b", "x"])
    pieces = {**entries, "q/m.safetensors": [same("a"), same("b", pieces=[["x", 0, 4]])]}
    taken = {**target, "q/m.safetensors": {"a": LEFT, "b": LEFT}}
    paired("removed_is_piece_of_other_scope", "format", "A removed name is a piece in another scope with the same base scope.", pieces, taken, p_m=["x"])
    paired("removed_is_name_of_other_base_scope", "success", "A name that the third file uses is removed from the base scope of the first two.",
           {**entries, "r/v.safetensors": [same("a"), new("x")]}, {**target, "r/v.safetensors": {"a": RIGHT, "x": MOVED}})


# ---- Sections 2, 7.1, 9: frames -------------------------------------------------------------------------------------

EITHER = "format integrity"  # what a corrupt compressed block decodes to is undefined


def zstd_vectors():
    def stored(name, expect, comment, framed, path="made.txt", **options):
        files = [same_file("keep.txt"), delta_file("edit.txt"), new_file(path, framed)]
        vector("zstd_" + name, expect, comment, file_bytes(TEXT_OLD), patch_folder(TEXT_OLD, TEXT_NEW, {}, files, **options))
    stored("checksum_wrong", "format", "The frame of a stored file has a wrong checksum.", frame(b"made", checksum=b"abcd"))
    stored("block_type_reserved", "format", "A block of a stored frame is of the reserved type.", frame(b"")[:-3] + b"\x07\0\0")
    stored("reserved_bit", "format", "A stored frame has the reserved bit set.", set_flag(frame(b"made"), 8))
    stored("content_size_lies", EITHER, "A stored frame states a byte more than it holds.", frame(b"made", size=5))
    stored("content_size_is_that_of_index", EITHER, "A stored frame holds a byte less than it and the index state.", frame(b"mad", size=4))
    stored("content_shorter", "integrity", "A stored frame, which states no size, holds less than the file.", frame(b"mad", state_size=False))
    made = {**TEXT_NEW, "made.txt": b"made"}
    vector("ok_zstd_unused_bit", "success", "A stored frame has the unused bit of its descriptor set, which means nothing.", file_bytes(TEXT_OLD),
           patch_folder(TEXT_OLD, TEXT_NEW, {}, [same_file("keep.txt"), delta_file("edit.txt"), new_file("made.txt", set_flag(frame(b"made"), 16))]),
           output=made)
    bad("zstd_table_block_type_reserved", "format", "A block of the table's frame is of the reserved type.",
        table_frame=lambda _: frame(table_bytes()) [:-3 - len(table_bytes())] + b"\x07\0\0" + table_bytes())
    old, new_ = ({"config.json": side} for side in (CONFIG_OLD, CONFIG_NEW))
    for at, bit in ((12, 1), (13, 4), (19, 16)):
        turned_ = CONFIG_DELTA[:at] + bytes([CONFIG_DELTA[at] ^ bit]) + CONFIG_DELTA[at + 1:]
        vector(f"zstd_compressed_block_turned_{at}_{bit}", EITHER, f"Bit {bit} of byte {at} of a stored frame, within its compressed block, is turned.",
               old, patch_folder(old, new_, {}, [delta_file("config.json", turned_)]))
    real = bytes.fromhex("20805d000020000102030100f9d41101")
    for at, bit in ((12, 32),):
        turned_ = real[:at] + bytes([real[at] ^ bit]) + real[at + 1:]
        vector(f"zstd_plane_turned_{at}_{bit}", EITHER, f"Bit {bit} of byte {at} of a plane's frame, within its compressed block, is turned.", weights({}),
               patch_file({}, {"a": T("U8", [128], bytes([0, 1, 2, 3] * 32))}, [new("a", [plane_zstd(turned_)])]))


def set_flag(framed, flag):
    return framed[:4] + bytes([framed[4] | flag]) + framed[5:]


# ---- Sections 12 and 13: versions, unknown members, several faults --------------------------------------------------

def both(*faults):
    """A fault that is several, in order; each changes the value in place, or returns another."""
    def fault(value):
        for one in faults:
            value = edit(value, one)
        return value
    return fault


def version_vectors():
    f, u = "format", "unsupported"
    for name, value, expect in (("0", 0, u), ("2_53_less_1", (1 << 53) - 1, u), ("text", "1", f)):
        bad(f"version_{name}", expect, f"The version is {json.dumps(value)}.", meta=setter("version", value))
    for name, value, expect in (("minus_1", -1, u), ("true", True, f), ("missing", DROP, f)):
        bad_folder(f"version_of_index_{name}", expect, f"The version of the index is {name.replace('_', ' ')}.", index=setter("version", value))
    bad("unknown_member_of_target", u, "target has an unknown member.", meta=setter("target", "mode", 1))
    bad("unknown_member_of_base_file", u, "A file of base.files has an unknown member.", base_files=[
        {"path": "base.safetensors", "size": 1, "sha256": "0" * 64, "mode": 1}])
    for side in ("base", "target"):
        bad_folder(f"unknown_member_of_index_{side}", u, f"{side} of the index has an unknown member.", index=setter(side, "other", 0))


def fault_vectors():
    f, u, i = "format", "unsupported", "integrity"

    def faults(name, expect, comment, patch=two, **options):
        bad("faults_" + name, expect, comment, patch, **options)
    wrong, unknown, second = setter("digest", "0" * 32), setter("other", 1), setter("version", 2)
    faults("version_2_and_unknown_member", u, "The version is 2, and there is an unknown member.", meta=both(second, unknown))
    faults("version_2_and_digest_wrong", u, "The version is 2, and the digest another.", meta=both(second, wrong))
    faults("version_2_and_members_missing", u, "The version is 2, and most members of version 1 are missing.", meta=both(
        second, setter("table", DROP), setter("base", DROP), setter("totals", DROP), setter("digest", DROP)))
    faults("version_2_and_other_layout", u, "The version is 2, and the patch file has a tensor and a key of __metadata__ that version 1 has not.", meta=second,
           payloads=lambda data: data + [("ckptdiff/more", b"\0")], layout=setter("__metadata__", "ckptdiff/more", "x"))
    faults("version_2_and_space", f, "The version is 2, but the metadata is not canonical.", meta=second, meta_text=swap(b'"version":2', b'"version": 2'))
    faults("version_2_and_format_wrong", f, "The version is 2, but the format is another.", meta=both(second, setter("format", "other")))
    faults("version_2_and_trailing_byte", f, "The version is 2, but the patch file is no safetensors file.", meta=second, file=lambda b: b + b"\0")
    faults("unknown_member_and_digest_wrong", u, "There is an unknown member, and the digest is another.", meta=both(unknown, wrong))
    faults("unknown_member_of_base_and_digest_wrong", i, "base has an unknown member, and the digest is another.",
           meta=both(setter("base", "other", 1), wrong))
    faults("member_missing_and_unknown_member", u, "A member is missing, and there is an unknown one.", meta=both(setter("totals", DROP), unknown))
    faults("table_digest_wrong_and_frame_broken", i, "The table's digest is another, and its frame is cut.", table_frame=lambda b: b[:-1],
           meta=setter("table", "0" * 32))
    faults("header_digest_wrong_and_frame_broken", i, "The header's digest is another, and its frame is cut.", header_frame=lambda b: b[:-1],
           meta=setter("header", "0" * 32))
    faults("payload_digest_wrong_and_block_broken", i, "A payload has another digest, and no coded block of it is one.",
           payloads=lambda d: d[:2] + [(d[2][0], b"\xff" * len(d[2][1]))])
    unsorted = setter("removed", ["y", "x"])
    faults("removed_unsorted_and_payload_digest_wrong", "format integrity", "The removed names are not sorted, and a payload has another digest.", table=unsorted,
           payloads=lambda d: d[:2] + [(d[2][0], b"\xff" * len(d[2][1]))])
    faults("removed_unsorted_and_unknown_codec", "format unsupported", "The removed names are not sorted, and a codec is unknown.",
           table=both(unsorted, lambda t: t["tensors"][0].update(codec="lz4")))
    faults("unknown_kind_and_changed_0", "format unsupported", "An entry has an unknown kind, another has changed 0.", basic,
           table=both(lambda t: t["tensors"][A].update(kind="moved"), lambda t: t["tensors"][W].update(changed=0)))

    def indexes(name, expect, comment, **options):
        bad_folder("faults_index_" + name, expect, comment, **options)
    indexes("version_2_and_unknown_member", u, "The index has the version 2 and an unknown member.", index=both(second, unknown))
    indexes("version_2_and_file_missing", u, "The index has the version 2, and a stored file is missing.", index=second, parts=setter("files/made.txt.zst", DROP))
    indexes("unknown_member_and_digest_wrong", u, "The index has an unknown member and another digest.", index=both(unknown, wrong))
    indexes("unknown_member_of_file_and_digest_wrong", i, "A file of the index has an unknown member, and the digest is another.",
            index=both(setter("files", 0, "mode", 1), wrong))
    broken = frame(b"made")[:-1]
    files = [same_file("keep.txt"), delta_file("edit.txt"), new_file("made.txt", broken)]
    vector("folder_faults_stored_digest_wrong_and_frame_broken", i, "A stored frame is cut, and has another digest.", file_bytes(TEXT_OLD),
           patch_folder(TEXT_OLD, TEXT_NEW, {}, files, index=setter("files", MADE, "digest", "0" * 32)))
    files = [same_file("keep.txt"), delta_file("edit.txt", broken), new_file("made.txt")]
    vector("folder_faults_base_file_other_and_other_frame_broken", "format wrong_base", "The base's file that is to stay is another, and the frame of a delta is cut.",
           {**file_bytes(TEXT_OLD), "keep.txt": b"kept"}, patch_folder(TEXT_OLD, TEXT_NEW, {}, files))

    def on(name, expect, comment, base, *patches):
        vector("faults_" + name, expect, comment, base if isinstance(base, bytes) else weights(base), *patches)
    damaged = basic(payloads=lambda d: d[:2] + [(d[2][0], b"\xff" * len(d[2][1]))])
    on("payload_digest_wrong_and_base_wrong", "integrity wrong_base", "A payload has another digest, and the base no tensor w.", {"a": BASE["a"]}, damaged)
    on("payload_digest_wrong_and_base_broken", "checkpoint integrity", "A payload has another digest, and the base is cut.", BASE_FILE[:-1], damaged)
    on("base_broken_and_chain_in_wrong_order", "checkpoint wrong_base", "The patches of a chain do not follow each other, and the base is cut.", BASE_FILE[:-1],
       basic(), two())
    third = patch_file(TWO_TARGET, {**TWO_TARGET, "n": T("U8", [1], "0a")}, [same("w"), delta("n")])
    on("chain_in_wrong_order_on_its_target", "wrong_base", "The patches of a chain are given in the wrong order, and the base is what the last gives.",
       TWO_TARGET, third, two())
    on("second_patch_broken_and_base_wrong", "format wrong_base", "The second patch of a chain has a payload that is no block, and the base no tensor of the first.",
       {"other": BASE["a"]}, two(), patch_file(TWO_TARGET, {**TWO_TARGET, "n": T("U8", [1], "0a")}, [same("w"), delta("n", blocks=[b"\xff"], changed=1)]))
    one = {"t": T("U8", [8], bytes(8))}
    after = {"t": T("U8", [8], b"\1" + bytes(7))}
    on("block_broken_and_base_wrong", "wrong_base", "A block is none, and what it is decoded with has another digest.",
       {"t": T("U8", [8], b"\2" * 8)}, patch_file(one, after, [delta("t", blocks=[b"\xff\xff\xff"], changed=1)]))
    more = {**after, "n": T("U8", [1], "01")}
    on("new_block_broken_and_base_wrong", "format wrong_base", "The block of a new tensor is none, and the base of another entry has another digest.",
       {"t": T("U8", [8], b"\2" * 8)}, patch_file(one, more, [delta("t", blocks=[sparse([0], [1], 1)], changed=1), new("n", [b"\xff"])]))
    old, new_ = sample("BF16", 60, 7)
    coded = adaptive(old, new_, "BF16")
    on("base_that_context_cannot_be_decoded_with", "wrong_base", "The base has another tensor, with which the block of context cannot be decoded.",
       {"t": T("BF16", [60], bytes(120))}, patch_file({"t": T("BF16", [60], old)}, {"t": T("BF16", [60], new_)}, [
           delta("t", "context", blocks=[coded], changed=len(distances(old, new_, "BF16")[0]))]))


# ---- Sections 3.1 and 3.3: names, indexes, the base -----------------------------------------------------------------

ASIDE = {"aside.safetensors": {"z": T("U8", [1], "2a")}}  # so that the base has more than one scope


def found(name, comment, files, base_scope="model", taken=None, expect="success", **options):
    """A small patch on a folder: what it takes is a = LEFT, unless ``taken`` says otherwise."""
    taken = taken or {"a": LEFT}
    patch = patch_file(taken, {"a": T("U8", [4], "01020305")}, [delta("a")], base_scope=base_scope, **options)
    vector("ok_" * (expect == "success") + name, expect, comment, {path: weights(content) if isinstance(content, dict) else content for path, content in files.items()},
           patch, output=patch.output)


def recorded(files, *paths):
    return [{"path": path, **stat(files[path] if isinstance(files[path], bytes) else weights(files[path]))} for path in sorted(paths, key=str.encode)]


def name_vectors():
    wrong, c = "wrong_base", "checkpoint"
    odd = "m-00001-of-00002.x-00001-of-00001.safetensors"
    found("scope_of_longest_stem", "A name can be read in two ways: the longest STEM holds.", {odd: {"a": LEFT}, **ASIDE}, "m-00001-of-00002.x")
    found("scope_of_shorter_stem", "The patch takes a name's shorter STEM.", {odd: {"a": LEFT}, **ASIDE}, "m.x-00001-of-00001", expect=wrong)
    found("scope_of_dotted_stem", "A STEM has dots.", {"v1.0.fp8-00001-of-00001.safetensors": {"a": LEFT}, **ASIDE}, "v1.0.fp8")
    found("scope_of_dotted_variant", "A VARIANT may not have a dot: the file is a scope of its own.", {"m-00001-of-00002.a.b.safetensors": {"a": LEFT}, **ASIDE},
          "m-00001-of-00002.a.b")
    found("scope_of_shard_in_capitals", "The form of a shard is written in lower case.", {"m-00001-OF-00002.safetensors": {"a": LEFT}, **ASIDE}, "m-00001-OF-00002")
    found("scope_of_other_digits", "The digits of a shard are those from 0 to 9.", {"m-0000\u0661-of-00002.safetensors": {"a": LEFT}, **ASIDE}, "m-0000\u0661-of-00002")
    found("scope_without_stem", "A name has no STEM before its number: the file is a scope of its own.", {"-00001-of-00002.safetensors": {"a": LEFT}, **ASIDE}, "-00001-of-00002")
    found("scope_is_empty", "A file is named .safetensors: its scope is empty.", {".safetensors": {"a": LEFT}, **ASIDE}, "")
    found("scope_of_folder", "The folder is part of the scope.", {"x/y/m-00001-of-00001.fp16.safetensors": {"a": LEFT}, **ASIDE}, "x/y/m.fp16")
    found("ending_in_capitals", "The only file ends in .SAFETENSORS, so that there is no weight file.", {"m.SAFETENSORS": {"a": LEFT}}, "m", expect=c)

    def index(name, comment, listing, expect="success", path="model.safetensors.index.json", base_scope="model", **more):
        files = {"part.safetensors": {"a": LEFT}, **ASIDE, path: listing, **more.pop("files", {})}
        found("index_" + name, comment, files, base_scope, expect=expect, **{key: (value(files) if callable(value) else value) for key, value in more.items()})
    part = index_of(a="part.safetensors")
    index("of_part", "An index gives the scope.", part)
    index("of_dotted_stem", "The STEM of an index has dots.", part, path="v1.0.safetensors.index.json", base_scope="v1.0")
    index("of_dotted_variant", "A VARIANT may not have a dot: the file is no index.", part, path="model.safetensors.index.a.b.json", base_scope="part")
    index("without_stem", "A file without STEM is no index.", part, path=".safetensors.index.json", base_scope="part")
    index("in_capitals", "A file whose name is in capitals is no index.", part, path="model.safetensors.INDEX.json", base_scope="part")
    index("with_byte_order_mark", "An index begins with a byte-order mark.", b"\xef\xbb\xbf" + part)
    index("of_common_json", "An index has floats, other members, spaces, and a repeated key, of which the last counts.",
          b'{ "metadata": {"total_size": 1.5e3, "x": -0, "y": [true, null]}, "weight_map": {"a": "gone.safetensors"},\n\t"weight_map": {"a": "part.safetensors"} }')
    index("in_folder", "The files that an index lists lie in its folder.", index_of(a="part.safetensors"), path="x/model.safetensors.index.json", base_scope="x/model",
          files={"x/part.safetensors": {"a": LEFT}, "part.safetensors": {"a": RIGHT}})
    index("of_folder_below", "An index lists a file in a folder below its own.", index_of(a="x/y.safetensors"), files={"x/y.safetensors": {"a": LEFT}, "part.safetensors": {"a": RIGHT}})
    index("of_two", "Two indexes list a file: the first in order of path gives its scope.", part, base_scope="m",
          files={"m.safetensors.index.json": part})
    index("of_two_second", "Two indexes list a file: the second in order of path does not give its scope.", part, wrong,
          files={"m.safetensors.index.json": part})
    index("of_two_by_bytes", "The order of paths is that of their UTF-8 bytes.", part, path="\uffee.safetensors.index.json", base_scope="\uffee",
          files={"\U00010000.safetensors.index.json": part})
    for name, comment, listing in (
            ("with_dots", "A path of an index has two dots, which are no way up.", index_of(a="x/../part.safetensors")),
            ("with_dot", "A path of an index has a dot.", index_of(a="./part.safetensors")),
            ("lists_missing_file", "An index lists a file that is missing.", index_of(a="part.safetensors", b="gone.safetensors")),
            ("not_json", "An index is not JSON.", b"{"), ("not_utf8", "An index is UTF-16.", part.decode().encode("utf-16")),
            ("is_a_list", "An index is a list.", b"[]"), ("without_weight_map", "An index has no weight_map.", b"{}"),
            ("weight_map_is_null", "The weight_map of an index is null.", b'{"weight_map":null}'),
            ("of_a_number", "The weight_map of an index holds a number.", b'{"weight_map":{"a":7}}')):
        index(name, comment, listing, c, base_scope="part")
        if name in ("not_json", "lists_missing_file", "with_dots"):
            index(name + "_beside_recorded_files", f"{comment[:-1]}; but base.files is there.", listing, base_scope="part",
                  base_files=lambda files: recorded(files, "part.safetensors", "aside.safetensors"))
    files = {**{f"{n}.safetensors": {n: LEFT} for n in "bc"}, "a.safetensors": {"a": LEFT}, "m.safetensors.index.json": index_of(a="a.safetensors", b="b.safetensors")}
    found("recorded_scope_that_index_lacks", "The index would leave no scope of the patch's base.scope: it does not count.", files, "a",
          base_files=recorded(files, "a.safetensors", "b.safetensors", "c.safetensors"))
    found("all_scope_that_index_lacks", "The same without base.files: the index counts.", files, "a", expect="wrong_base")


def given_vectors():
    wrong, c = "wrong_base", "checkpoint"

    def base(name, comment, files, *rest, **options):
        found("base_" + name, comment, files, *rest, **options)
    model = {"model.safetensors": {"a": LEFT}}
    base("in_deep_folders", "Weight files lie in folders at any depth.", {"x/y/z/model.safetensors": {"a": LEFT}, **ASIDE}, "x/y/z/model")
    for folder_ in (".git", ".cache", "__pycache__"):
        base(f"left_out_{folder_.strip('._')}", f"What lies below a folder {folder_} does not matter: the base has one scope.",
             {**model, f"x/{folder_}/y/broken.safetensors": b"broken", f"{folder_}/m.safetensors.index.json": b"broken"}, "of_another_name")
    base("left_out_but_wanted", "A file below .cache could have the patch's base.scope.", {".cache/m.safetensors": {"a": LEFT}, **model}, ".cache/m")
    base("hidden_folder_counts", "A file in another hidden folder is a scope, so that the base has two.", {**model, ".hidden/m.safetensors": {"a": LEFT}}, "x", expect=wrong)
    base("hidden_file_counts", "A hidden file is a scope, so that the base has two.", {**model, ".m.safetensors": {"a": LEFT}}, "x", expect=wrong)
    base("of_hidden_folder", "A file in a hidden folder gives the scope.", {**model, ".hidden/m.safetensors": {"a": LEFT}}, ".hidden/m")
    base("unused_file_broken", "A weight file that no entry needs is broken.", {**model, "x.safetensors": b"broken"}, expect=c)
    base("unused_file_broken_beside_recorded_files", "A weight file that base.files leaves out is broken.", {**model, "x.safetensors": b"broken"},
         base_files=recorded(model, "model.safetensors"))
    base("unused_shard_broken", "A shard that no entry needs is broken.", {M1: {"a": LEFT}, M2: b"broken"}, expect=c)
    for name, comment, files, scope_ in (
            ("first", "The first of two shards is missing, and there is no index.", {M2: {"a": LEFT}}, "model"),
            ("last", "The last of two shards is missing, and there is no index.", {M1: {"a": LEFT}}, "model"),
            ("of_three", "The second of three shards is missing, and there is no index.",
             {"model-00001-of-00003.safetensors": {"a": LEFT}, "model-00003-of-00003.safetensors": {"b": LEFT}}, "model"),
            ("of_variant", "A variant's shard is missing; that of no variant is there.", {M1: {"b": LEFT}, M2: {"c": LEFT}, M1[:-12] + ".fp16.safetensors": {"a": LEFT}}, "model.fp16")):
        base(f"shard_missing_{name}", comment, files, scope_, expect=c)
        if name == "first":
            base(f"shard_missing_{name}_beside_recorded_files", f"{comment[:-1]}; but base.files is there.", files, scope_, base_files=recorded(files, *files))
    base("shards_from_0", "Shards are numbered from 0.", {"m-00000-of-00002.safetensors": {"a": LEFT}, "m-00001-of-00002.safetensors": {"b": LEFT}, **ASIDE}, "m")
    base("shard_missing_but_listed", "The only shard of two is listed by an index, so that none need be there beside it.", {
        M1: {"a": LEFT}, "x.safetensors.index.json": index_of(a=M1), **ASIDE}, "x")
    base("shard_missing_beside_index", "The shard of another count is a scope of its own beside the index, and need not be complete.", {
        M1: {"a": RIGHT}, M2: {"b": LEFT}, "model-00001-of-00003.safetensors": {"a": LEFT}, "model.safetensors.index.json": index_of(a=M1, b=M2)}, "model-00001-of-00003")
    base("without_weights", "The base has no weight file.", {"config.json": b"{}"}, expect=c)
    base("with_weights_left_out", "The base's only weight file lies below .cache.", {".cache/m.safetensors": {"a": LEFT}}, expect=c)
    texts_ = {"config.json": b"{}"}
    vector("ok_base_without_weights_for_files", "success", "The base has no weight file, and the patch no patch file.", texts_, patch_folder(texts_, texts_, {}, [same_file("config.json")]),
           output=texts_)
    target = {"m.safetensors": {"n": LEFT}}
    vector("base_without_weights_for_new", c, "The base has no weight file, and the patch a patch file, which needs none.", texts_,
           patch_folder({**texts_, "m.safetensors": {}}, target, {"m.safetensors": [new("n")]}, index=setter("base", "files", [])))
    empty = T("U8", [0], b"")
    base("scope_without_tensors", "A file without tensors is no scope: the base has one scope, whatever its id.", {**model, "x.safetensors": {}}, "of_another_name")
    base("scope_of_empty_tensor", "A file with an empty tensor is a scope.", {**model, "x.safetensors": {"e": empty}}, "of_another_name", expect=wrong)
    base("scope_without_tensors_only", "The base's only scope has no tensors.", {"x.safetensors": {}}, expect=wrong)
    files = {"weights.bin": {"a": LEFT}, "model.safetensors": {"a": RIGHT}}
    base("recorded_of_other_ending", "base.files names a file that does not end in .safetensors.", files, "weights.bin", base_files=recorded(files, "weights.bin"))
    base("recorded_in_git", "base.files names a file below .cache.", {".cache/x/m.safetensors": {"a": LEFT}, "m.safetensors": {"a": RIGHT}}, ".cache/x/m",
         base_files=recorded({".cache/x/m.safetensors": {"a": LEFT}}, ".cache/x/m.safetensors"))
    other = {**model, "x.safetensors": {"a": RIGHT}}
    base("recorded_alone", "base.files names one of two files: the base has one scope, whatever its id.", other, "of_another_name", base_files=recorded(other, "model.safetensors"))
    base("recorded_of_other_size", "A file of base.files has another size: all files are the base.", other, "of_another_name", expect=wrong,
         base_files=[{**recorded(other, "model.safetensors")[0], "size": 7}])
    base("recorded_of_other_sha256", "A file of base.files has another SHA-256, which does not matter.", other, base_files=[
        {**recorded(other, "model.safetensors")[0], "sha256": "0" * 64}])
    base("recorded_is_missing", "A file of base.files is missing: all files are the base.", other, expect="success",
         base_files=recorded({**other, "y.safetensors": {}}, "model.safetensors", "y.safetensors"))
    patch = basic().bytes
    vector("base_is_a_patch_file", c, "The base is a patch file.", patch, basic())
    base("holds_a_patch_file", "A weight file of the base is a patch file.", {**model, "x.safetensors": patch}, expect=c)
    base("holds_a_patch_file_beside_recorded_files", "A weight file that base.files leaves out is a patch file.", {**model, "x.safetensors": patch},
         base_files=recorded(model, "model.safetensors"))
    vector("base_is_a_patch_folder", c, "The base is a patch folder.", texts(), texts())
    base("with_index_of_a_patch", "The base has a file ckptdiff.json.", {**model, "ckptdiff.json": b"{}"}, expect=c)
    base("with_index_of_a_patch_below", "The base has a file ckptdiff.json, but not at its root.", {**model, "x/ckptdiff.json": b"{}"})
    vector("base_is_a_file_for_a_folder_of_files", wrong, "The base is a file, and the patch needs another file of it.", weights(SMALL_OLD["m.safetensors"]), small())


# ---- Sections 9 and 10: patches as they are given, and their paths --------------------------------------------------

def opened_vectors():
    f = "format"
    files = {"base.safetensors": BASE_FILE}
    whole = basic(base_files=recorded(files, "base.safetensors"))
    for name, path in (("at_root", "x.safetensors"), ("below", "x/y.safetensors"), ("below_patch", "patch/x/y.safetensors")):
        vector(f"ok_patch_folder_of_one_file_{name}", "success", "A folder without index has one weight file, a patch file.", BASE_FILE,
               {path: whole.bytes, "README.md": b"text"}, output=whole.output)
    vector("ok_patch_folder_of_one_file_beside_others", "success", "A folder without index has one weight file under patch/, and others beside.", BASE_FILE,
           {"patch/x.safetensors": whole.bytes, "m.safetensors": BASE_FILE}, output=whole.output)
    for name, comment, parts in (("of_two_files", "has two patch files", {"x.safetensors": whole.bytes, "y.safetensors": whole.bytes}),
                                 ("of_a_shard", "has one patch file, which has no base.files", {"patch/base.safetensors": basic().bytes}),
                                 ("of_no_patch_file", "has one weight file, which is no patch", {"x.safetensors": BASE_FILE}),
                                 ("without_weight_files", "has no weight file", {"x.txt": b""})):
        vector(f"patch_folder_{name}", f, f"A folder without index {comment}.", BASE_FILE, parts)
    first, second = (folder()[f"patch/{name}"] for name in (M1, M2))
    outputs, old = file_bytes(FOLDER_NEW), file_bytes(FOLDER_OLD)
    vector("ok_patch_file_of_folder_alone_first", "success", "A patch file of a folder is applied alone: its target.identity cannot be checked.", old, first, output=outputs[M1])
    vector("patch_file_of_folder_alone_with_copy", f, "A patch file of a folder is applied alone, and has a copy of a tensor in another.", old, second)
    third = {M1: {"a": BASE["a"], "n": T("U8", [3], "07080a")}}
    step = patch_folder(FOLDER_NEW, {**third, M2: FOLDER_NEW[M2], "model.safetensors.index.json": LISTING}, {M1: [same("a"), delta("n")], M2: [same("w"), same("c")]},
                        [same_file("model.safetensors.index.json")])
    vector("ok_chain_of_patch_files_of_folders", "success", "Patch files of two folders are applied alone, as a chain.", old, first, step[f"patch/{M1}"],
           output=weights(third[M1]))
    vector("chain_of_a_patch_file_and_its_folder", "wrong_base", "A patch file of a folder is applied alone, and then a whole folder, which needs more.", old, first, step)
    gives = {"x.safetensors": {}, "y/m.safetensors": {"a": MOVED}}
    start = {"m.safetensors": {"a": LEFT}}
    one = patch_folder(start, gives, {"x.safetensors": [], "y/m.safetensors": [delta("a")]})
    last = {"a": T("U8", [4], "11121316")}
    vector("ok_chain_of_scope_without_tensors", "success", "The first patch gives one scope with tensors, which the second takes whatever its id.", file_bytes(start), one,
           patch_file({"a": MOVED}, last, [delta("a")], base_scope="of_another_name"), output=weights(last))

    def paths(name, comment, *names):
        target = {**{n: n.encode() for n in names}, "keep.txt": b"keep"}
        vector("ok_path_" + name, "success", comment, {"keep.txt": b"keep"}, patch_folder({"keep.txt": b"keep"}, target, {}, [same_file("keep.txt"), *map(new_file, names)]),
               output=target)
    paths("differs_in_case", "Two output paths differ in case only; a file system that cannot tell them apart is no fault of the patch.", "Readme", "readme", "x/A", "X/a")
    paths("in_two_forms", "Two output paths differ in their Unicode normal form only.", "\u00e9", "e\u0301")
    paths("of_reserved_names", "Components that some systems reserve or cannot hold.", "con", "x/nul.txt", "dot.", "space ", "a<b>|?*\"")
    paths("like_git", "Components that begin or end as .git does.", ".gitignore", "x.git/config", ".git ", "git")
    paths("like_unfinished_work", "Components that begin nearly as names of unfinished work do.", ".ckptdiff", "x.ckptdiff-y", ".ckptdiff_/f")
    vector("path_of_target_is_git", f, "The path of a patch file's target lies below .GIT.", weights(TWO_BASE), two(path=".GIT/hooks.safetensors"))
    renamed = two(path="weights", scope="weights")
    vector("ok_path_of_target_without_ending", "success", "The target's path does not end in .safetensors.", weights(TWO_BASE), renamed, output=renamed.output)
    base = {"t": T("BF16", [3], bytes(6))}
    coded = bytes.fromhex("00 80 81 00 00 3f 3f 40")
    ok("raw_example", "The example of section 7.3.", base, {"t": T("BF16", [3], "803f813f0040")}, [delta("t", "raw", blocks=[coded])])


def found_by_mutants():
    """Faults that a reader with one slip (tests/mutants) took for right, or the other way round."""
    f, c = "format", "checkpoint"
    bad_block("context_raw_padding_behind_head", "The bit behind the 23 raw bits of a block is set.",
              adaptive(bytes(4), b"\1\0\0\0", "U8", raw=lambda b: b[:-1] + bytes([b[-1] | 0x80])), old=bytes(4), codec="context")
    eight = sample("U64", 60, 8)
    bad_block("context_static_of_8_bytes_only", "Units of 8 bytes are in the static form, and all else is as if they could be.",
              static(*eight, "U64"), old=eight[0], target=eight[1], dtype="U64", codec="context", changed=len(distances(*eight, "U64")[0]))
    empty = {**TWO_TARGET, "e": T("U8", [0], b"")}
    vector("table_new_empty_coded_sparse", f, "A new tensor without units is coded sparse.", weights(TWO_BASE), patch_file(
        TWO_BASE, empty, [delta("w"), new("n"), new("e")], table=setter("tensors", 2, "codec", "sparse")))
    vector("table_entry_shape_true", f, "A dimension of an entry is true, not 1.", weights(TWO_BASE), two(table=setter("tensors", 1, "shape", [True])))
    bad("metadata_totals_is_list", f, "totals is a list of names.", meta=setter("totals", ["same"]))
    bad_entry("table_entry_base_is_list", f, "An entry's base is a list.", A, base=["dtype"])
    old = bytes(300)
    after = bytes(i % 2 for i in range(256)) + bytes(44)
    ok("sparse_of_128", "128 units change: a varint of a byte 80h and another.", {"t": T("U8", [300], old)}, {"t": T("U8", [300], after)}, [delta("t")])
    bad_folder("delta_of_2_26", "integrity", "A file coded as delta is said to have 2^26 bytes, as it may; its frame says less.",
               index=setter("files", EDIT, "size", 1 << 26))
    bad("table_length_top_byte", f, "The highest byte of the length of the table's JSON is 1.", table_content=lambda b: b[:3] + b"\1" + b[4:])
    notes = {str(k): "" for k in range(300)}
    vector("ok_header_metadata_of_300", "success", "The __metadata__ of base and target have 300 members.", weights(TWO_BASE, header(TWO_BASE, notes)),
           patch_file(TWO_BASE, TWO_TARGET, [delta("w"), new("n")], target_header=header(TWO_TARGET, notes)),
           output=weights(TWO_TARGET, header(TWO_TARGET, notes)))
    many = {"t": T("U8", [1] * 33, "01")}
    vector("header_shape_33_dimensions", f, "A tensor has 33 dimensions, in the table and in the header.", weights(TWO_BASE),
           patch_file(TWO_BASE, many, [new("t")]))
    vector("metadata_nested_65_with_number", f, "Arrays in info nest 65 deep, and the innermost holds a number.", weights(TWO_BASE),
           two(info={"x": json.loads("[" * 63 + "0" + "]" * 63)}))
    vector("metadata_scope_null_with_removed", f, "base.scope is null, but a name is removed.", weights(TWO_BASE),
           patch_file(TWO_BASE, {"n": TWO_TARGET["n"]}, [new("n")], base_scope=None, removed=["w"]))

    def base(name, comment, old, new_text):
        vector("base_header_" + name, c, comment, weights(BASE, swap(old, new_text)(header(BASE))), basic())
        bad("header_" + name, f, comment.replace("the base", "the decoded header"), basic, stored_header=swap(old, new_text))
    base("unknown_dtype", "A tensor of the base has an unknown dtype.", b'"BF16"', b'"BF17"')
    base("dtype_not_text", "A tensor of the base has the dtype 16.", b'"BF16"', b"16")
    base("shape_not_list", "A tensor of the base has the shape 8.", b"[8]", b"8")
    base("shape_negative", "A tensor of the base has the shape [-2, -4].", b"[8]", b"[-2,-4]")
    base("offsets_of_three", "A tensor of the base has three offsets.", b"[0,4]", b"[0,4,4]")
    base("offset_false", "A tensor of the base begins at false, not 0.", b"[0,4]", b"[false,4]")
    vector("base_header_shape_33_dimensions", c, "A tensor of the base has 33 dimensions.", weights({**BASE, "x": T("U8", [1] * 33, "01")}), basic())
    block = sparse([0], [1], 8, w=2)  # ends with 0, as what follows the payload begins
    units = Generated(0, BLOCK // 8 + 1, 8, 0, 0, 0, 0)
    old = generated(units)
    after = b"\1" + bytes(7) + old[8:-8] + b"\1" + bytes(7)
    behind = T("U8", [len(block)], block)
    vector("table_blocks_negative", f, "The last of two blocks has the size -1, the first one byte too many.", weights({"t": T("U64", [units.count], old)}),
           patch_file({"t": T("U64", [units.count], old)}, {"t": T("U64", [units.count], after), "n": behind},
                      [delta("t", blocks=[block[:-1]], changed=2), new("n")], table=setter("tensors", 0, "blocks", [len(block), -1])), units=units)

    renamed = {"m.safetensors": {"meta": setter("target", "path", "m.bin"),
                                 "payloads": lambda data: [(name.replace("m.safetensors", "m.bin"), b) for name, b in data]}}

    def index(document):
        document["shards"][0].update(target="m.bin", path="patch/m.bin")

    def parts(stored):
        stored["patch/m.bin"] = stored.pop("patch/m.safetensors")
    vector("folder_shard_not_a_weight_file", f, "The target of a shard does not end in .safetensors.", file_bytes(SMALL_OLD),
           small(shard=renamed, index=index, parts=parts))
    third = {**TWO_TARGET, "n": T("U8", [1], "0a")}
    first = patch_file(TWO_BASE, TWO_TARGET, [delta("w"), new("n")], base_scope="elsewhere",
                       base_files=[{"path": "a.safetensors", **stat(weights(TWO_BASE))}])
    second = patch_file(TWO_TARGET, third, [same("w"), delta("n")], base_files=[{"path": "c.safetensors", **stat(weights(TWO_TARGET))}])
    vector("ok_chain_base_files_of_the_first", "success", "base.files of the first patch of a chain says which files of the base count.",
           file_bytes({"a.safetensors": TWO_BASE, "b.safetensors": {"w": TWO_TARGET["w"]}}), first, second, output=second.output)
    units = Generated(3, BLOCK // 4 + 1, 8, 0, 0, 1, 0)
    old = generated(units)
    after = old[:BLOCK] + b"\1" + old[BLOCK + 1:]
    ok("blocks_of_three", "Of three blocks of a tensor the second changes.", {"t": T("U64", [units.count], old)}, {"t": T("U64", [units.count], after)},
       [delta("t", blocks=[b"", sparse_of(old[BLOCK:BLOCK + 8], after[BLOCK:BLOCK + 8], "U64", w=8), b""], changed=1)], made=units)
    listed = {"a.safetensors": {"a": LEFT}, "b.safetensors": {"w": BASE["w"]},
              "other.safetensors.index.json": index_of(a="a.safetensors", w="b.safetensors")}
    patch = patch_file({"a": LEFT, "w": BASE["w"]}, {"a": LEFT, "w": TARGET["w"]}, [same("a"), delta("w")], base_scope="model",
                       base_files=[{"path": path, **stat(weights(listed[path]))} for path in ("a.safetensors", "b.safetensors")])
    vector("ok_base_scope_of_the_only_index", "success", "The base's only scope is that of an index, and has another id than the patch says.",
           file_bytes(listed), patch, output=patch.output)

    def static_ok(name, comment, old, new_, dtype, **options):
        shape = [len(old) // CARRIER[dtype]]
        ok("context_static_" + name, comment, {"t": T(dtype, shape, old)}, {"t": T(dtype, shape, new_)},
           [delta("t", "context", blocks=[static(old, new_, dtype, **options)], changed=len(distances(old, new_, dtype)[0]))])
    for n in (1, 2, 3, 61, 62, 63):
        tokens = [8 + 4 * (i & 1) + i % 4 for i in range(n)]
        old = [2000 if i % 7 == 0 or i == n - 1 else 1000 for i in range(n)]
        static_ok(f"of_{n}_units", "The units do not fill the four states evenly, and each takes a word.", tokens_moved([0] * n, old),
                  tokens_moved(tokens, old), "U16", span=(3, 7), groups=[0, 0, 0, 0, 1],
                  tables=[(0, {t: (5, t % 8) for t in range(1, 16)}), (0, {t: (3, t % 4) for t in range(1, 16)})])
    tokens = [i * 7 % 15 for i in range(90)]
    old = [1000] * 90
    static_ok("table_common_1", "The frequencies leave 1 for the commonest token, and one of them is 1.", tokens_moved([0] * 90, old),
              tokens_moved(tokens, old), "U16",
              tables=[(14, {t: (14 - t, 0) for t in range(14)})])
    tokens = [i % 5 + (5, 1, 0)[i % 3] for i in range(90)]
    old = [(1000, 1600, 2000)[i % 3] for i in range(90)]
    static_ok("first_group_without_low_tokens", "The first of three groups has no token as low as those of the last.", tokens_moved([0] * 90, old),
              tokens_moved(tokens, old), "U16", groups=[0, 0, 0, 1, 2], tables="fit")


def tokens_moved(tokens, old):
    """Units of 16 bits after these tokens below 16."""
    units = [x + (t if t < 8 else (4 + t % 4) * 2 * (-1 if t >= 12 else 1)) for t, x in zip(tokens, old)]
    return b"".join(unit.to_bytes(2, "little") for unit in units)


# ---- Successes with one patch file ----------------------------------------------------------------------------------

def successes():
    vector("ok_all_kinds", "success", "An entry of each kind; w holds the example of section 7.4.", BASE_FILE, basic(),
           output=basic().output)
    vector("ok_base_files_and_info", "success", "base.files is there, and info has known and unknown members.", BASE_FILE, basic(
        base_files=[{"path": "base.safetensors", **stat(BASE_FILE)}],
        info={"base_repo": "org/base", "target_revision": "v1", "later": {"é\"\\\x01\n": [-5, None, False]}}),
        output=basic().output)
    vector("ok_tensors_in_memory", "success", "Neither base nor target was ever a file; w has another name.", BASE_FILE,
           basic(base_files=[], info={"tied": {"head": "w"}}, meta=setter("target", "sha256", DROP)), output=basic().output)
    ok("base_files_empty", "The base has no weight file, and no entry needs one.", {}, TARGET,
       [new("a"), new("w"), new("n"), copy("c", "n")], base_files=[])
    vector("ok_header_by_prefix", "success", "The header's frame is compressed after the predicted header.", BASE_FILE,
           basic(header_frame=bytes.fromhex("28b52ffd20f84d0000107b220100f33d65b0")), output=basic().output)
    strange = (b'{ "c":{"shape":[3],"dtype":"U8","data_offsets":[23,26]},"__metadata__":{"\xc3\xa9":"\xe2\x82\xac \xf0\x9f\x98\x80","x":"\\u00e9\\/"},'
               b'\t"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},\n"n":{"dtype":"U8","shape":[3],"data_offsets":[20,23]},'
               b'"w":{"dtype":"BF16","data_offsets":[4,20],"shape":[8]}}   ')
    ok("strange_header", "The target's header is in another order, with Unicode metadata, spaces and an odd length.", BASE, TARGET,
       ENTRIES, target_header=strange)
    ok("header_without_metadata", "The target's header has no __metadata__ and no padding.", BASE, TARGET, ENTRIES,
       target_header=header(TARGET, metadata=None, pad=1))
    ok("table_frame_with_checksum", "The table's frame has a checksum, a right one.", BASE, TARGET, ENTRIES,
       table_frame=lambda _: frame(table_bytes(basic), checksum=(xxhash.xxh64_intdigest(table_bytes(basic)) & 0xFFFFFFFF).to_bytes(4, "little")))
    ok("nothing_at_all", "Base and target hold no tensors.", {}, {}, [])
    names = {"__metadata__x": T("U8", [1], "01"), "tensor/\"\\\n\x7fé😀": T("U8", [1], "02"), " ": T("U8", [1], "03")}
    ok("names_of_all_sorts", "Tensor names with quotes, control characters and Unicode.", names, names,
       [same(n) if n != " " else new(n) for n in names])
    ok("scope_null", "Nothing is taken from the base, and base.scope is null.", BASE, {"n": TARGET["n"]}, [new("n")],
       base_scope=None, removed=[])
    ok("scope_of_another_name", "A base of one scope is taken, whatever its id.", BASE, TARGET, ENTRIES, base_scope="x/y.fp16")
    ok("rename_and_swap", "Two tensors change names, and a third is a delta of one of them.", {"a": T("U8", [2], "0102"), "b": T("U8", [2], "0304"),
        "gone": T("U8", [0], b"")}, {"a": T("U8", [2], "0304"), "b": T("U8", [2], "0102"), "d": T("U8", [2], "0105")},
       [same("a", pieces=[["b", 0, 2]]), same("b", pieces=[["a", 0, 2]]), delta("d", pieces=[["a", 0, 2]])])
    ok("copy_before_its_source", "A copy stands before the tensor it names, and another is of a tensor that stays the same.",
       BASE, {"c": TARGET["n"], "n": TARGET["n"], "a": BASE["a"], "e": BASE["a"]}, [copy("c", "n"), new("n"), same("a"), copy("e", "a")])
    empties = {"e": T("F32", [0], b""), "s": T("F64", [], "000000000000f03f"), "f": T("BF16", [3, 0, 5], b""),
               "big": T("U8", [1 << 24, 0, 1 << 24], b"")}
    after = {**empties, "s": T("F64", [], "010000000000f03f"), "g": T("I8", [0], b""), "h": T("F32", [0], b"")}
    ok("empty_and_scalar_tensors", "Empty tensors of kinds same, new and copy, and a delta of a scalar.", empties, after,
       [same("e"), delta("s"), same("f"), same("big"), new("g"), copy("h", "e")])
    ok("empty_tensor_extended", "An empty tensor is extended by zeros.", {"e": T("U8", [0, 3], b"")}, {"e": T("U8", [2, 3], bytes(6))},
       [same("e")])

    # Every dtype: sparse and raw. The extremes of each carrier, both zeros, infinities, NaN of all sorts.
    edges = {1: ["00", "80", "7f", "ff", "7e", "01", "81", "fe"],
             2: ["0000", "0080", "ff7f", "ffff", "007c", "0100", "807f", "c07f"],
             4: ["00000000", "00000080", "ffffff7f", "ffffffff", "0000807f", "0100807f", "01000000", "0000c0ff"],
             8: ["00" * 8, "00" * 7 + "80", "ff" * 7 + "7f", "ff" * 8, "000000000000f07f", "010000000000f07f", "01" + "00" * 7, "000000000000f8ff"]}
    for carrier in (1, 2, 4, 8):
        old = "".join(edges[carrier])
        shifted = "".join(edges[carrier][2:] + edges[carrier][:2])
        swapped = "".join(edges[carrier][j ^ 1] for j in range(8))
        base, target, entries = {}, {}, []
        for dtype in (d for d in BITS if CARRIER[d] == carrier):
            shape = [len(bytes.fromhex(old)) * 8 // BITS[dtype]]
            if BITS[dtype] == 6:
                shape, old6 = [8], (old[:12], swapped[:12])
            a, b = old6 if BITS[dtype] == 6 else (old, swapped if dtype in INTEGER else shifted)
            base[dtype], target[dtype] = T(dtype, shape, a), T(dtype, shape, b)
            entries.append(delta(dtype, w=carrier))
        ok(f"dtypes_of_{8 * carrier}_bits", f"Deltas of all dtypes with units of {8 * carrier} bits, with extremes, zeros and NaN.",
           base, target, entries)
        base, target, entries = {}, {}, []
        dtype = {1: "U8", 2: "F16", 4: "F32", 8: "I64"}[carrier]
        for w in range(1, carrier + 1):
            g = w % 3 + 1
            name = f"g{g}w{w}"
            base[name], target[name] = T(dtype, [8], old), T(dtype, [8], swapped)
            entries.append(delta(name, g=g, w=w))
        ok(f"sparse_widths_of_{8 * carrier}_bits", f"The codec sparse with all widths, and escapes, for units of {8 * carrier} bits.",
           base, target, entries)
        ok(f"raw_of_{8 * carrier}_bits", f"The codec raw for units of {8 * carrier} bits.", {"t": T(dtype, [8], old)},
           {"t": T(dtype, [8], shifted), "n": T(dtype, [2, 4], swapped)}, [delta("t", "raw"), new("n")])

    # Gaps: the base is extended by zeros, so that large tensors need few bytes.
    def zeros_but(size, *at):
        data = bytearray(size)
        for i in at:
            data[i] = 1
        return bytes(data)
    for size, at, g in ((300, (0, 255, 299), 1), (70000, (65535, 69999), 2), (70000, (254, 65535 + 255, 66000), 2), (600, (255, 599), 1)):
        data = zeros_but(size, *at)
        ok(f"sparse_gaps_{g}_to_{at[-1]}_from_{at[0]}", f"Gaps in {g} planes, at and beside the escape, in an extended tensor.",
           {"t": T("U8", [1], "00")}, {"t": T("U8", [size], data)}, [delta("t", g=g)])
    size = 2 * BLOCK + 2
    data = zeros_but(size, 1, 2 * BLOCK)
    ok("sparse_three_blocks", "Three blocks, of which the second has no change and the third is of two bytes.",
       {"t": T("U8", [1], "00")}, {"t": T("U8", [size], data)},
       [delta("t", blocks=[sparse([1], [1], 1), b"", sparse([0], [1], 1)], changed=2)])
    ok("raw_two_blocks", "Two blocks coded raw, the first in a frame of runs, and a copy of them.", {}, {
        "t": T("U16", [BLOCK // 2 + 1], b"\1\2" * (BLOCK // 2 + 1)), "c": T("U16", [BLOCK // 2 + 1], b"\1\2" * (BLOCK // 2 + 1))},
       [new("t", [plane_zstd(frame_rle(b"\1", BLOCK // 2, magic=False)) + plane_zstd(frame_rle(b"\2", BLOCK // 2, magic=False)),
                  plane(b"\1") + plane(b"\2")]), copy("c", "t")])
    ok("same_cut_and_extended_blocks", "A tensor of more than one block is extended by zeros.", {"t": T("U8", [3], "010203")},
       {"t": T("U8", [BLOCK + 5], b"\1\2\3" + bytes(BLOCK + 2))}, [same("t")])
    ok("plane_frames", "Planes in frames: compressed, with and without content size.", {}, {
        "a": T("U8", [128], bytes([0, 1, 2, 3] * 32)), "b": T("U8", [8], b"\1" * 8)},
       [new("a", [plane_zstd(bytes.fromhex("20805d000020000102030100f9d41101"))]),
        new("b", [plane_zstd(frame(b"\1" * 8, magic=False, state_size=False))])])
    ok("plane_window_of_2_to_21", "A plane's frame has the largest window.", {}, {"b": T("U8", [8], b"\1" * 8)},
       [new("b", [plane_zstd(frame(b"\1" * 8, magic=False, state_size=False, window=0x58))])])

    # Section 8. Each line: base bits, target bits.
    def casts(name, comment, from_type, to_type, pairs):
        def unit(text):
            return bytes.fromhex(text)[::-1]
        old, new_bytes = (b"".join(unit(p[k]) for p in pairs) for k in (0, 1))
        assert cast(old, from_type, to_type) == new_bytes
        n = len(pairs)
        moved = new_bytes[:-1] + bytes([new_bytes[-1] ^ 1])
        ok("cast_" + name, comment, {"s": T(from_type, [n], old), "d": T(from_type, [n], old), "e": T(from_type, [n], old),
                                     "z": T(from_type, [n], old)},
           {"s": T(to_type, [n], new_bytes), "d": T(to_type, [n], moved), "e": T(to_type, [n + 1], new_bytes + unit(pairs[0][1])),
            "z": T(to_type, [n - 1], new_bytes[:len(new_bytes) // n * (n - 1)])},
           [same("s", dtype=from_type), delta("d", dtype=from_type, w=CARRIER[to_type]), delta("e", dtype=from_type, w=CARRIER[to_type]),
            same("z", dtype=from_type)])
    casts("bf16_to_f32", "BF16 widened to F32: same, delta, extended and cut.", "BF16", "F32", [
        ("3f80", "3f800000"), ("8000", "80000000"), ("7f81", "7f810000"), ("ffc1", "ffc10000"), ("0001", "00010000")])
    casts("f16_to_f32", "F16 widened to F32, with subnormals, infinities and NaN of both sorts.", "F16", "F32", [
        ("3c00", "3f800000"), ("8000", "80000000"), ("0001", "33800000"), ("83ff", "b87fc000"), ("0400", "38800000"),
        ("7bff", "477fe000"), ("7c00", "7f800000"), ("fc00", "ff800000"), ("7c01", "7f802000"), ("fe00", "ffc00000"),
        ("7fff", "7fffe000")])
    casts("f32_to_bf16", "F32 rounded to BF16, with ties, overflow, subnormals and NaN of both sorts.", "F32", "BF16", [
        ("3f800000", "3f80"), ("3f808000", "3f80"), ("3f818000", "3f82"), ("3f808001", "3f81"), ("3f807fff", "3f80"),
        ("7f7fffff", "7f80"), ("ff800000", "ff80"), ("7f800001", "7fc0"), ("ffbfffff", "ffff"), ("7fc00000", "7fc0"),
        ("00008000", "0000"), ("80018000", "8002")])
    casts("f32_to_f16", "F32 rounded to F16, with ties, overflow, subnormals, what is too small, and NaN of both sorts.", "F32", "F16", [
        ("3f800000", "3c00"), ("3f801000", "3c00"), ("3f803000", "3c02"), ("bf801001", "bc01"), ("3f802fff", "3c01"), ("477fefff", "7bff"),
        ("477ff000", "7c00"), ("ff7fffff", "fc00"), ("7f800000", "7c00"), ("ff800000", "fc00"), ("38800000", "0400"), ("387fffff", "0400"),
        ("387fe000", "0400"), ("387fdfff", "03ff"), ("38000000", "0200"), ("33800000", "0001"), ("b3c00000", "8002"), ("33000001", "0001"),
        ("33000000", "0000"), ("b2ffffff", "8000"), ("00000001", "0000"), ("80000000", "8000"), ("7f800001", "7e00"), ("ffbfffff", "ffff"),
        ("7fc02000", "7e01")])
    casts("f16_to_bf16", "F16 to BF16, with ties, subnormals, infinities and NaN of both sorts.", "F16", "BF16", [
        ("3c00", "3f80"), ("3c04", "3f80"), ("3c0c", "3f82"), ("bc05", "bf81"), ("7bff", "4780"), ("0001", "3380"), ("83ff", "b880"),
        ("0201", "3800"), ("8000", "8000"), ("7c00", "7f80"), ("fc00", "ff80"), ("7c01", "7fc0"), ("fe08", "ffc1"), ("7fff", "7fff")])
    casts("bf16_to_f16", "BF16 to F16, with overflow, subnormals, ties, what is too small, and NaN of both sorts.", "BF16", "F16", [
        ("3f80", "3c00"), ("bf81", "bc08"), ("477f", "7bf8"), ("4780", "7c00"), ("ff7f", "fc00"), ("3880", "0400"), ("3801", "0204"),
        ("3481", "0004"), ("3440", "0003"), ("3380", "0001"), ("33c0", "0002"), ("3300", "0000"), ("b301", "8001"), ("0001", "0000"),
        ("8000", "8000"), ("7f80", "7c00"), ("ff80", "fc00"), ("7f81", "7e08"), ("ffff", "fff8")])
    ok("resize_both_ways", "Rows are cut and added, as same and as delta.",
       {"a": T("U8", [3, 2], "010203040506"), "b": T("U16", [1, 2], "01000200"), "c": T("U8", [2, 2], "01020304"), "d": T("U8", [1], "09")},
       {"a": T("U8", [2, 2], "01020304"), "b": T("U16", [2, 2], "0100020000000000"), "c": T("U8", [3, 2], "010203040506"),
        "d": T("U8", [0], b"")},
       [same("a"), same("b"), delta("c"), same("d")])


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for make in (container_vectors, metadata_vectors, report_vectors, table_vectors, header_vectors, codec_vectors, context_vectors, context_dense, context_single_checks, base_vectors,
                 piece_rejections, piece_successes, piece_bases, folder_vectors,
                 folder_successes, scope_vectors, doubled_in_base, doubled_in_target, removed_by_base_scope, found_by_mutants,
                 zstd_vectors, version_vectors, fault_vectors, name_vectors, given_vectors, opened_vectors, successes):
        make()
    for old in OUT.glob("*.vector"):
        if old.stem not in WRITTEN:
            old.unlink()
    print(f"{len(WRITTEN)} vectors, {sum(f.stat().st_size for f in OUT.glob('*.vector'))} bytes in {OUT}")


if __name__ == "__main__":
    main()

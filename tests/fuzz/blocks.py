"""Targets: the decoder of each codec, behind a patch whose digests are all right.

An input is one block: its dtype, the base's units, and the coded form. The minimal reader says what it decodes to; a patch of one
tensor is built around it, so that the package meets the coded form where it stands in a real patch, and must give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import zstandard

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.errors import BaseMismatchError, CkptdiffError
from ckptdiff.format.entry import Piece
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.safetensors import Header
from ckptdiff.format.tensor_type import TensorInfo
from ckptdiff.io.parallel import Threads
from ckptdiff.patching.build import CheckCache, rebuild
from ckptdiff.patching.memory import BytesFile, MemoryFile
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, RebuildJob
from tests.fuzz.engine import Disagreement, Outcome, Rng, Target
from tests.fuzz.vectors import BUILD, READER, scenarios
from tests.support.mutations import mutate

DTYPES = list(READER.DTYPES)
SHIFTS = {"F16": 10, "BF16": 7, "F32": 23, "C64": 23, "F64": 52}
"""Where a unit's class stands, but for dtypes where it is the highest byte."""
MOST = 512
"""Units of a block; the minimal reader takes about a microsecond for each."""
Block = tuple[str, bytes, bytes]
"""Dtype, base, coded form."""


def size_for(dtype: str, units: int) -> int:
    """Bytes of about so many units that are whole elements."""
    size, bits = units * READER.DTYPES[dtype][1], READER.DTYPES[dtype][0]
    whole = 3 if bits == 6 else max(bits // 8, 1)
    return max(size // whole, 1) * whole


def join(block: Block) -> bytes:
    """A block as an input."""
    dtype, base, coded = block
    return bytes([DTYPES.index(dtype)]) + (len(base) // READER.DTYPES[dtype][1]).to_bytes(2, "little") + base + coded


def split(data: bytes) -> Block:
    """Any input as a block."""
    dtype = DTYPES[data[0] % len(DTYPES)] if data else "U8"
    size = size_for(dtype, int.from_bytes(data[1:3], "little") % MOST or 1)
    return dtype, data[3 : 3 + size].ljust(size, b"\0"), data[3 + size :]


# --- judging -------------------------------------------------------------------------------------------------------


def reference(codec: str, block: Block) -> tuple[bytes, int] | None:
    """The bytes of the target and how many units changed, by the minimal reader; None if it refuses."""
    dtype, base, coded = block
    carrier, is_float = READER.DTYPES[dtype][1:]
    try:
        if codec == "sparse":
            return READER.decode_sparse(coded, base, carrier, is_float)
        if codec == "context":
            return READER.decode_context(coded, base, dtype)
        target, unit = READER.decode_raw(coded, len(base), carrier), f"<u{carrier}"
        return target, int((np.frombuffer(target, unit) != np.frombuffer(base, unit)).sum())
    except READER.PatchError as error:
        if error.kind != "format":
            raise Disagreement(f"a coded form is refused as {error.kind}") from error
        return None


def seal(codec: str, block: Block, target: bytes, changed: int) -> bytes:
    """A patch file of one tensor around a coded form, all its digests right."""
    dtype, base, coded = block
    shape = [len(base) * 8 // BUILD.BITS[dtype]]
    tensors = ({"t": BUILD.T(dtype, shape, data)} for data in (base, target))
    entries = [BUILD.delta("t", codec, blocks=[coded], changed=changed)]
    return bytes(BUILD.patch_file(*tensors, entries).bytes)


def run(codec: str, data: bytes) -> Outcome:
    """Decode one block with both readers."""
    block = dtype, base, _ = split(data)
    expected = reference(codec, block)
    target, changed = expected or (base, 0)
    file = PatchFile(BytesFile(seal(codec, block, target, max(changed, 1)), "patch"))
    entry = file.table.entries[0]
    error = file.payloads.error_of(entry)
    if error:
        raise Disagreement(f"the builder's seal is not right: {error}")
    memory = MemoryFile("base", Header(b"", {}, (TensorInfo("t", dtype, entry.shape, 0, len(base)),)), [np.frombuffer(base, np.uint8)])
    tensor = Tensor("", "t", dtype, entry.shape, len(base), memory, memory.begins[0])
    adapted = AdaptedBase((Piece("t", 0, entry.units),), {"t": tensor}, dtype, dtype, entry.units)
    step = AdaptedTensor(adapted, entry.units, dtype, entry.nbytes, entry.base_digest, lambda _: BaseMismatchError("another base"))
    recipe = PatchedTensor(file, entry, step)

    def sink(job: RebuildJob, data: np.ndarray) -> bytes:
        return data.tobytes()

    try:
        found = b"".join(part for _, part in rebuild([recipe], sink, Threads(1), CheckCache()))
    except CkptdiffError as refused:
        if refused.kind != "format" or changed:
            raise Disagreement(f"{dtype}, {len(base)} bytes: the minimal reader changes {changed} units") from refused
        return Outcome(True, refused.kind)
    if not changed or found != target:
        raise Disagreement(f"{dtype}, {len(base)} bytes: other bytes than the minimal reader, which changes {changed} units")
    return Outcome(True, "accepted")


# --- corpus --------------------------------------------------------------------------------------------------------


def seeds(codec: str, form: int | None) -> list[bytes]:
    """The small blocks of this codec (and of this form of ``context``) in the vectors."""
    found = {join(block): None for parts in (parts for _, _, parts in scenarios()) for block in _blocks(parts, codec)}
    return [data for data in found if form is None or split(data)[2][:1] == bytes([form])]


def _blocks(parts: dict[str, bytes], codec: str) -> Iterator[Block]:
    """Blocks of a scenario of one base file and one patch file, as far as it can be opened."""
    if list(parts) != ["base.safetensors", "patch.safetensors"]:
        return
    try:
        file = PatchFile(BytesFile(parts["patch.safetensors"], "patch"))
        length = int.from_bytes(parts["base.safetensors"][:8], "little")
        tensors = READER.parse_header(parts["base.safetensors"][8 : 8 + length], None)[1]
    except (CkptdiffError, READER.PatchError):
        return
    where = {name: parts["base.safetensors"][8 + length + begin : 8 + length + end] for name, _, _, begin, end in tensors}
    for entry in file.table.entries:
        if entry.kind == "delta" and entry.codec == codec and len(entry.blocks) == 1 and entry.units < MOST and not entry.pieces:
            coded = bytes(file.payloads.read_blocks(entry, 0, 1)[0])
            if entry.base_dtype == entry.dtype and len(where.get(entry.name, b"")) == entry.nbytes:
                yield entry.dtype, where[entry.name], coded


# --- mutating ------------------------------------------------------------------------------------------------------


def mutate_block(make: Callable[[Rng], Block], change: Callable[[Rng, Block], bytes], rng: Rng, data: bytes) -> bytes:
    """Another coded form, another base, or a fresh block of a writer that takes choices the package's writer does not."""
    block = dtype, base, coded = split(data)
    choice = rng.random()
    if choice < 0.06:
        return join(make(rng))
    if choice < 0.2:
        return join((dtype, mutate(rng, base)[: len(base)].ljust(len(base), b"\0"), coded))
    if choice < 0.25:
        return mutate(rng, data)
    return join((dtype, base, change(rng, block)))


def fresh(rng: Rng, narrow: bool = False) -> tuple[str, bytes, bytes]:
    """A dtype, and base and target bytes with some changes; ``narrow``: units of less than 8 bytes."""
    dtype = str(rng.choice([name for name in DTYPES if not narrow or READER.DTYPES[name][1] < 8]))
    carrier = READER.DTYPES[dtype][1]
    size = size_for(dtype, int(rng.choice([1, 2, 3, 5, 16, 31, 60, 400], p=[0.1, 0.1, 0.1, 0.1, 0.25, 0.2, 0.14, 0.01])))
    units, kind = size // carrier, rng.choice(4, p=[0.05, 0.6, 0.15, 0.2])
    if kind == 0:
        base = rng.bytes(size)
    elif kind == 1:  # few classes, near to each other
        middle, shift = int.from_bytes(rng.bytes(carrier), "little"), SHIFTS.get(dtype, 8 * carrier - 8)
        few = [middle + (k << shift) & (1 << 8 * carrier) - 1 for k in rng.integers(-3, 4, size=8).tolist()]
        base = np.array(few, f"<u{carrier}")[rng.integers(len(few), size=units)].tobytes()
    elif kind == 2:  # the ends of the range
        ends = np.array([0, 1, (1 << 8 * carrier) - 1, 1 << 8 * carrier - 1, (1 << 8 * carrier - 1) - 1], f"<u{carrier}")
        base = ends[rng.integers(len(ends), size=units)].tobytes()
    else:
        base = bytes([int(rng.integers(256))]) * size
    new = np.frombuffer(base, f"<u{carrier}").copy()
    chosen = np.flatnonzero(rng.random(units) < rng.choice([0.02, 0.2, 1.0]))
    chosen = chosen if len(chosen) else rng.integers(units, size=1)
    steps = np.frombuffer(rng.bytes(8 * len(chosen)), "<u8") >> np.uint64(rng.integers(64))
    new[chosen] += (steps | np.uint64(1)).astype(new.dtype)
    return dtype, base, new.tobytes()


def make_raw(rng: Rng) -> Block:
    """Planes in all sorts of frames."""
    dtype, base, target = fresh(rng)
    carrier = READER.DTYPES[dtype][1]
    return dtype, base, b"".join(plane(rng, target[k::carrier]) for k in range(carrier))


def plane(rng: Rng, data: bytes) -> bytes:
    """A plane, stored or in a frame by hand or by zstd."""
    kind = rng.integers(6)
    if not data or kind < 2:
        return bytes(BUILD.plane(data))
    if kind == 2:
        return bytes(BUILD.plane_zstd(BUILD.frame(data, magic=False, state_size=bool(rng.integers(2)))))
    if kind == 3 and len(set(data)) == 1:
        return bytes(BUILD.plane_zstd(BUILD.frame_rle(data[:1], len(data), magic=False)))
    if kind == 4:
        return bytes(BUILD.plane_zstd(BUILD.frame(data, magic=False, window=int(rng.integers(0, 0x60)))))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        int(rng.integers(1, 20)), write_content_size=bool(rng.integers(2)), write_checksum=bool(rng.random() < 0.1)
    )
    return bytes(BUILD.plane_zstd(zstandard.ZstdCompressor(compression_params=parameters).compress(data)[4:]))


def make_sparse(rng: Rng) -> Block:
    """Escaped values of any width."""
    dtype, base, target = fresh(rng)
    gaps, values = BUILD.distances(base, target, dtype)
    carrier, g = READER.DTYPES[dtype][1], int(rng.integers(1, 4))
    w = int(rng.integers(1, carrier + 1))
    if rng.random() < 0.3:
        gaps[int(rng.integers(len(gaps)))] += int(rng.choice([1, 2, 254, 255, 65535, 1 << 20]))
    if rng.random() < 0.1:
        values[int(rng.integers(len(values)))] = (1 << 8 * carrier) - 1
    ends = [values_planes(rng, gaps, g, 3), values_planes(rng, values, w, carrier)]
    return dtype, base, BUILD.varint(len(gaps)) + bytes([w << 4 | g]) + b"".join(ends)


def values_planes(rng: Rng, values: list[int], w: int, width: int) -> bytes:
    """Escaped values (spec 7.1), each plane as :func:`plane` writes it."""
    escape = 256**w - 1
    low = BUILD.planes(values if w == width else [min(v, escape) for v in values], w)
    high = [] if w == width else BUILD.planes([v - escape for v in values if v >= escape], width)
    return b"".join(plane(rng, part) for part in low + high)


def change_bytes(rng: Rng, block: Block) -> bytes:
    return mutate(rng, block[2])


def make_adaptive(rng: Rng) -> Block:
    """Any span, any rates, and code cut off where it leaves the range."""
    dtype, base, target = fresh(rng)
    classes, changed = BUILD.moves(base, target, dtype)
    moved, options = [classes[at] for at, _, _ in changed], {}
    if rng.random() < 0.3:
        lo, hi = int(rng.integers(min(moved) + 1)), int(rng.integers(max(moved), 256))
        rates = rng.integers(1, int(rng.choice([2, 51])), size=hi - lo + 1).tolist()
        options = {"span": (lo, hi), "rates": rates}
    if rng.random() < 0.1:
        options["leave"] = str(rng.choice(["change", "run"]))
    try:
        return dtype, base, BUILD.adaptive(base, target, dtype, **options)
    except AssertionError:  # there the code cannot leave the range
        return dtype, base, BUILD.adaptive(base, target, dtype)


def make_static(rng: Rng) -> Block:
    """Any span, levels, groups and tables."""
    dtype, base, target = fresh(rng, narrow=True)
    classes, changed = BUILD.moves(base, target, dtype)
    lo, hi = int(rng.integers(min(classes) + 1)), int(rng.integers(max(classes), 256))
    options: dict[str, Any] = {"span": (lo, hi) if rng.random() < 0.05 else None}
    lo, hi = options["span"] or (min(classes), max(classes))
    r, c = (int(rng.integers(8 if rng.random() < 0.03 else 3)) for _ in range(2)) if rng.random() < 0.5 else (0, 0)
    if r or c:
        width = int(rng.integers(1, len(classes) + 1))
        phase = int(rng.integers(width))
        rows = rng.integers(1 << r, size=-(-(phase + len(classes)) // width)).tolist()
        options |= {"level_bits": (r, c), "width": width, "phase": phase, "rows": rows}
        options["columns"] = rng.integers(1 << c, size=width).tolist()
    count = int(rng.choice([1, 2, 3, 64], p=[0.6, 0.2, 0.18, 0.02]))
    groups = rng.integers(count, size=(hi - lo + 1) * (2**r + 2**c - 1))
    options["groups"] = groups.tolist()
    tokens = {_token(distance, side) for _, distance, side in changed} | {0}
    tables = [_table(rng, tokens) for _ in range(int(groups.max()) + 1)]
    return dtype, base, BUILD.static(base, target, dtype, tables=tables, **options)


def _token(distance: int, side: int) -> int:
    if distance < 8:
        return distance
    k = distance.bit_length() - 1
    return 8 + 8 * (k - 3) + 4 * side + (distance >> k - 2 & 3)


def _table(rng: Rng, tokens: set[int]) -> tuple[int, dict[int, tuple[int, int]]]:
    """A table in which each of the tokens has a place: the commonest, and what the others take (four bits, and three below)."""
    wanted = sorted(tokens | set(rng.integers(max(tokens) + 1, size=2).tolist()))
    common = int(rng.choice(wanted))
    most = max((2**14 - 1) // max(len(wanted), 1), 1).bit_length() - 1
    table = {}
    for t in wanted:
        if t != common:
            b = int(rng.integers(1, max(most, 1) + 1))
            table[t] = (b, int(rng.integers(1 << min(b - 1, 3))))
    return common, table


def change_context(rng: Rng, block: Block) -> bytes:
    """Mutate raw bits, bit by bit, or what follows them; then mostly cut both to what a decoder takes of them."""
    try:
        reader = READER.Reader(block[2])
        form, raw = reader.take(1)[0], reader.take(reader.varint())
    except READER.PatchError:
        return mutate(rng, block[2])
    rest, kind = block[2][reader.at :], rng.integers(5)
    if kind == 0:
        rest = mutate(rng, rest)
    elif kind == 1:
        form = int(rng.choice([1, 2, form, int(rng.integers(256))]))
    elif kind == 2:
        raw = mutate(rng, raw)
    else:
        raw = _change_bits(rng, raw)
    if rng.random() < 0.25:
        raw, rest = _cut(block, form, raw, rest)
    return bytes(BUILD.context_block(form, raw, rest))


def _change_bits(rng: Rng, raw: bytes) -> bytes:
    """Set, insert or delete a field of a few bits: near the head as often as anywhere."""
    value, size = int.from_bytes(raw, "little"), 8 * len(raw)
    at = int(rng.integers(min(size, int(rng.choice([40, 1 << 20]))) + 1))
    width = int(rng.choice([1, 2, 4, 6, 8, 22]))
    low, field = value & (1 << at) - 1, int(rng.integers(1 << width))
    kind = rng.integers(3)
    high = value >> at + (0 if kind == 1 else width)
    value = low | high << at if kind == 2 else low | field << at | high << at + width
    return value.to_bytes((max(value.bit_length(), size) + 7) // 8, "little")


def _cut(block: Block, form: int, raw: bytes, rest: bytes) -> tuple[bytes, bytes]:
    """Raw bits and coded bytes without what a decoder would not take."""
    dtype, base, _ = block
    carrier = READER.DTYPES[dtype][1]
    bits, reader = READER.RawBits(raw), READER.Reader(rest.rstrip(b"\0") if form == 1 else rest)
    classes = BUILD.moves(base, base, dtype)[0]
    try:
        for _ in (READER.decode_adaptive if form == 1 else READER.decode_static)(reader, bits, classes, 8 * carrier):
            pass
    except READER.PatchError:
        pass
    size = min((bits.at + 7) // 8, 1 << 16)
    value = int.from_bytes(raw[:size], "little") & (1 << bits.at) - 1
    return value.to_bytes(size, "little"), bytes(reader.data)


def target(
    name: str, codec: str, form: int | None, make: Callable[[Rng], Block], change: Callable[[Rng, Block], bytes], count: int
) -> Target:
    return Target(name, partial(seeds, codec, form), partial(mutate_block, make, change), partial(run, codec), count)


TARGETS = [
    target("raw", "raw", None, make_raw, change_bytes, 6000),
    target("sparse", "sparse", None, make_sparse, change_bytes, 6000),
    target("adaptive", "context", 1, make_adaptive, change_context, 4000),
    target("static", "context", 2, make_static, change_context, 4000),
]

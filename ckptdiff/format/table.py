"""The table of a patch file (spec section 6): frozen dataclasses and their bytes.

Reading is strict: every fault is one FormatError or UnsupportedError that says where it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import zstandard

from ckptdiff.errors import CheckpointError, FormatError, UnsupportedError, cut
from ckptdiff.format import canonical
from ckptdiff.format.canonical import Fields, JsonObject, quoted
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import CASTS, DTYPES, MAX_FILE, MAX_SIZE
from ckptdiff.format.safetensors import MAX_NAME, MAX_RANK, MAX_TENSORS
from ckptdiff.machine import machine_error

MAX_TABLE = 1 << 25
MAX_ENTRY = 128
"""Braces, brackets and commas of an entry but for its blocks: two shapes and eleven members need no more than 76."""
MAX_ENTRY_DEPTH = 5
"""The shape in the base of an entry in the array in the table."""
MAX_CODED_BLOCK = 1 << 24
TABLE_LEVEL = 6

CODEC_NAMES = ("raw", "sparse", "context")
"""The closed table of codecs (spec section 7), which :mod:`ckptdiff.codecs` fills."""

Kind: TypeAlias = Literal["same", "delta", "new", "copy"]
KINDS: tuple[Kind, ...] = ("same", "delta", "new", "copy")


def check_sorted(names: Iterable[str], where: str) -> None:
    for a, b in itertools.pairwise(names):
        if a.encode() >= b.encode():
            raise FormatError(f"{where}: {quoted(b)} is out of order or repeated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over a table, or over the tables of a folder."""

    same: int = 0
    delta: int = 0
    new: int = 0
    copy: int = 0
    removed: int = 0
    units: int = 0
    changed: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_json(self) -> JsonObject:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def read(cls, parent: Fields) -> Totals:
        names = [f.name for f in fields(cls)]
        child = parent.child("totals", " ".join(names))
        return cls(**{name: child.integer(name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the target file (spec 6). ``base_*`` are None where there is no base tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    base_name: str | None = None
    base_dtype: str | None = None
    base_shape: tuple[int, ...] | None = None
    codec: str | None = None
    changed: int = 0
    blocks: tuple[int, ...] = ()
    of: str | None = None
    digest: bytes = b""
    base_digest: bytes = b""
    payload_digest: bytes = b""

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].nbytes(self.shape) or 0

    @property
    def units(self) -> int:
        return self.nbytes // DTYPES[self.dtype].carrier

    @property
    def base_nbytes(self) -> int:
        if self.base_dtype is None or self.base_shape is None:
            return 0
        return DTYPES[self.base_dtype].nbytes(self.base_shape) or 0

    @property
    def has_payload(self) -> bool:
        return self.kind in ("delta", "new")

    @property
    def payload_size(self) -> int:
        return sum(self.blocks)

    @property
    def adapted(self) -> bool:
        """Whether the base must be cast, cut or extended."""
        return self.base_name is not None and (self.base_dtype, self.base_shape) != (self.dtype, self.shape)

    def to_json(self) -> JsonObject:
        value: JsonObject = {"dtype": self.dtype, "kind": self.kind, "name": self.name, "shape": list(self.shape)}
        if self.base_name is not None:
            base: JsonObject = {}
            if self.base_name != self.name:
                base["name"] = self.base_name
            if self.base_dtype != self.dtype:
                base["dtype"] = self.base_dtype
            if self.base_shape != self.shape:
                base["shape"] = list(self.base_shape or ())
            if base:
                value["base"] = base
        if self.has_payload:
            value |= {"codec": self.codec, "blocks": list(self.blocks)}
        if self.kind == "delta":
            value["changed"] = self.changed
        if self.kind == "copy":
            value["of"] = self.of
        return value

    def digests(self) -> bytes:
        """This entry's part of the digests behind the table's JSON."""
        if self.kind == "same":
            return self.digest + (self.base_digest if self.adapted else b"")
        return self.digest + self.base_digest + self.payload_digest if self.kind != "copy" else b""

    def with_digests(self, digest: bytes, base_digest: bytes, payload_digest: bytes) -> Entry:
        """This entry with what :meth:`digests` wrote."""
        return Entry(
            name=self.name,
            dtype=self.dtype,
            shape=self.shape,
            kind=self.kind,
            base_name=self.base_name,
            base_dtype=self.base_dtype,
            base_shape=self.base_shape,
            codec=self.codec,
            changed=self.changed,
            blocks=self.blocks,
            of=self.of,
            digest=digest,
            base_digest=base_digest,
            payload_digest=payload_digest,
        )

    @classmethod
    def read(cls, value: Any, where: str) -> Entry:
        """An entry of a table's JSON, without its digests."""
        f = Fields(value, where, MEMBERS)
        kind = f.kind(MEMBERS_OF, COMMON)
        name = as_name(f.text("name"), f"{where}.name")
        dtype, shape = _dtype(f), _shape(f)
        nbytes = DTYPES[dtype].nbytes(shape)
        if nbytes is None:
            raise FormatError(f"{where}: a {dtype} tensor of shape {cut(list(shape))} has no whole size of at most {MAX_SIZE} bytes")
        found: dict[str, Any] = _read_base(f, name, dtype, shape) if kind in ("same", "delta") else {}
        if kind in ("delta", "new"):
            found |= {"codec": _codec(f, kind), "blocks": _blocks(f, nbytes)}
        if kind == "delta":
            found["changed"] = f.integer("changed", 1, nbytes // DTYPES[dtype].carrier)
        if kind == "copy":
            found["of"] = as_name(f.text("of"), f"{where}.of")
        return cls(name=name, dtype=dtype, shape=shape, kind=kind, **found)


COMMON = "name dtype shape kind"
MEMBERS = f"{COMMON} base codec changed blocks of"
MEMBERS_OF = {"same": "base", "delta": "base codec changed blocks", "new": "codec blocks", "copy": "of"}
"""Members that an entry of each kind may have beside the common ones."""


def as_name(value: Any, where: str) -> str:
    """A tensor's name; raises FormatError for anything else."""
    name = canonical.as_text(value, where)
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise FormatError(f"{where}: expected 1 to {MAX_NAME} bytes, found {len(name.encode())}")
    return name


def _dtype(f: Fields) -> str:
    dtype = f.text("dtype")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{f.where}.dtype: unknown dtype {quoted(dtype)}: upgrade ckptdiff")
    return dtype


def _shape(f: Fields) -> tuple[int, ...]:
    shape = f.array("shape", canonical.as_integer)
    if len(shape) > MAX_RANK or any(dim > MAX_SIZE for dim in shape):
        raise FormatError(f"{f.where}.shape: more than {MAX_RANK} dimensions, or one above {MAX_SIZE}")
    return shape


def _codec(f: Fields, kind: str) -> str:
    codec = f.text("codec")
    if codec not in CODEC_NAMES:
        raise UnsupportedError(f"{f.where}.codec: unknown codec {quoted(codec)}: upgrade ckptdiff")
    if kind == "new" and codec != "raw":
        raise FormatError(f'{f.where}.codec: expected "raw" for a new tensor, found {quoted(codec)}')
    return codec


def _blocks(f: Fields, nbytes: int) -> tuple[int, ...]:
    blocks = f.array("blocks", canonical.as_integer)
    expected = block_count(nbytes)
    if len(blocks) != expected or any(size > MAX_CODED_BLOCK for size in blocks):
        raise FormatError(f"{f.where}.blocks: expected {expected} sizes of at most {MAX_CODED_BLOCK} bytes, found {len(blocks)}")
    return blocks


def _read_base(f: Fields, name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    own = {"base_name": name, "base_dtype": dtype, "base_shape": shape}
    found: dict[str, Any] = dict(own)
    if "base" not in f:
        return found
    base = f.child("base", "name dtype shape")
    if not base.value:
        raise FormatError(f"{base.where}: expected a member")
    if "name" in base:
        found["base_name"] = as_name(base.text("name"), f"{base.where}.name")
    if "dtype" in base:
        found["base_dtype"] = _dtype(base)
        if (found["base_dtype"], dtype) not in CASTS:
            raise FormatError(f"{base.where}.dtype: {found['base_dtype']} cannot be cast to {dtype}")
    if "shape" in base:
        old = found["base_shape"] = _shape(base)
        if len(old) != len(shape) or old[1:] != shape[1:]:
            raise FormatError(f"{base.where}.shape: {cut(list(old))} and {cut(list(shape))} differ in more than rows")
        if DTYPES[found["base_dtype"]].nbytes(old) is None:
            raise FormatError(f"{base.where}.shape: {cut(list(old))} has no whole size of at most {MAX_SIZE} bytes")
    for key in ("name", "dtype", "shape"):
        if key in base and found[f"base_{key}"] == own[f"base_{key}"]:
            raise FormatError(f"{base.where}.{key}: written although it equals the entry's own")
    return found


@dataclass(frozen=True, slots=True)
class Table:
    """The entries of one target file in the order of its data, and the scope's removed tensors."""

    entries: tuple[Entry, ...]
    removed: tuple[str, ...] = ()

    @property
    def totals(self) -> Totals:
        counts = {kind: sum(entry.kind == kind for entry in self.entries) for kind in KINDS}
        return Totals(
            **counts,
            removed=len(self.removed),
            units=sum(entry.units for entry in self.entries),
            changed=sum(entry.changed for entry in self.entries),
        )

    def to_bytes(self) -> bytes:
        """The stored table; raises CheckpointError if it would be larger than a reader takes."""
        text = canonical.dumps({"removed": list(self.removed), "tensors": [entry.to_json() for entry in self.entries]})
        content = len(text).to_bytes(4, "little") + text + b"".join(entry.digests() for entry in self.entries)
        if len(content) > MAX_TABLE or len(self.removed) > MAX_TENSORS:
            raise CheckpointError(
                f"its {len(self.entries)} tensors and {len(self.removed)} removed names make a table of {len(content)} bytes, "
                f"expected at most {MAX_TABLE}, and {MAX_TENSORS} names: save the checkpoint in more and smaller files"
            )
        return zstandard.ZstdCompressor(level=TABLE_LEVEL, write_content_size=True).compress(content)

    @classmethod
    def from_bytes(cls, stored: bytes, where: str, target_size: int = MAX_FILE) -> Table:
        """Read a stored table of a file that is stated to have ``target_size`` bytes."""
        content = decompress(stored, MAX_TABLE, where)
        length = int.from_bytes(content[:4], "little")
        if len(content) < 4 + length or len(content) < 4:
            raise FormatError(f"{where}: its JSON would have {length} bytes, but it has {len(content)} in all")
        f = canonical.load_divided(
            content[4 : 4 + length],
            where,
            "removed tensors",
            {"removed": as_name, "tensors": Entry.read},
            most=MAX_TENSORS,
            depth=MAX_ENTRY_DEPTH,
            nodes=MAX_ENTRY + min(target_size, MAX_FILE) // BLOCK,
        )
        entries, removed = f.items("tensors"), f.items("removed")
        check_sorted(removed, f"{where}.removed")
        if len({entry.name for entry in entries}) != len(entries):
            raise FormatError(f"{where}: a tensor name is repeated")
        return cls(_with_digests(entries, content, 4 + length, where), tuple(removed))


def _with_digests(entries: Iterable[Entry], content: bytes, start: int, where: str) -> tuple[Entry, ...]:
    """Entries with their digests, which stand in ``content`` from ``start`` on."""
    found, at = [], start

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return content[at - size : at]

    for entry in entries:
        digest = take(16) if entry.kind != "copy" else b""
        own = entry.kind == "delta" or (entry.kind == "same" and entry.adapted)
        base = take(16) if own else digest if entry.kind == "same" else b""
        found.append(entry.with_digests(digest, base, take(8) if entry.has_payload else b""))
    if at > len(content):
        raise FormatError(f"{where}: its digests end too soon")
    if at < len(content):
        raise FormatError(f"{where}: {len(content) - start} bytes of digests are more than its entries need")
    return tuple(found)


def decompress(stored: bytes, limit: int, where: str, prefix: bytes = b"") -> bytes:
    """One zstd frame with content size, nothing behind it, checked against ``limit`` before anything is allocated."""
    try:
        size = zstandard.get_frame_parameters(stored).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN or size > limit:
            raise FormatError(f"{where}: a zstd frame must state a content size of at most {limit}")
        dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
        data = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise machine_error(error) or FormatError(f"{where}: bad zstd frame: {error}") from None
    if len(data) != size:
        raise FormatError(f"{where}: a zstd frame of {len(data)} bytes states {size}")
    return data

"""The entries of a table (spec section 6) and their sums: frozen dataclasses and their JSON.

Reading is strict: every fault is one FormatError or UnsupportedError that says where it is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ckptdiff.errors import FormatError, UnsupportedError, cut
from ckptdiff.format import fields
from ckptdiff.format.canonical import JsonObject, quoted
from ckptdiff.format.digests import block_count
from ckptdiff.format.dtypes import CASTS, DTYPES, MAX_SIZE
from ckptdiff.format.fields import Fields
from ckptdiff.format.safetensors import MAX_NAME, MAX_RANK

MAX_CODED_BLOCK = 1 << 24
"""Limit of a block's coded form in bytes."""

CODEC_NAMES = ("raw", "sparse", "context")
"""The closed table of codecs (spec section 7), which :mod:`ckptdiff.codecs` fills."""

Kind: TypeAlias = Literal["same", "delta", "new", "copy"]
KINDS: tuple[Kind, ...] = ("same", "delta", "new", "copy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over a table, or over the tables of a folder (spec 5.1)."""

    same: int = 0
    """Entries of this kind; the next three fields count those of the other kinds."""
    delta: int = 0
    new: int = 0
    copy: int = 0
    removed: int = 0
    """Base tensors that no target tensor comes from."""
    units: int = 0
    """Units of all entries."""
    changed: int = 0
    """Units of ``delta`` entries that differ from the adapted base."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)})

    def to_json(self) -> JsonObject:
        """The object ``totals`` of metadata and index."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def read(cls, parent: Fields) -> Totals:
        """The member ``totals`` of an object; raises FormatError and UnsupportedError."""
        names = [f.name for f in dataclasses.fields(cls)]
        child = parent.child("totals", " ".join(names))
        return cls(**{name: child.integer(name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the target file (spec 6)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    base_name: str | None = None
    """Name of the base tensor; None where there is none, as for its dtype and shape."""
    base_dtype: str | None = None
    base_shape: tuple[int, ...] | None = None
    codec: str | None = None
    """Name of the codec of a ``delta`` or ``new`` tensor."""
    changed: int = 0
    """Units of a ``delta`` tensor that differ from the adapted base."""
    blocks: tuple[int, ...] = ()
    """Size in bytes of each block's coded form."""
    of: str | None = None
    """Name of the tensor that a ``copy`` is a copy of."""
    digest: bytes = b""
    """Tensor digest, 16 bytes; empty for a ``copy``."""
    base_digest: bytes = b""
    """Tensor digest of the base tensor, 16 bytes; empty where there is none."""
    payload_digest: bytes = b""
    """XXH3-64 of the payload, 8 bytes; empty where there is none."""

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return DTYPES[self.dtype].nbytes(self.shape) or 0

    @property
    def units(self) -> int:
        """How many units the tensor has."""
        return self.nbytes // DTYPES[self.dtype].carrier

    @property
    def base_nbytes(self) -> int:
        """Size of the base tensor in bytes; 0 where there is none."""
        if self.base_dtype is None or self.base_shape is None:
            return 0
        return DTYPES[self.base_dtype].nbytes(self.base_shape) or 0

    @property
    def has_payload(self) -> bool:
        """Whether the entry has coded blocks."""
        return self.kind in ("delta", "new")

    @property
    def payload_size(self) -> int:
        """Size of all coded blocks in bytes."""
        return sum(self.blocks)

    @property
    def adapted(self) -> bool:
        """Whether the base tensor must be cast, cut or extended (spec 8)."""
        return self.base_name is not None and (self.base_dtype, self.base_shape) != (self.dtype, self.shape)

    def to_json(self) -> JsonObject:
        """The entry as it stands in the table's JSON, without its digests."""
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
        """What the entry adds to the digests behind the table's JSON."""
        if self.kind == "same":
            return self.digest + (self.base_digest if self.adapted else b"")
        return self.digest + self.base_digest + self.payload_digest if self.kind != "copy" else b""

    def with_digests(self, digest: bytes, base_digest: bytes, payload_digest: bytes) -> Entry:
        """The entry with the digests that stood behind the table's JSON."""
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
        """Read an entry of a table's JSON, which has no digests yet; raises FormatError or UnsupportedError."""
        f = Fields(value, where, ALL_MEMBERS)
        kind = f.kind(KIND_MEMBERS, COMMON_MEMBERS)
        name = as_name(f.text("name"), f"{where}.name")
        dtype, shape = _dtype(f), _shape(f)
        nbytes = DTYPES[dtype].nbytes(shape)
        if nbytes is None:
            raise FormatError(f"{where}: a {dtype} tensor of shape {cut(list(shape))} has no whole size of at most {MAX_SIZE} bytes")
        members: dict[str, Any] = _read_base(f, name, dtype, shape) if kind in ("same", "delta") else {}
        if kind in ("delta", "new"):
            members |= {"codec": _codec(f, kind), "blocks": _blocks(f, nbytes)}
        if kind == "delta":
            members["changed"] = f.integer("changed", 1, nbytes // DTYPES[dtype].carrier)
        if kind == "copy":
            members["of"] = as_name(f.text("of"), f"{where}.of")
        return cls(name=name, dtype=dtype, shape=shape, kind=kind, **members)


COMMON_MEMBERS = "name dtype shape kind"
"""Members that an entry of any kind has."""
ALL_MEMBERS = f"{COMMON_MEMBERS} base codec changed blocks of"
"""Members that some kind may have."""
KIND_MEMBERS = {"same": "base", "delta": "base codec changed blocks", "new": "codec blocks", "copy": "of"}
"""Members that an entry of each kind may have beside the common ones."""


def as_name(value: Any, where: str) -> str:
    """A tensor's name; raises FormatError for anything else."""
    name = fields.as_text(value, where)
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise FormatError(f"{where}: expected 1 to {MAX_NAME} bytes, found {len(name.encode())}")
    return name


def _dtype(f: Fields) -> str:
    """The member ``dtype``, which may be one of section 4 only."""
    dtype = f.text("dtype")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{f.where}.dtype: unknown dtype {quoted(dtype)}: upgrade ckptdiff")
    return dtype


def _shape(f: Fields) -> tuple[int, ...]:
    """The member ``shape``, within the limits of section 11."""
    shape = f.array("shape", fields.as_integer)
    if len(shape) > MAX_RANK or any(dim > MAX_SIZE for dim in shape):
        raise FormatError(f"{f.where}.shape: more than {MAX_RANK} dimensions, or one above {MAX_SIZE}")
    return shape


def _codec(f: Fields, kind: str) -> str:
    """The member ``codec``, which must be one that the entry's kind may have."""
    codec = f.text("codec")
    if codec not in CODEC_NAMES:
        raise UnsupportedError(f"{f.where}.codec: unknown codec {quoted(codec)}: upgrade ckptdiff")
    if kind == "new" and codec != "raw":
        raise FormatError(f'{f.where}.codec: expected "raw" for a new tensor, found {quoted(codec)}')
    return codec


def _blocks(f: Fields, nbytes: int) -> tuple[int, ...]:
    """The member ``blocks``: one size for each block of a tensor of so many bytes."""
    blocks = f.array("blocks", fields.as_integer)
    expected = block_count(nbytes)
    if len(blocks) != expected or any(size > MAX_CODED_BLOCK for size in blocks):
        raise FormatError(f"{f.where}.blocks: expected {expected} sizes of at most {MAX_CODED_BLOCK} bytes, found {len(blocks)}")
    return blocks


def _read_base(f: Fields, name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of the base tensor, given the entry's own: a member of ``base`` says only what differs."""
    own = {"base_name": name, "base_dtype": dtype, "base_shape": shape}
    merged: dict[str, Any] = dict(own)
    if "base" not in f:
        return merged
    base = f.child("base", "name dtype shape")
    if not base.value:
        raise FormatError(f"{base.where}: expected a member")
    if "name" in base:
        merged["base_name"] = as_name(base.text("name"), f"{base.where}.name")
    if "dtype" in base:
        merged["base_dtype"] = _dtype(base)
        if (merged["base_dtype"], dtype) not in CASTS:
            raise FormatError(f"{base.where}.dtype: {merged['base_dtype']} cannot be cast to {dtype}")
    if "shape" in base:
        old = merged["base_shape"] = _shape(base)
        if len(old) != len(shape) or old[1:] != shape[1:]:
            raise FormatError(f"{base.where}.shape: {cut(list(old))} and {cut(list(shape))} differ in more than rows")
        if DTYPES[merged["base_dtype"]].nbytes(old) is None:
            raise FormatError(f"{base.where}.shape: {cut(list(old))} has no whole size of at most {MAX_SIZE} bytes")
    for key in ("name", "dtype", "shape"):
        if key in base and merged[f"base_{key}"] == own[f"base_{key}"]:
            raise FormatError(f"{base.where}.{key}: it is written although it equals the entry's own")
    return merged

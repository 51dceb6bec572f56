"""The entries of a table (spec section 6) and their sums: frozen dataclasses and their JSON.

Reading is strict: every fault is one FormatError or UnsupportedError that says where it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from ckptdiff.errors import FormatError, UnsupportedError, cut
from ckptdiff.format import fields
from ckptdiff.format.canonical import JsonObject, quoted
from ckptdiff.format.dtypes import DTYPES, MAX_SIZE, is_castable
from ckptdiff.format.fields import Fields
from ckptdiff.format.tensor_type import MAX_NAME, MAX_RANK, TensorType, tensor_type

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


class Piece(NamedTuple):
    """A run of units that an adapted base is put together from (spec 8)."""

    name: str | None
    """The base tensor; None for zeros."""
    first: int
    """Number of the first unit in that tensor; 0 for zeros."""
    units: int


class Entry(NamedTuple):
    """One tensor of the target file (spec 6). A tuple, as a patch may have a hundred thousand of them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    base_dtype: str | None = None
    """Dtype of the base tensors; None for a ``new`` tensor and a ``copy``."""
    pieces: tuple[Piece, ...] = ()
    """What the base is put together from; none: the base tensor of the entry's own name, as many units as both have."""
    codec: str | None = None
    """Name of the codec of a ``delta`` or ``new`` tensor."""
    changed: int = 0
    """Units of a ``delta`` tensor that differ from the adapted base."""
    blocks: tuple[int, ...] = ()
    """Size in bytes of each block's coded form."""
    of: str | None = None
    """Name of the tensor that a ``copy`` is a copy of."""
    counts: bool = True
    """False: another file of the scope holds the tensor of this name that counts (spec 3.1)."""
    digest: bytes = b""
    """Tensor digest, 16 bytes; empty for a ``copy``."""
    base_digest: bytes = b""
    """Tensor digest of the adapted base, 16 bytes; empty where there is none."""
    payload_digest: bytes = b""
    """XXH3-64 of the payload, 8 bytes; empty where there is none."""

    @property
    def type(self) -> TensorType:
        """Dtype and shape, with the sizes that follow from them."""
        found = tensor_type(self.dtype, self.shape)
        assert found is not None  # readers and writers refuse other tensors
        return found

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.type.nbytes

    @property
    def units(self) -> int:
        """How many units the tensor has."""
        return self.type.units

    @property
    def has_base(self) -> bool:
        """Whether the tensor is made from base tensors."""
        return self.kind in ("same", "delta")

    @property
    def base_names(self) -> tuple[str, ...]:
        """The base tensors that it is made from, each once."""
        if self.kind not in ("same", "delta"):
            return ()
        if not self.pieces:
            return (self.name,)
        return tuple(dict.fromkeys(piece.name for piece in self.pieces if piece.name is not None)) or (self.name,)

    @property
    def has_payload(self) -> bool:
        """Whether the entry has coded blocks."""
        return self.kind in ("delta", "new")

    @property
    def payload_size(self) -> int:
        """Size of all coded blocks in bytes."""
        return sum(self.blocks)

    def to_json(self) -> JsonObject:
        """The entry as it stands in the table's JSON, without its digests."""
        value: JsonObject = {"dtype": self.dtype, "kind": self.kind, "name": self.name, "shape": list(self.shape)}
        base: JsonObject = {}
        if self.has_base and self.base_dtype != self.dtype:
            base["dtype"] = self.base_dtype
        if self.pieces:
            base["pieces"] = [list(piece) for piece in self.pieces]
        if base:
            value["base"] = base
        if self.has_payload:
            value |= {"codec": self.codec, "blocks": list(self.blocks)}
        if self.kind == "delta":
            value["changed"] = self.changed
        if self.kind == "copy":
            value["of"] = self.of
        if not self.counts:
            value["counts"] = False
        return value

    def digests(self) -> bytes:
        """What the entry adds to the digests behind the table's JSON."""
        if self.kind == "copy":
            return b""
        return self.digest + (self.base_digest if self.kind == "delta" else b"") + self.payload_digest

    def with_digests(self, digest: bytes, base_digest: bytes, payload_digest: bytes) -> Entry:
        """The entry with the digests that stood behind the table's JSON."""
        return Entry(*self[:-3], digest, base_digest, payload_digest)

    @classmethod
    def read(cls, value: Any, where: str) -> Entry:
        """Read an entry of a table's JSON, which has no digests yet; raises FormatError or UnsupportedError."""
        f = Fields(value, where, ALL_MEMBERS)
        kind = f.kind(KIND_MEMBERS, COMMON_MEMBERS)
        name = as_name(f.text("name"), f"{where}.name")
        dtype, shape = _dtype(f), _shape(f)
        type_ = tensor_type(dtype, shape)
        if type_ is None:
            raise FormatError(f"{where}: a {dtype} tensor of shape {cut(list(shape))} has no whole size of at most {MAX_SIZE} bytes")
        members: dict[str, Any] = _read_base(f, name, dtype, type_.units) if kind in ("same", "delta") else {}
        if kind in ("delta", "new"):
            members |= {"codec": _codec(f, kind), "blocks": _blocks(f, type_.blocks)}
        if kind == "delta":
            members["changed"] = f.integer("changed", 1, type_.units)
        if kind == "copy":
            members["of"] = as_name(f.text("of"), f"{where}.of")
        if "counts" in f:
            members["counts"] = _counts(f)
        return cls(name=name, dtype=dtype, shape=shape, kind=kind, **members)


COMMON_MEMBERS = "name dtype shape kind counts"
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


def _counts(f: Fields) -> bool:
    """The member ``counts``, which is there only where it is false."""
    if f.value["counts"] is not False:
        raise FormatError(f"{f.where}.counts: expected false, found {quoted(f.value['counts'])}")
    return False


def _codec(f: Fields, kind: str) -> str:
    """The member ``codec``, which must be one that the entry's kind may have."""
    codec = f.text("codec")
    if codec not in CODEC_NAMES:
        raise UnsupportedError(f"{f.where}.codec: unknown codec {quoted(codec)}: upgrade ckptdiff")
    if kind == "new" and codec != "raw":
        raise FormatError(f'{f.where}.codec: expected "raw" for a new tensor, found {quoted(codec)}')
    return codec


def _blocks(f: Fields, expected: int) -> tuple[int, ...]:
    """The member ``blocks``: a size for each of so many blocks."""
    blocks = f.array("blocks", fields.as_integer)
    if len(blocks) != expected or any(size > MAX_CODED_BLOCK for size in blocks):
        raise FormatError(f"{f.where}.blocks: expected {expected} sizes of at most {MAX_CODED_BLOCK} bytes, found {len(blocks)}")
    return blocks


def _read_base(f: Fields, name: str, dtype: str, units: int) -> dict[str, Any]:
    """The dtype and the pieces of the base of an entry with this name, dtype and number of units."""
    if "base" not in f:
        return {"base_dtype": dtype}
    base, found = f.child("base", "dtype pieces"), dict[str, Any](base_dtype=dtype)
    if not base.value:
        raise FormatError(f"{base.where}: expected a member")
    if "dtype" in base:
        found["base_dtype"] = _dtype(base)
        if not is_castable(found["base_dtype"], dtype):
            raise FormatError(f"{base.where}.dtype: {found['base_dtype']} cannot be cast to {dtype}, or is the same")
    if "pieces" in base:
        found["pieces"] = base.array("pieces", _piece)
        _check_pieces(found["pieces"], name, units, f"{base.where}.pieces")
    return found


def _piece(value: Any, where: str) -> Piece:
    """One of the pieces of a base."""
    if not isinstance(value, list) or len(value) != 3:
        raise FormatError(f"{where}: expected an array of a name or null, and two integers")
    name = None if value[0] is None else as_name(value[0], where)
    first, units = (fields.as_integer(number, where) for number in value[1:])
    if units < 1 or first + units > MAX_SIZE or (name is None and first):
        raise FormatError(f"{where}: {units} units from unit {first} on: expected at least 1, at most {MAX_SIZE}, and zeros from 0 on")
    return Piece(name, first, units)


def _check_pieces(pieces: Sequence[Piece], name: str, units: int, where: str) -> None:
    """Raise FormatError for pieces that do not fit an entry, or say in more words what fewer would."""
    total = sum(piece.units for piece in pieces)
    if not pieces or total > units:
        raise FormatError(f"{where}: {len(pieces)} pieces of {total} units, expected at least one, and at most {units} units")
    if pieces[-1].name is None:
        raise FormatError(f"{where}: it ends in zeros, which stand there anyway")
    if pieces == (Piece(name, 0, units),):
        raise FormatError(f"{where}: it says what is so without it")
    for before, piece in itertools.pairwise(pieces):
        if piece.name == before.name and (piece.name is None or piece.first == before.first + before.units):
            raise FormatError(f"{where}: two neighbours could be one piece, of {quoted(piece.name)}")

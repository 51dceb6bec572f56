"""Mask files (spec/mask-v1.md). Reading is strict, since a mask may come from a stranger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xxhash

from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format import canonical
from ckptdiff.format.dtypes import MAX_SIZE
from ckptdiff.format.entry import as_name
from ckptdiff.format.fields import Fields, as_integer
from ckptdiff.format.safetensors import MAX_HEADER, Header, header_json, read_header
from ckptdiff.format.safetensors_library import write_tensors
from ckptdiff.format.tensor_type import MAX_RANK, MAX_TENSORS
from ckptdiff.io.source import LocalFile
from ckptdiff.patching.output import build_beside, check_output
from ckptdiff.subnetwork.mask_rows import Row, check_row, count_elements, is_sparse, read_row

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

FORMAT, VERSION = "ckptdiff-mask", 1
MAX_NODES = 1 << 20
"""Braces, brackets and commas of a mask's metadata: a few for each tensor."""


def write_mask(out: Path, rows: Mapping[str, Row], shapes: Shapes, *, overwrite: bool) -> int:
    """Write a mask file, the same bytes for the same mask; returns its size in bytes.

    Raises:
        OutputError: the file cannot be written. CheckpointError: the mask has more tensors than a reader takes.
    """
    parts = sorted(rows.items(), key=lambda part: _file_order(*part))
    metadata: dict[str, Any] = {"format": FORMAT, "version": VERSION, "shapes": {name: list(shape) for name, shape in shapes.items()}}
    text = canonical.dumps({**metadata, "digest": _digest(metadata, [row for _, row in parts])}).decode()
    tensors = {name: ("U8" if row.dtype.itemsize == 1 else "U32", row) for name, row in parts}
    first = [("__metadata__", f'{{"{FORMAT}":{canonical.quote(text)}}}')]
    header = len(header_json(first, ((name, dtype, row.shape, row.nbytes) for name, (dtype, row) in tensors.items())))
    if len(parts) > MAX_TENSORS or header > MAX_HEADER:
        raise CheckpointError(
            f"a mask of {len(parts)} tensors, whose header has {header} bytes: a file holds at most {MAX_TENSORS} tensors, named in "
            f"{MAX_HEADER} bytes: save the mask in parts"
        )
    check_output(out, [], folder=False, overwrite=overwrite)
    with build_beside(out, overwrite=overwrite) as built:
        write_tensors(built, tensors, {FORMAT: text})  # by dtype, then by name, as the spec orders them
    return out.stat().st_size


def read_mask(path: Path) -> tuple[dict[str, Row], dict[str, tuple[int, ...]]]:
    """The rows and shapes of a mask file's tensors.

    Raises:
        CheckpointError: the file cannot be read. FormatError, UnsupportedError, IntegrityError: it is not a whole and valid mask.
    """
    file = LocalFile(path)
    try:
        return _read(file)
    finally:
        file.close()


def _read(file: LocalFile) -> tuple[dict[str, Row], dict[str, tuple[int, ...]]]:
    header, fields = _read_header(file)
    rows = {tensor.name: read_row(file, header.data_start, tensor) for tensor in header.tensors}
    digest = _digest({key: member for key, member in fields.value.items() if key != "digest"}, list(rows.values()))
    stated = fields.hexadecimal("digest", 16).hex()
    if digest != stated:
        raise IntegrityError(f"{file.name}: has the digest {digest}, expected {stated}: corrupted? make it again")
    members, where = fields.object("shapes"), f"{file.name}: shapes"
    shapes = {as_name(name, where): _shape(shape, f"{where}.{cut(name)}") for name, shape in members.items()}
    _check_rows(file.name, rows, shapes)
    return rows, shapes


def _read_header(file: LocalFile) -> tuple[Header, Fields]:
    """The header of the safetensors file, and the metadata of the mask."""
    try:
        header = read_header(file)
    except ValueError as error:
        raise FormatError(f"{file.name}: not a mask: {error}") from None
    text = (header.metadata or {}).get(FORMAT)
    if text is None or len(header.metadata or {}) != 1:
        raise FormatError(f"{file.name}: not a mask: expected the metadata {FORMAT} alone; ckptdiff mask PATCH -o FILE makes one")
    value = canonical.load_object(text.encode(), f"{file.name}: metadata", MAX_NODES)
    fields = Fields(value, f"{file.name}: metadata", "format version shapes digest")
    if fields.text("format") != FORMAT:
        raise FormatError(f"{file.name}: not a mask: its format is {canonical.quoted(fields.text('format'))}")
    if fields.integer("version") != VERSION:
        raise UnsupportedError(f"{file.name}: a mask of version {fields.integer('version')}, expected {VERSION}: upgrade ckptdiff")
    return header, fields


def _check_rows(file_name: str, rows: Mapping[str, Row], shapes: Shapes) -> None:
    """Raise FormatError unless the rows fit the shapes, and stand in the order and form that the spec gives them."""
    if not set(rows) <= set(shapes):
        raise FormatError(f"{file_name}: has tensors that are not among its shapes")
    for name, row in rows.items():
        check_row(row, math.prod(shapes[name]), f"{file_name}: tensor {cut(name)}")
    order = [_file_order(name, row) for name, row in rows.items()]
    smaller = (is_sparse(count_elements(row), math.prod(shapes[name])) == (row.itemsize == 4) for name, row in rows.items())
    if order != sorted(order) or not all(smaller):
        raise FormatError(f"{file_name}: its tensors do not stand in the order and form of spec/mask-v1.md")


def _file_order(name: str, row: Row) -> tuple[bool, bytes]:
    """A key by which the spec orders tensors: rows of positions come before packed ones, and each kind is sorted by the name's bytes."""
    return row.itemsize == 1, name.encode()


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise FormatError(f"{where}: expected a list of at most {MAX_RANK} integers")
    shape = tuple(as_integer(dim, where) for dim in value)
    if math.prod(shape) > MAX_SIZE:
        raise FormatError(f"{where}: {cut(list(shape))} has more than {MAX_SIZE} elements")
    return shape


def _digest(metadata: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """XXH3-128 of the rows in the file's order, then of the metadata without the digest."""
    hasher = xxhash.xxh3_128()
    for row in rows:
        hasher.update(np.ascontiguousarray(row).data)
    hasher.update(canonical.dumps(dict(metadata)))
    return hasher.hexdigest()

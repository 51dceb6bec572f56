"""Masks: which elements of a model a patch changes, as sets to combine, save and train within (spec/mask-v1.md).

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 4: m_i = 1 if (theta_init - theta_full)_i != 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptdiff.analysis.pairs import Pair, named_base, open_source
from ckptdiff.analysis.values import distances, element_bits
from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format import canonical
from ckptdiff.format.dtypes import DTYPES, MAX_SIZE, Bytes
from ckptdiff.format.entry import as_name
from ckptdiff.format.fields import Fields, as_integer
from ckptdiff.format.safetensors import MAX_HEADER, MAX_RANK, MAX_TENSORS, header_json, read_header
from ckptdiff.io.parallel import Progress, default_threads, no_progress, run_ordered
from ckptdiff.io.source import LocalFile
from ckptdiff.patching.output import build_beside, check_output
from ckptdiff.subnetwork.mask_rows import (
    Bits,
    Row,
    check_row,
    count_of,
    is_sparse,
    packed,
    read_row,
    row_of,
    row_of_positions,
    shared,
    vote,
)

PathLike = str | os.PathLike[str]

MAX_NODES = 1 << 20
"""Braces, brackets and commas of a mask's metadata: a few for each tensor."""


class Mask:
    """A set of elements of a model's tensors, in memory as its file has it. Tensors without any are left out.

    Attributes:
        shapes: of each tensor that has elements in the mask.
        bits: of each tensor, packed, the first element in the lowest bit of the first byte; made when it is asked for.
    """

    def __init__(self, bits: Mapping[str, Bits], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._set({name: row_of(row, math.prod(shapes[name])) for name, row in bits.items()}, shapes)

    def _set(self, rows: Mapping[str, Row], shapes: Mapping[str, tuple[int, ...]]) -> None:
        kept = sorted((name for name, row in rows.items() if len(row) and (row.itemsize == 4 or row.any())), key=str.encode)
        self.rows = {name: rows[name] for name in kept}
        self.shapes = {name: tuple(shapes[name]) for name in kept}

    @classmethod
    def _of(cls, rows: Mapping[str, Row], shapes: Mapping[str, tuple[int, ...]]) -> Mask:
        mask = cls({}, {})
        mask._set(rows, shapes)
        return mask

    @property
    def bits(self) -> Mapping[str, Bits]:
        """Packed elements by tensor."""
        return _Packed(self)

    # --- where masks come from ---

    @classmethod
    def from_patch(
        cls,
        patch: PathLike,
        base: PathLike | None = None,
        *,
        atol: float = 0.0,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> Mask:
        """What a patch, or a checkpoint, changes of its base.

        Args:
            patch: a patch, or the target itself: a path or an id on the Hub.
            base: the checkpoint it was made from; None: the repo that the patch names.
            atol: count an element as changed where |d| exceeds this (the paper's sparsity: 1e-5); 0: where its bits differ.
            threads, progress: as of :func:`ckptdiff.report`.

        Raises:
            CheckpointError: there is no base, a name is in two scopes, or a tensor has no counterpart of the same dtype and shape in
            the base. Others as of :func:`ckptdiff.report`.
        """
        base = base if base is not None else named_base(patch)
        rows: dict[str, Row] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        with open_source(base, patch) as source:
            if source.added or source.unpaired:
                names = [*source.added, *source.unpaired]
                raise CheckpointError(
                    f"{patch}: its tensor {cut(names[0])} ({len(names)} in all) has no counterpart of the same shape and dtype in {base}: "
                    "a mask is of the base's elements"
                )
            jobs = (partial(_changed, pair, start, atol) for pair in source.pairs for start in pair.starts)
            done, total = 0, sum(pair.nbytes for pair in source.pairs)
            with closing(run_ordered(jobs, threads or default_threads())) as results:
                for pair in source.pairs:
                    if pair.name in rows:
                        raise CheckpointError(f"{patch}: two scopes have a tensor {cut(pair.name)}: make a mask of each by itself")
                    pieces = [next(results) for _ in pair.starts]
                    pair.finish()
                    rows[pair.name] = row_of(np.concatenate(pieces), math.prod(pair.shape))
                    shapes[pair.name] = pair.shape
                    done += pair.nbytes
                    progress("comparing", done, total)
        return cls._of(rows, shapes)

    @classmethod
    def from_arrays(cls, flags: Mapping[str, Any]) -> Mask:
        """Boolean arrays, or tensors on the host, by name."""
        arrays = {name: np.asarray(array, dtype=np.bool_) for name, array in flags.items()}
        return cls({k: np.packbits(v.reshape(-1), bitorder="little") for k, v in arrays.items()}, {k: v.shape for k, v in arrays.items()})

    @classmethod
    def union(cls, *masks: Mask) -> Mask:
        """Elements in any of the masks."""
        return cls.vote(1, *masks)

    @classmethod
    def intersection(cls, *masks: Mask) -> Mask:
        """Elements in all of them."""
        return cls.vote(len(masks), *masks)

    @classmethod
    def vote(cls, least: int, *masks: Mask) -> Mask:
        """Elements in at least so many of them.

        Raises:
            CheckpointError: a tensor has different shapes in two of them.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for mask in masks:
            for name, shape in mask.shapes.items():
                if shapes.setdefault(name, shape) != shape:
                    raise CheckpointError(
                        f"tensor {cut(name)}: has the shape {cut(list(shape))} in one mask, {cut(list(shapes[name]))} in another"
                    )
        found: dict[str, Row] = {}
        for name, shape in shapes.items():
            rows = [mask.rows[name] for mask in masks if name in mask.rows]
            if len(rows) >= least:
                found[name] = vote(max(least, 1), rows, math.prod(shape))
        return cls._of(found, {name: shapes[name] for name in found})

    def random(self, seed: int) -> Mask:
        """As many elements of each tensor, at random among them: the control of an experiment."""
        rng, rows = np.random.default_rng(seed), {}
        for name, count in self.counts.items():
            elements = math.prod(self.shapes[name])
            rows[name] = row_of_positions(np.sort(rng.choice(elements, count, replace=False, shuffle=False)), elements)
        return Mask._of(rows, self.shapes)

    # --- what they hold ---

    @property
    def counts(self) -> dict[str, int]:
        """Elements in the mask, by tensor."""
        return {name: count_of(row) for name, row in self.rows.items()}

    @property
    def total(self) -> int:
        """Elements in the mask."""
        return sum(self.counts.values())

    def flags(self, name: str) -> npt.NDArray[np.bool_]:
        """A tensor's elements as booleans of its shape; raises KeyError if it has none in the mask."""
        shape, row = self.shapes[name], self.rows[name]
        if row.itemsize == 1:
            return np.unpackbits(row, count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)
        flags = np.zeros(math.prod(shape), np.bool_)
        flags[row] = True
        return flags.reshape(shape)

    def shared(self, other: Mask) -> int:
        """Elements in both."""
        return sum(shared(row, other.rows[name]) for name, row in self.rows.items() if name in other.rows)

    def precision(self, truth: Mask) -> float:
        """Share of this mask's elements that another has too; 0 if there are none."""
        return self.shared(truth) / self.total if self.total else 0.0

    def recall(self, truth: Mask) -> float:
        """Share of another's elements that this mask has; 0 if there are none."""
        return truth.precision(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask) or self.shapes != other.shapes:
            return NotImplemented if not isinstance(other, Mask) else False
        return all(np.array_equal(row, other.rows[name]) for name, row in self.rows.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ckptdiff.Mask: {self.total:,} elements of {len(self.rows)} tensors>"

    # --- files ---

    def save(self, path: PathLike, *, overwrite: bool = False) -> int:
        """Write a mask file; returns its size in bytes. The same mask gives the same bytes.

        Raises:
            OutputError: it cannot be written there. CheckpointError: it has more tensors than a reader takes.
        """
        out = Path(path)
        parts = sorted(self.rows.items(), key=lambda row: (row[1].itemsize == 1, row[0].encode()))
        value: dict[str, Any] = {
            "format": "ckptdiff-mask",
            "version": 1,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }
        text = canonical.dumps({**value, "digest": _digest(value, [part for _, part in parts])}).decode()
        head = [("__metadata__", f'{{"ckptdiff-mask":{canonical.quote(text)}}}')]
        raw = header_json(head, [(name, "U8" if part.dtype.itemsize == 1 else "U32", part.shape, part.nbytes) for name, part in parts])
        if len(parts) > MAX_TENSORS or len(raw) > MAX_HEADER:
            raise CheckpointError(
                f"a mask of {len(parts)} tensors, whose header has {len(raw)} bytes: a file holds at most {MAX_TENSORS} tensors, named in "
                f"{MAX_HEADER} bytes: save the mask in parts"
            )
        check_output(out, [], folder=False, overwrite=overwrite)
        with build_beside(out, overwrite=overwrite) as built, open(built, "wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for _, part in parts:
                file.write(part.data)
        return out.stat().st_size

    @classmethod
    def load(cls, path: PathLike) -> Mask:
        """Read a mask file.

        Raises:
            CheckpointError: it cannot be read. FormatError, UnsupportedError, IntegrityError: it is not a whole and valid mask.
        """
        file = LocalFile(Path(path))
        try:
            return cls._read(file)
        finally:
            file.close()

    @classmethod
    def _read(cls, file: LocalFile) -> Mask:
        try:
            header = read_header(file)
        except ValueError as error:
            raise FormatError(f"{file.name}: not a mask: {error}") from None
        text = (header.metadata or {}).get("ckptdiff-mask")
        if text is None or len(header.metadata or {}) != 1:
            raise FormatError(f"{file.name}: not a mask: expected the metadata ckptdiff-mask alone; ckptdiff mask PATCH -o FILE makes one")
        value = canonical.load_object(text.encode(), f"{file.name}: metadata", MAX_NODES)
        fields = Fields(value, f"{file.name}: metadata", "format version shapes digest")
        if fields.text("format") != "ckptdiff-mask":
            raise FormatError(f"{file.name}: not a mask: its format is {canonical.quoted(fields.text('format'))}")
        if fields.integer("version") != 1:
            raise UnsupportedError(f"{file.name}: a mask of version {fields.integer('version')}, expected 1: upgrade ckptdiff")
        rows = {tensor.name: read_row(file, header.data_start, tensor) for tensor in header.tensors}
        found = _digest({key: member for key, member in value.items() if key != "digest"}, list(rows.values()))
        if found != fields.hexadecimal("digest", 16).hex():
            raise IntegrityError(f"{file.name}: has the digest {found}, expected {value['digest']}: corrupted? make it again")
        members, where = fields.object("shapes"), f"{file.name}: shapes"
        shapes = {as_name(name, where): _shape(shape, f"{where}.{cut(name)}") for name, shape in members.items()}
        if set(shapes) != set(rows):
            raise FormatError(f"{file.name}: its tensors are not those of its shapes")
        for name, row in rows.items():
            check_row(row, math.prod(shapes[name]), f"{file.name}: tensor {cut(name)}")
        order = [(row.itemsize == 1, name.encode()) for name, row in rows.items()]
        if order != sorted(order) or any(is_sparse(count_of(r), math.prod(shapes[k])) != (r.itemsize == 4) for k, r in rows.items()):
            raise FormatError(f"{file.name}: its tensors do not stand in the order and form of spec/mask-v1.md")
        return cls._of(rows, shapes)


class _Packed(Mapping[str, Bits]):
    """The packed elements of a mask's tensors, each made when it is asked for."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def __getitem__(self, name: str) -> Bits:
        row = self._mask.rows[name]
        return row if row.itemsize == 1 else packed(row, math.prod(self._mask.shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._mask.rows)

    def __len__(self) -> int:
        return len(self._mask.rows)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise FormatError(f"{where}: expected a list of at most {MAX_RANK} integers")
    shape = tuple(as_integer(dim, where) for dim in value)
    if math.prod(shape) > MAX_SIZE:
        raise FormatError(f"{where}: {cut(list(shape))} has more than {MAX_SIZE} elements")
    return shape


def _digest(value: Mapping[str, Any], parts: Sequence[npt.NDArray[Any]]) -> str:
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(np.ascontiguousarray(part).data)
    hasher.update(canonical.dumps(dict(value)))
    return hasher.hexdigest()


def _changed(pair: Pair, start: int, atol: float) -> Bits:
    old, new = pair.read(start, start + pair.step)
    a, b = element_bits(old, pair.dtype), element_bits(new, pair.dtype)
    flags: npt.NDArray[np.bool_] = a != b
    if atol:
        flags &= ~(distances(a, b, pair.dtype) <= atol)
    return np.packbits(flags, bitorder="little")


def smallest_weights(base: PathLike, like: Mask, *, threads: int | None = None) -> Mask:
    """A guess without training: as many elements of each tensor as ``like`` has, those of the least |weight| in the base.

    In bf16 an update is rounded away where it is less than half an ulp, so that small weights change first.
    """
    bits: dict[str, Bits] = {}
    with open_source(base, base) as source:
        wanted = [pair for pair in source.pairs if pair.name in like.rows and DTYPES[pair.dtype].is_float and pair.dtype != "C64"]
        jobs = (partial(_least, pair, like.counts[pair.name]) for pair in wanted)
        with closing(run_ordered(jobs, threads or default_threads())) as rows:
            for pair, row in zip(wanted, rows, strict=True):
                bits[pair.name] = row
    return Mask(bits, like.shapes)


def _least(pair: Pair, count: int) -> Bits:
    dtype = DTYPES[pair.dtype]
    parts: list[Bytes] = [pair.read(start, start + pair.step)[0].copy() for start in pair.starts]
    units = element_bits(np.concatenate(parts), pair.dtype)
    size = units & units.dtype.type((1 << (dtype.bits - 1)) - 1)  # magnitude bits order as |weight| does
    flags = np.zeros(len(size), np.bool_)
    flags[np.argpartition(size, count - 1)[:count]] = True
    return np.packbits(flags, bitorder="little")

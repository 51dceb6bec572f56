"""Masks: which elements of a model a patch changes, as sets to combine, save and train within (spec/mask-v1.md).

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 4: m_i = 1 if (theta_init - theta_full)_i != 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptdiff import canonical
from ckptdiff.analysis.source import Pair, named_base, open_source
from ckptdiff.canonical import Fields
from ckptdiff.dtypes import DTYPES, MAX_SIZE, Bytes
from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, UnsupportedError
from ckptdiff.output import build_beside, check_output
from ckptdiff.parallel import Progress, default_threads, no_progress, run_ordered
from ckptdiff.stfile import LocalFile, header_json, read_bytes, read_header
from ckptdiff.table import as_name
from ckptdiff.values import distances, element_bits

Bits = npt.NDArray[np.uint8]
PathLike = str | os.PathLike[str]


class Mask:
    """A set of elements of a model's tensors. Eight elements a byte in memory; tensors without any are left out.

    Attributes:
        shapes: of each tensor that has elements in the mask.
        bits: packed, the first element in the lowest bit of the first byte.
    """

    def __init__(self, bits: Mapping[str, Bits], shapes: Mapping[str, tuple[int, ...]]) -> None:
        kept = sorted((name for name, row in bits.items() if row.any()), key=str.encode)
        self.bits = {name: bits[name] for name in kept}
        self.shapes = {name: tuple(shapes[name]) for name in kept}

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
        bits: dict[str, Bits] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        with open_source(base, patch) as source:
            if source.added or source.unpaired:
                names = [*source.added, *source.unpaired]
                raise CheckpointError(
                    f"{patch}: its tensor {names[0]} ({len(names)} in all) has no counterpart of the same shape and dtype in {base}: "
                    "a mask is of the base's elements"
                )
            jobs = (partial(_changed, pair, start, atol) for pair in source.pairs for start in pair.starts)
            done, total = 0, sum(pair.nbytes for pair in source.pairs)
            with closing(run_ordered(jobs, threads or default_threads())) as results:
                for pair in source.pairs:
                    if pair.name in bits:
                        raise CheckpointError(f"{patch}: two scopes have a tensor {pair.name}: make a mask of each by itself")
                    flags = [next(results) for _ in pair.starts]
                    pair.finish()
                    bits[pair.name] = np.packbits(np.concatenate(flags), bitorder="little")
                    shapes[pair.name] = pair.shape
                    done += pair.nbytes
                    progress("comparing", done, total)
        return cls(bits, shapes)

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
                    raise CheckpointError(f"tensor {name}: has the shape {list(shape)} in one mask, {list(shapes[name])} in another")
        bits: dict[str, Bits] = {}
        for name in shapes:
            rows = [mask.bits[name] for mask in masks if name in mask.bits]
            if least <= 1:
                bits[name] = np.bitwise_or.reduce(rows)
            elif len(rows) >= least:
                votes = sum(np.unpackbits(row, bitorder="little") for row in rows)
                bits[name] = np.packbits(np.asarray(votes) >= least, bitorder="little")
        return cls(bits, {name: shapes[name] for name in bits})

    def random(self, seed: int) -> Mask:
        """As many elements of each tensor, at random among them: the control of an experiment."""
        rng, bits = np.random.default_rng(seed), {}
        for name, count in self.counts.items():
            flags = np.zeros(math.prod(self.shapes[name]), np.bool_)
            flags[rng.choice(len(flags), count, replace=False, shuffle=False)] = True
            bits[name] = np.packbits(flags, bitorder="little")
        return Mask(bits, self.shapes)

    # --- what they hold ---

    @property
    def counts(self) -> dict[str, int]:
        """Elements in the mask, by tensor."""
        return {name: _ones(row) for name, row in self.bits.items()}

    @property
    def total(self) -> int:
        """Elements in the mask."""
        return sum(self.counts.values())

    def flags(self, name: str) -> npt.NDArray[np.bool_]:
        """A tensor's elements as booleans of its shape; raises KeyError if it has none in the mask."""
        shape = self.shapes[name]
        return np.unpackbits(self.bits[name], count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)

    def shared(self, other: Mask) -> int:
        """Elements in both."""
        return sum(_ones(row & other.bits[name]) for name, row in self.bits.items() if name in other.bits)

    def precision(self, truth: Mask) -> float:
        """Share of this mask's elements that another has too; 0 if there are none."""
        return self.shared(truth) / self.total if self.total else 0.0

    def recall(self, truth: Mask) -> float:
        """Share of another's elements that this mask has; 0 if there are none."""
        return truth.precision(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask) or self.shapes != other.shapes:
            return NotImplemented if not isinstance(other, Mask) else False
        return all(np.array_equal(row, other.bits[name]) for name, row in self.bits.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ckptdiff.Mask: {self.total:,} elements of {len(self.bits)} tensors>"

    # --- files ---

    def save(self, path: PathLike, *, overwrite: bool = False) -> int:
        """Write a mask file; returns its size in bytes. The same mask gives the same bytes.

        Raises:
            OutputError: it cannot be written there.
        """
        out = Path(path)
        rows = sorted(
            (_stored(row, math.prod(self.shapes[name])).dtype.itemsize == 1, name.encode(), name) for name, row in self.bits.items()
        )
        parts = [(name, _stored(self.bits[name], math.prod(self.shapes[name]))) for _, _, name in rows]
        value: dict[str, Any] = {
            "format": "ckptdiff-mask",
            "version": 1,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }
        text = canonical.dumps({**value, "digest": _digest(value, [part for _, part in parts])}).decode()
        head = [("__metadata__", f'{{"ckptdiff-mask":{canonical.quote(text)}}}')]
        raw = header_json(head, [(name, "U8" if part.dtype.itemsize == 1 else "U32", part.shape, part.nbytes) for name, part in parts])
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
        value = canonical.load_object(text.encode(), f"{file.name}: metadata")
        fields = Fields(value, f"{file.name}: metadata", "format version shapes digest")
        if fields.text("format") != "ckptdiff-mask":
            raise FormatError(f"{file.name}: not a mask: its format is {canonical.quote(fields.text('format')[:40])}")
        if fields.integer("version") != 1:
            raise UnsupportedError(f"{file.name}: a mask of version {fields.integer('version')}, expected 1: upgrade ckptdiff")
        parts = []
        for tensor in header.tensors:
            if tensor.dtype not in ("U8", "U32") or len(tensor.shape) != 1:
                raise FormatError(f"{file.name}: tensor {tensor.name}: expected U8 or U32 of one dimension, found {tensor.dtype}")
            data = np.frombuffer(
                read_bytes(file, header.data_start + tensor.begin, tensor.nbytes), "<u1" if tensor.dtype == "U8" else "<u4"
            )
            parts.append((tensor.name, data))
        found = _digest({key: member for key, member in value.items() if key != "digest"}, [part for _, part in parts])
        if found != fields.hexadecimal("digest", 16).hex():
            raise IntegrityError(f"{file.name}: has the digest {found}, expected {value['digest']}: corrupted? make it again")
        members = fields.object("shapes")
        shapes = {as_name(name, f"{file.name}: shapes"): _shape(shape, f"{file.name}: shapes.{name}") for name, shape in members.items()}
        if set(shapes) != {name for name, _ in parts}:
            raise FormatError(f"{file.name}: its tensors are not those of its shapes")
        bits = {name: _unstored(part, math.prod(shapes[name]), f"{file.name}: tensor {name}") for name, part in parts}
        order = [(part.dtype.itemsize == 1, name.encode()) for name, part in parts]
        if order != sorted(order) or any(_stored(bits[name], math.prod(shapes[name])).dtype != part.dtype for name, part in parts):
            raise FormatError(f"{file.name}: its tensors do not stand in the order and form of spec/mask-v1.md")
        return cls(bits, shapes)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise FormatError(f"{where}: expected a list of integers")
    shape = tuple(canonical.as_integer(dim, where) for dim in value)
    if math.prod(shape) > MAX_SIZE:
        raise FormatError(f"{where}: {list(shape)} has more than {MAX_SIZE} elements")
    return shape


def _digest(value: Mapping[str, Any], parts: Sequence[npt.NDArray[Any]]) -> str:
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(np.ascontiguousarray(part).data)
    hasher.update(canonical.dumps(dict(value)))
    return hasher.hexdigest()


def _ones(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _stored(bits: Bits, elements: int) -> npt.NDArray[Any]:
    """The smaller of bits and positions."""
    if 4 * _ones(bits) >= len(bits) or elements > 1 << 32:
        return bits
    return np.flatnonzero(np.unpackbits(bits, count=elements, bitorder="little")).astype("<u4")


def _unstored(part: npt.NDArray[Any], elements: int, where: str) -> Bits:
    size = -(-elements // 8)
    if part.dtype.itemsize == 4:
        if elements > 1 << 32:
            raise FormatError(f"{where}: expected U8 for {elements} elements")
        if len(part) == 0 or (np.diff(part.astype(np.int64)) <= 0).any() or int(part[-1]) >= elements:
            raise FormatError(f"{where}: expected positions below {elements}, rising")
        bits = np.zeros(size, np.uint8)
        np.bitwise_or.at(bits, part >> 3, np.uint8(1) << (part & 7).astype(np.uint8))
        return bits
    if len(part) != size or not part.any() or (elements % 8 and part[-1] >> elements % 8):
        raise FormatError(f"{where}: expected {size} bytes, none of their bits past the last element, and not all zero")
    return part


def _changed(pair: Pair, start: int, atol: float) -> npt.NDArray[np.bool_]:
    old, new = pair.read(start, start + pair.step)
    a, b = element_bits(old, pair.dtype), element_bits(new, pair.dtype)
    flags: npt.NDArray[np.bool_] = a != b
    if atol:
        flags &= ~(distances(a, b, pair.dtype) <= atol)
    return flags


def smallest_weights(base: PathLike, like: Mask, *, threads: int | None = None) -> Mask:
    """A guess without training: as many elements of each tensor as ``like`` has, those of the least |weight| in the base.

    In bf16 an update is rounded away where it is less than half an ulp, so that small weights change first.
    """
    bits: dict[str, Bits] = {}
    with open_source(base, base) as source:
        wanted = [pair for pair in source.pairs if pair.name in like.bits and DTYPES[pair.dtype].is_float and pair.dtype != "C64"]
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

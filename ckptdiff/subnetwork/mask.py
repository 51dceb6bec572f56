"""Masks: which elements of a model a patch changes, as sets to combine, save and train within (spec/mask-v1.md).

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 4: m_i = 1 if (theta_init - theta_full)_i != 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.pairs import Pair, Source, check_common, named_base, open_source
from ckptdiff.analysis.values import distances, element_bits
from ckptdiff.checkpoint.names import near_names
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.io.parallel import Progress, default_threads, no_progress, run_ordered
from ckptdiff.io.places import local_path
from ckptdiff.subnetwork.mask_file import Shapes, read_mask, write_mask
from ckptdiff.subnetwork.mask_rows import (
    Bits,
    Row,
    count_elements,
    count_shared,
    pack_positions,
    row_from_bits,
    row_from_positions,
    vote_rows,
)

PathLike = str | os.PathLike[str]


class Mask:
    """A set of elements of a model's tensors. In memory it takes as much room as in a file. Tensors without any element are left out.

    Attributes:
        shapes: shape of each tensor that has elements in the mask.
        rows: each tensor's elements, as a file has them (:data:`ckptdiff.subnetwork.mask_rows.Row`).
    """

    def __init__(self, bits: Mapping[str, Bits], shapes: Shapes) -> None:
        self._set({name: row_from_bits(row, math.prod(shapes[name])) for name, row in bits.items()}, shapes)

    def _set(self, rows: Mapping[str, Row], shapes: Shapes) -> None:
        kept = sorted((name for name, row in rows.items() if len(row) and (row.itemsize == 4 or row.any())), key=str.encode)
        self.rows = {name: rows[name] for name in kept}
        self.shapes = {name: tuple(shapes[name]) for name in kept}

    @classmethod
    def _from_rows(cls, rows: Mapping[str, Row], shapes: Shapes) -> Mask:
        mask = cls({}, {})
        mask._set(rows, shapes)
        return mask

    @property
    def bits(self) -> Mapping[str, Bits]:
        """Packed elements by tensor: the first element is the lowest bit of the first byte. Each is made when it is asked for."""
        return _PackedRows(self)

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
        """The elements that a patch, or a checkpoint, changes of its base, after a cast where the dtypes differ.

        The mask is of the target's tensors; elements that the base does not have, such as rows that were added, are in it.

        Args:
            patch: a patch, or the target itself: a path or an id on the Hub.
            base: the checkpoint that it was made from; None: the repo that the patch names as its base.
            atol: count an element as changed if |d| exceeds this (the paper's sparsity: 1e-5); at 0, if its bits differ.
            threads, progress: as in :func:`ckptdiff.report`.

        Raises:
            CheckpointError: there is no base, a name is in two scopes, or a tensor has no counterpart in the base. Other errors are those
            of :func:`ckptdiff.report`.
        """
        base = base if base is not None else named_base(patch)
        with open_source(base, patch) as source:
            return cls.from_sources([source], atol=atol, threads=threads, progress=progress)

    @classmethod
    def from_sources(
        cls, sources: Sequence[Source], *, atol: float = 0.0, threads: int | None = None, progress: Progress = no_progress
    ) -> Mask:
        """The elements that any of several open targets of one base changes, in one pass; the arguments are those of :meth:`from_patch`.

        Raises:
            CheckpointError: a name is in two scopes, a tensor has no counterpart in the base, or not the same one in all targets.
        """
        for source in sources:
            _check_counterparts(source)
        groups, rows = _by_name(sources), dict[str, Row]()
        jobs = (partial(_changed_bits, group, start, atol) for group in groups for start in group[0].starts)
        done, total = 0, sum(group[0].nbytes for group in groups)
        with closing(run_ordered(jobs, threads or default_threads())) as results:
            for pair, *more in groups:
                flags = np.concatenate([next(results) for _ in pair.starts])
                for one in (pair, *more):
                    one.finish()
                rows[pair.name] = row_from_bits(_with_added(flags, pair), math.prod(pair.target_shape))
                done += pair.nbytes
                progress("comparing", done, total)
        return cls._from_rows(rows, {group[0].name: group[0].target_shape for group in groups})

    @classmethod
    def from_arrays(cls, flags: Mapping[str, Any]) -> Mask:
        """The elements that boolean arrays, or tensors on the host, name as true."""
        arrays = {name: np.asarray(array, dtype=np.bool_) for name, array in flags.items()}
        return cls({k: np.packbits(v.reshape(-1), bitorder="little") for k, v in arrays.items()}, {k: v.shape for k, v in arrays.items()})

    @classmethod
    def union(cls, *masks: Mask) -> Mask:
        """The elements that are in any of the masks."""
        return cls.vote(1, *masks)

    @classmethod
    def intersection(cls, *masks: Mask) -> Mask:
        """The elements that are in all of the masks."""
        return cls.vote(len(masks), *masks)

    @classmethod
    def vote(cls, least: int, *masks: Mask) -> Mask:
        """The elements that are in at least ``least`` of the masks.

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
        result: dict[str, Row] = {}
        for name, shape in shapes.items():
            rows = [mask.rows[name] for mask in masks if name in mask.rows]
            if len(rows) >= least:
                result[name] = vote_rows(max(least, 1), rows, math.prod(shape))
        return cls._from_rows(result, {name: shapes[name] for name in result})

    def random(self, seed: int) -> Mask:
        """As many elements of each tensor, chosen at random: the control of an experiment."""
        rng, rows = np.random.default_rng(seed), {}
        for name, count in self.counts.items():
            elements = math.prod(self.shapes[name])
            rows[name] = row_from_positions(np.sort(rng.choice(elements, count, replace=False, shuffle=False)), elements)
        return Mask._from_rows(rows, self.shapes)

    # --- what they hold ---

    @property
    def counts(self) -> dict[str, int]:
        """Number of elements in the mask, by tensor."""
        return {name: count_elements(row) for name, row in self.rows.items()}

    @property
    def total(self) -> int:
        """Number of elements in the mask."""
        return sum(self.counts.values())

    def flags(self, name: str) -> npt.NDArray[np.bool_]:
        """A tensor's elements as booleans of its shape.

        Raises:
            CheckpointError: none of them is in the mask, or there is no such tensor, which a mask cannot tell apart.
        """
        if name not in self.rows:
            near = near_names(name, self.rows)
            raise CheckpointError(
                f"the mask has no element of a tensor {cut(name)}: the model has no such tensor, or the mask none of its elements; "
                + (f"the nearest of the mask's {len(self.rows):,} tensors are {near}" if near else "the mask is empty")
            )
        shape, row = self.shapes[name], self.rows[name]
        if row.itemsize == 1:
            return np.unpackbits(row, count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)
        flags = np.zeros(math.prod(shape), np.bool_)
        flags[row] = True
        return flags.reshape(shape)

    def shared(self, other: Mask) -> int:
        """Number of elements that are in both masks."""
        return sum(count_shared(row, other.rows[name]) for name, row in self.rows.items() if name in other.rows)

    def precision(self, truth: Mask) -> float:
        """Share of this mask's elements that are in another one too; 0 if this one is empty."""
        return self.shared(truth) / self.total if self.total else 0.0

    def recall(self, truth: Mask) -> float:
        """Share of another mask's elements that are in this one; 0 if the other one is empty."""
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
            OutputError: the file cannot be written. CheckpointError: the mask has more tensors than a reader takes.
        """
        return write_mask(local_path(path, "masks are written"), self.rows, self.shapes, overwrite=overwrite)

    @classmethod
    def load(cls, path: PathLike) -> Mask:
        """Read a mask file.

        Raises:
            CheckpointError: the file cannot be read. FormatError, UnsupportedError, IntegrityError: it is not a whole and valid mask.
        """
        return cls._from_rows(*read_mask(local_path(path, "masks are read")))


class _PackedRows(Mapping[str, Bits]):
    """The packed elements of a mask's tensors, each made when it is asked for."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def __getitem__(self, name: str) -> Bits:
        row = self._mask.rows[name]
        return row if row.itemsize == 1 else pack_positions(row, math.prod(self._mask.shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._mask.rows)

    def __len__(self) -> int:
        return len(self._mask.rows)


def _by_name(sources: Sequence[Source]) -> list[list[Pair]]:
    """Of each tensor its pair in each source that has it; raises CheckpointError if these do not stand against the same of the base."""
    groups: dict[str, list[Pair]] = {}
    for source in sources:
        for pair in source.pairs:
            group = groups.setdefault(pair.name, [])
            if group and (pair.dtype, pair.base.pieces, pair.target_shape) != (group[0].dtype, group[0].base.pieces, group[0].target_shape):
                raise CheckpointError(
                    f"{source.target}: its tensor {cut(pair.name)} does not come from the same part of {source.base} as in another step: "
                    "make a mask of some steps alone"
                )
            group.append(pair)
    return list(groups.values())


def _check_counterparts(source: Source) -> None:
    """Raise CheckpointError unless each tensor of the target stands for one of the base, and each name for one tensor."""
    check_common(source)
    missing = [*source.added, *source.unpaired]
    if missing:
        raise CheckpointError(
            f"{source.target}: its tensor {cut(missing[0])} ({len(missing)} in all) has no counterpart in {source.base}: "
            "a mask is of what changed of a base"
        )
    names = set[str]()
    for pair in source.pairs:
        if pair.name in names:
            raise CheckpointError(f"{source.target}: two scopes have a tensor {cut(pair.name)}: make a mask of each by itself")
        names.add(pair.name)


def _with_added(flags: Bits, pair: Pair) -> Bits:
    """Packed elements of the whole target tensor: what no base tensor has, such as added rows, counts as changed."""
    if not pair.against_zeros:
        return flags
    compared = np.unpackbits(flags, count=math.prod(pair.shape), bitorder="little")
    whole = np.ones(math.prod(pair.target_shape), np.uint8)
    carrier, bits, at = DTYPES[pair.dtype].carrier, DTYPES[pair.dtype].bits, 0
    for named, *run in pair.base.runs(0, pair.base.units):
        if named:
            first, stop = (8 * carrier * unit // bits for unit in run)
            whole[first:stop] = compared[at : at + stop - first]
            at += stop - first
    return np.packbits(whole, bitorder="little")


def _changed_bits(group: Sequence[Pair], start: int, atol: float) -> Bits:
    """Which elements of one block any of a tensor's pairs changed, packed."""
    ever: npt.NDArray[np.bool_] | None = None
    for pair in group:
        old, new = pair.read(start, start + pair.step)
        a, b = element_bits(old, pair.dtype), element_bits(new, pair.dtype)
        flags: npt.NDArray[np.bool_] = a != b
        if atol:
            flags &= ~(distances(a, b, pair.dtype) <= atol)
        ever = flags if ever is None else ever | flags
    assert ever is not None
    return np.packbits(ever, bitorder="little")


def smallest_weights(base: PathLike, like: Mask, *, threads: int | None = None) -> Mask:
    """A guess without training: as many elements of each tensor as ``like`` has, those with the smallest |weight| in the base.

    In bf16 an update is rounded away where it is less than half an ulp, so that small weights change first.

    Raises:
        CheckpointError: the base cannot be read, or lacks a tensor of the mask, or has it in another shape.
    """
    bits: dict[str, Bits] = {}
    with open_source(base, base) as source:
        shapes = {pair.name: pair.shape for pair in source.pairs}
        for name in like.rows:
            if shapes.get(name) != like.shapes[name]:
                found = f"has it as {cut(list(shapes[name]))}" if name in shapes else "has no such tensor"
                raise CheckpointError(
                    f"the mask has the tensor {cut(name)} of shape {cut(list(like.shapes[name]))}, {base} {found}: "
                    "give the base a mask of its own tensors"
                )
        wanted = [pair for pair in source.pairs if pair.name in like.rows and DTYPES[pair.dtype].is_float and pair.dtype != "C64"]
        jobs = (partial(_smallest_bits, pair, like.counts[pair.name]) for pair in wanted)
        with closing(run_ordered(jobs, threads or default_threads())) as rows:
            for pair, row in zip(wanted, rows, strict=True):
                bits[pair.name] = row
    return Mask(bits, like.shapes)


def _smallest_bits(pair: Pair, count: int) -> Bits:
    """The ``count`` elements of a tensor of the base with the smallest |weight|, packed."""
    dtype = DTYPES[pair.dtype]
    parts: list[Bytes] = [pair.read(start, start + pair.step)[0].copy() for start in pair.starts]
    units = element_bits(np.concatenate(parts), pair.dtype)
    magnitude = units & units.dtype.type((1 << (dtype.bits - 1)) - 1)  # without the sign, bit patterns are in the order of |weight|
    flags = np.zeros(len(magnitude), np.bool_)
    flags[np.argpartition(magnitude, count - 1)[:count]] = True
    return np.packbits(flags, bitorder="little")

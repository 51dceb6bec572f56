"""Masks: which elements of a model a patch changes, as sets to combine, save and train within (spec/mask-v1.md).

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 4: m_i = 1 if (theta_init - theta_full)_i != 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from ckptdiff.analysis.pairs import Pair, Source, named_base, open_source
from ckptdiff.analysis.sides import Side, check_sides
from ckptdiff.errors import CheckpointError
from ckptdiff.io.parallel import Progress, default_threads, no_progress
from ckptdiff.io.places import local_path
from ckptdiff.subnetwork.mask_file import read_mask, write_mask
from ckptdiff.subnetwork.mask_guesses import (
    expected_by_size,
    is_predicted,
    predicted_row,
    random_row,
    random_row_by_size,
    rows_of_base,
    sizes_of,
)
from ckptdiff.subnetwork.mask_rows import Row
from ckptdiff.subnetwork.mask_score import MaskScore
from ckptdiff.subnetwork.mask_sets import ElementSet, shapes_of_all
from ckptdiff.subnetwork.mask_sources import changed_rows

PathLike = str | os.PathLike[str]


class Mask(ElementSet):
    """A set of elements of a model's tensors, with the operations of a set: ``&``, ``|``, ``-``, ``^``, ``~``, ``len`` and ``==``.

    It knows the tensors that it is of, also those that have no element in it; ``~mask`` are the other elements of these tensors. Two masks
    need not be of the same tensors: what one does not know has no element in it. In memory a mask takes as much room as in a file.

    Attributes:
        shapes: shape of each tensor that the mask is of.
        rows: the elements of each tensor that has any, as a file has them (:data:`ckptdiff.subnetwork.mask_rows.Row`).
    """

    # --- where masks come from ---

    @classmethod
    def from_patch(
        cls,
        patch: Side,
        base: Side = None,
        *,
        as_dtype: Any = None,
        atol: float = 0.0,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> Mask:
        """The elements that a patch, or a checkpoint, changes of its base, after a cast where the dtypes differ.

        The mask is of the target's tensors; elements that the base does not have, such as rows that were added, are in it.

        Args:
            patch: a patch, or the target itself: a path or an id on the Hub, a :class:`ckptdiff.Patch`, a state dict or a module.
            base: the checkpoint that it was made from, in any of these forms; None: the repo that the patch names as its base.
            as_dtype: cast both while they are read, as in :func:`ckptdiff.report`.
            atol: count an element as changed if |d| exceeds this (the paper's sparsity: 1e-5); at 0, if its bits differ.
            threads, progress: as in :func:`ckptdiff.report`.

        Raises:
            CheckpointError: there is no base, a name is in two scopes, or a tensor has no counterpart in the base. Other errors are those
            of :func:`ckptdiff.report`.
        """
        check_sides(patch=patch)
        base = base if base is not None else named_base(patch)
        check_sides(base=base)
        with open_source(base, patch, as_dtype=as_dtype) as source:
            return cls.from_sources([source], atol=atol, threads=threads, progress=progress)

    @classmethod
    def from_sources(
        cls, sources: Sequence[Source], *, atol: float = 0.0, threads: int | None = None, progress: Progress = no_progress
    ) -> Mask:
        """The elements that any of several open targets of one base changes, in one pass; the arguments are those of :meth:`from_patch`.

        Raises:
            CheckpointError: a name is in two scopes, a tensor has no counterpart in the base, or not the same one in all targets.
        """
        return cls._collected(changed_rows(sources, atol, threads or default_threads(), progress))

    @classmethod
    def _collected(cls, found: Iterable[tuple[str, tuple[int, ...], Row]]) -> Mask:
        """The mask of these names, shapes and rows."""
        rows, shapes = dict[str, Row](), dict[str, tuple[int, ...]]()
        for name, shape, row in found:
            rows[name], shapes[name] = row, shape
        return cls.from_rows(rows, shapes)

    @classmethod
    def predict(cls, base: Side, lr: float, *, as_dtype: Any = None, threads: int | None = None) -> Mask:
        """A guess without training: the weights that a step of the learning rate can move.

        A step of AdamW moves a weight by about the learning rate. Rounding takes it back where that is less than half the distance to the
        next number, as it is for all but small weights in pure bf16 training. So these are the weights of which half the distance to the
        nearer neighbour is less than ``lr``; zero is among them. Of fp32 masters that are saved as bf16 it says little.

        Args:
            base: the weights before training: a checkpoint, a state dict or a module.
            lr: the largest learning rate of the run.
            as_dtype: the dtype that they are trained in, if it is not that of the base: cast them while they are read.
            threads: how many to use.

        Raises:
            CheckpointError: the base cannot be read, or ``lr`` is no positive number.
        """
        if not 0 < lr < math.inf:
            raise CheckpointError(f"lr: expected a positive number, found {lr}")
        make = partial(predicted_row, step=float(lr))
        return cls._collected(rows_of_base(base, None, make, wanted=is_predicted, as_dtype=as_dtype, threads=threads or default_threads()))

    @classmethod
    def from_arrays(cls, flags: Mapping[str, Any]) -> Mask:
        """The elements that boolean arrays, or tensors on the host, name as true."""
        arrays = {name: np.asarray(array, dtype=np.bool_) for name, array in flags.items()}
        return cls({k: np.packbits(v.reshape(-1), bitorder="little") for k, v in arrays.items()}, {k: v.shape for k, v in arrays.items()})

    def random(
        self, seed: int, base: Side = None, *, by: Literal["tensor", "size"] | None = None, as_dtype: Any = None, threads: int | None = None
    ) -> Mask:
        """As many elements, chosen at random: the control of an experiment. A tensor's do not depend on the other tensors.

        Args:
            seed: another one gives other elements.
            base: the weights before training: a checkpoint, a state dict or a module. It is needed for ``size``.
            by: ``tensor``: as many elements of each tensor. ``size``: as many of each tensor and size of the base's weight (binary
                exponent), since an update of bf16 weights changes small ones in any case. By default the latter where there is a base.
            as_dtype: cast the base while it is read, as in :meth:`from_patch`.
            threads: how many to use.

        Raises:
            CheckpointError: ``by`` is neither, there is no base for it, or the base lacks a tensor of the mask or has another shape of it.
        """
        by = by or ("tensor" if base is None else "size")
        if by not in ("tensor", "size"):
            raise CheckpointError(f"by: expected tensor or size, found {by!r}")
        if by == "size" and base is None:
            raise CheckpointError("base: expected the weights before training, by whose sizes elements are chosen, found none")
        if by == "tensor":
            rows = {name: random_row(seed, name, count, math.prod(self.shapes[name])) for name, count in self.counts.items()}
            return Mask.from_rows(rows, self.shapes)

        def chosen(pair: Pair) -> Row:
            return random_row_by_size(seed, pair.name, self.rows[pair.name], sizes_of(pair))

        with_elements = {name: self.shapes[name] for name in self.rows}
        found = rows_of_base(base, with_elements, chosen, as_dtype=as_dtype, threads=threads or default_threads())
        return Mask.from_rows({name: row for name, _, row in found}, self.shapes)

    def score(self, truth: Mask, base: Side = None, *, as_dtype: Any = None, threads: int | None = None) -> MaskScore:
        """Precision and recall of this mask, as a guess of another one, beside those of a random mask as large.

        Args:
            truth: what came, such as the mask of an update.
            base: the weights before training, with which sizes are told too.
            as_dtype, threads: as in :meth:`random`.

        Raises:
            CheckpointError: a tensor has different shapes in the two masks or in the base, or the base lacks it.
        """
        shapes_of_all((self, truth))
        common = {name: self.shapes[name] for name in self.rows if name in truth.rows}
        counts, of_truth = self.counts, truth.counts
        by_chance = math.fsum(counts[name] * of_truth[name] / math.prod(shape) for name, shape in common.items())
        by_size = None
        if base is not None:

            def expected(pair: Pair) -> float:
                return expected_by_size(self.rows[pair.name], truth.rows[pair.name], sizes_of(pair))

            found = rows_of_base(base, common, expected, as_dtype=as_dtype, threads=threads or default_threads())
            by_size = math.fsum(shared for _, _, shared in found)
        return MaskScore(len(self), len(truth), self.shared(truth), by_chance, by_size)

    def __repr__(self) -> str:
        return f"<ckptdiff.Mask: {self.total:,} elements in {len(self.rows):,} of {len(self.shapes):,} tensors>"

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
        return cls.from_rows(*read_mask(local_path(path, "masks are read")))

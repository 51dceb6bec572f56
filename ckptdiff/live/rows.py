"""Tensors in the host's memory as rows of arrays, and what a patch changes in them, decoded for many by one call (spec section 10).

That is for the patches that are applied most, steps of a training run: one file of tensors that ``sparse`` codes, or that stay, each with
the base tensor of its own name. Where anything else is to be done, or anything is wrong, nothing is taken, so that all rules and errors
have their room in :mod:`ckptdiff.live.load`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff import codecs, kernels
from ckptdiff.codecs.planes import BlockError
from ckptdiff.errors import CkptdiffError, UnsupportedError
from ckptdiff.format.digests import BLOCK, xxh128
from ckptdiff.format.dtypes import DTYPES, Changes, Dtype
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import run_ordered
from ckptdiff.live.hashing import leaves_of_blocks
from ckptdiff.live.names import tied_of
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB
from ckptdiff.live.writing import MemoryRange
from ckptdiff.patching.memory import State
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.torch_dtypes import Array, host_address

Numbers = npt.NDArray[Any]
DECODED_AT_ONCE = 64 * BLOCK
"""Bytes of tensors, about, that one call decodes."""
LEAST_AT_ONCE = 2 * BLOCK
"""Bytes of tensors that a thread moves at once at least: to start one takes as long as to move so many."""


def rows_of(patch: OpenPatch, state: State, scope: str | None) -> Rows | None:
    """The tensors that a patch is for; None if it or one of them is not as told above.

    Args:
        patch: the patch.
        state: the model's tensors.
        scope: which scope was asked for.
    """
    columns = patch.files[0].table.columns if len(patch.files) == 1 else None
    if columns is None or not columns.are_plain or "new" in columns.kinds or not set(columns.codecs) <= {None, "sparse"}:
        return None
    if scope not in (None, patch.files[0].metadata.target_scope):
        return None
    arrays, addresses = list[Array](), list[int]()
    try:
        for name, (dtype, shape, *_) in zip(columns.names, columns.types, strict=True):
            array = state.get(name)
            address = host_address(array, dtype, shape) if array is not None else None
            if address is None:
                return None
            arrays.append(array)
            addresses.append(address)
        numbers = {name: k for k, name in enumerate(columns.names)} if patch.tied else {}
        for name, kept in tied_of(patch, numbers).items():
            array, number = state.get(name), numbers[kept]
            if array is not None and host_address(array, *columns.types[number][:2]) != addresses[number]:
                return None
    except UnsupportedError:
        return None
    rows = Rows(patch.files[0], arrays, np.array(addresses, np.uint64), np.array(columns.nbytes, np.int64))
    return None if rows.overlap() else rows


@dataclass(frozen=True, slots=True)
class Moves:
    """Runs of whole blocks of tensors of one dtype whose units move, and by how much."""

    dtype: Dtype
    runs: Numbers
    """As :func:`ckptdiff.kernels.moves.move_and_hash` takes them."""
    blocks: Numbers
    """The number of each of their blocks among those of all tensors."""
    changes: Changes
    """Those of all runs, one behind the other, beside others: a run has only the address of its own."""
    begins: Numbers
    """Where in these the changes of each run begin."""
    firsts: Numbers
    """The first block of each run, by its number among all."""
    moved: Numbers
    """uint8, one for each run: 1 once it is moved."""

    @property
    def counts(self) -> Numbers:
        """How many units each run changes."""
        return self.runs[:, 4]

    def move(self, back: bool, hashed: bool) -> bytes:
        """Move the units, or move them ``back``; returns the leaves of the result, one behind the other, if ``hashed``."""
        return kernels.moves.move_at(self.runs, self.dtype, back, hashed, self.moved)

    def take_back(self, back: bool) -> None:
        """Undo what :meth:`move` has done of a move the other way."""
        done = self.moved == 1
        kernels.moves.move_at(self.runs[done], self.dtype, back, False)


class Rows:
    """The tensors of a patch file, in the table's order.

    Args:
        file: the patch file.
        arrays: the model's tensors.
        addresses, sizes: where they lie, and their bytes: uint64 and int64.
    """

    def __init__(self, file: PatchFile, arrays: Sequence[Array], addresses: Numbers, sizes: Numbers) -> None:
        self.file, self.columns, self.arrays = file, file.table.columns, arrays
        self.addresses, self.sizes = addresses, sizes
        self.blocks = kernels.leaves.blocks_at(addresses, sizes)
        self.owners, self.places = kernels.leaves.places_of_blocks(sizes)
        self._bounds = [0, *np.cumsum(np.bincount(self.owners, minlength=len(sizes))).tolist()]

    @property
    def memory(self) -> list[MemoryRange]:
        """The memory of all tensors."""
        return [("cpu", address, size) for address, size in zip(self.addresses.tolist(), self.sizes.tolist(), strict=True)]

    def overlap(self) -> bool:
        """Whether two tensors share a byte."""
        filled = np.flatnonzero(self.sizes)
        order = filled[np.argsort(self.addresses[filled])]
        ends = self.addresses[order] + self.sizes[order].astype(np.uint64)
        return bool((ends[:-1] > self.addresses[order][1:]).any())

    def leaves(self, threads: int) -> bytes:
        """Leaves of all blocks, as they are now, one behind the other."""
        return leaves_of_blocks(*self.blocks, threads)

    def digests(self, leaves: bytes) -> list[bytes]:
        """The digests of all tensors from the leaves of all blocks."""
        return [xxh128(leaves[16 * i : 16 * j]) for i, j in pairwise(self._bounds)]

    def decoded(self, threads: int) -> list[Moves] | None:
        """What moves, in parts of so many bytes as one thread updates at once; None if something is wrong with a payload."""
        try:
            return self._decoded(threads)
        except (CkptdiffError, BlockError):
            return None

    def _decoded(self, threads: int) -> list[Moves] | None:
        columns, is_delta = self.columns, np.array([kind == "delta" for kind in self.columns.kinds], np.bool_)
        dtypes, places = list(dict.fromkeys(type_.dtype for type_ in columns.types)), np.cumsum(is_delta[self.owners]) - 1
        alike = np.array([dtypes.index(type_.dtype) for type_ in columns.types], np.int64)
        total = int(self.sizes[is_delta].sum())
        most = DECODED_AT_ONCE if threads == 1 else max(BYTES_PER_UPDATE_JOB, min(DECODED_AT_ONCE, total // (4 * threads)))
        at_once = BYTES_PER_UPDATE_JOB if threads == 1 else max(LEAST_AT_ONCE, min(BYTES_PER_UPDATE_JOB, total // threads))
        tasks = list[Callable[[], tuple[Numbers, Sequence[int], list[Moves]]]]()
        for k, name in enumerate(dtypes):
            blocks = np.flatnonzero((is_delta & (alike == k))[self.owners])
            for i, j in pairwise(_cuts(self.blocks[1][blocks], self.places[blocks], most)):
                if i < j:
                    tasks.append(partial(self._moves, blocks[i:j], places[blocks[i:j]], DTYPES[name], at_once))
        found, moves = np.zeros(len(self.sizes), np.int64), list[Moves]()
        with closing(run_ordered(tasks, min(threads, len(tasks)))) as results:
            for blocks, counts, some in results:
                np.add.at(found, self.owners[blocks], counts)
                moves += some
        return moves if found.tolist() == list(columns.changed) else None

    def _moves(self, blocks: Numbers, numbers: Numbers, dtype: Dtype, at_once: int) -> tuple[Numbers, Sequence[int], list[Moves]]:
        """What moves in some blocks, after these and how many units change in each.

        Args:
            blocks: their numbers among all blocks.
            numbers: those among the coded ones.
            dtype: of all of them.
            at_once: bytes of tensors, about, that one thread is to move at once.
        """
        addresses, sizes = (part[blocks] for part in self.blocks)
        coded = self.file.payloads.coded_blocks(numbers.tolist())
        offsets = self.places[blocks] % BYTES_PER_UPDATE_JOB
        changes, counts = codecs.sparse.unpack_all(coded, sizes.tolist(), (offsets // dtype.carrier).tolist(), dtype)
        firsts, found = np.flatnonzero(offsets == 0), np.array(counts, np.uint64)
        begins, nbytes = (np.cumsum(found) - found)[firsts], np.add.reduceat(sizes, firsts)
        runs = kernels.moves.runs_at(addresses[firsts], nbytes, changes, begins, np.add.reduceat(found, firsts))
        moves = list[Moves]()
        for i, j in pairwise(_cuts(runs[:, 1], np.zeros(len(runs)), at_once)):
            its_blocks = blocks[firsts[i] : firsts[j] if j < len(firsts) else len(blocks)]
            places = begins[i:j], blocks[firsts[i:j]]
            moves.append(Moves(dtype, runs[i:j], its_blocks, changes, *places, np.zeros(j - i, np.uint8)))
        return blocks, counts, moves


def _cuts(sizes: Numbers, places: Numbers, most: int) -> list[int]:
    """Where to cut blocks, or runs of them, into parts of about so many bytes; not within a run, whose ``places`` tell where it begins.

    Returns:
        The number of the first item of each part, and how many items there are.
    """
    firsts = np.flatnonzero(places % BYTES_PER_UPDATE_JOB == 0)
    part = (np.cumsum(sizes)[firsts] - sizes[firsts]) // most
    return [0, *firsts[np.flatnonzero(np.diff(part)) + 1].tolist(), len(sizes)]

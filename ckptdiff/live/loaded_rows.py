"""A patch decoded against tensors in the host's memory, all of it as rows of arrays, to be applied and reverted in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.errors import cut
from ckptdiff.io.parallel import run_ordered
from ckptdiff.live.hashing import hash_blocks_in_background
from ckptdiff.live.names import MODEL
from ckptdiff.live.rows import Moves, Rows
from ckptdiff.live.switch import LoadedPatch
from ckptdiff.patching.memory import State
from ckptdiff.patching.torch_dtypes import host_address, memory_of


class LoadedRows(LoadedPatch):
    """A patch decoded to moves of units in rows of tensors.

    Args:
        name, threads, find_tensors: as of :class:`~ckptdiff.live.switch.LoadedPatch`.
        rows: the tensors.
        moves: what moves in them.
        leaves: those of all their blocks without the patch, one behind the other.
    """

    def __init__(
        self, name: str, rows: Rows, moves: Sequence[Moves], leaves: bytes, threads: int, find_tensors: Callable[[], State]
    ) -> None:
        super().__init__(name, rows.memory, threads, find_tensors)
        self._rows, self._moves, self._leaves = rows, moves, leaves

    @property
    def nbytes(self) -> int:
        """As of :class:`~ckptdiff.live.switch.LoadedPatch`."""
        return sum(int(part.counts.sum()) * (4 + part.dtype.carrier) for part in self._moves)

    def touched(self) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """As of :class:`~ckptdiff.live.switch.LoadedPatch`."""
        found = dict[int, list[npt.NDArray[np.int64]]]()
        for part in self._moves:
            for first, begin, count in zip(part.firsts.tolist(), part.begins.tolist(), part.counts.tolist(), strict=True):
                if count:
                    places = part.changes[0][begin : begin + count].astype(np.int64) + self._rows.places[first] // part.dtype.carrier
                    found.setdefault(int(self._rows.owners[first]), []).append(places)
        for number in sorted(found):
            yield self._rows.columns.names[number], np.concatenate(found[number])

    def _changed_names(self) -> Iterable[str]:
        return (name for name, count in zip(self._rows.columns.names, self._rows.columns.changed, strict=True) if count)

    def _changed_tensors(self) -> list[Any]:
        now, columns, arrays = self._find_tensors(), self._rows.columns, list[Any]()
        rows = zip(columns.names, columns.types, columns.changed, self._memory, strict=True)
        for name, type_, changed, memory in rows:
            array, where = now.get(name), f"{MODEL}: {cut(name)}"
            if array is None:
                raise self._replaced(name)
            # which takes less time, but wants the same shape too
            if host_address(array, type_.dtype, type_.shape, where) != memory[1] and memory[2] and memory_of(array, where) != memory:
                raise self._replaced(name)
            if changed:
                arrays.append(array)
        return arrays

    def _check(self, applied: bool) -> None:
        columns, found = self._rows.columns, self._rows.digests(self._rows.leaves(self._threads))
        for name, digest, expected in zip(columns.names, found, columns.digests if applied else columns.base_digests, strict=True):
            if digest != expected:
                raise self._unlike(name, digest, expected, applied)

    def _steps(self) -> Sequence[Moves]:
        for part in self._moves:
            part.moved[:] = 0
        return self._moves

    def _run(self, steps: Sequence[Moves], back: bool, check: bool) -> None:
        leaves, columns = bytearray(self._leaves), self._rows.columns
        rows = np.frombuffer(leaves, np.uint8).reshape(-1, 16)
        with closing(run_ordered([partial(part.move, back, check) for part in steps], min(self._threads, len(steps)))) as results:
            for part, found in zip(steps, results, strict=True):
                if check:
                    rows[part.blocks] = np.frombuffer(found, np.uint8).reshape(-1, 16)
        expected = columns.base_digests if back else columns.digests
        for name, digest, right in zip(columns.names, self._rows.digests(bytes(leaves)) if check else expected, expected, strict=True):
            if digest != right:
                raise self._wrong_result(name, digest, right)


def load_rows(name: str, rows: Rows, threads: int, find_tensors: Callable[[], Mapping[str, Any]]) -> LoadedRows | None:
    """Decode a patch against tensors that have the base's content; None if they have not, or something is wrong with the patch.

    None too if the changes would take more memory than the tensors that change.
    """
    with hash_blocks_in_background(*rows.blocks, threads - 1) if threads > 1 else nullcontext(partial(rows.leaves, 1)) as hashed:
        moves = rows.decoded(threads)
        leaves = hashed()
    if moves is None or rows.digests(leaves) != list(rows.columns.base_digests):
        return None
    loaded = LoadedRows(name, rows, moves, leaves, threads, find_tensors)
    changed = (type_.nbytes for type_, count in zip(rows.columns.types, rows.columns.changed, strict=True) if count)
    return loaded if loaded.nbytes <= sum(changed) else None

"""Which elements of its tensors an update changes, packed, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.pairs import Pair, Source, check_common
from ckptdiff.analysis.values import distances, element_bits
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.io.parallel import Progress, run_ordered
from ckptdiff.subnetwork.mask_rows import Bits, Row, row_from_bits


def changed_rows(sources: Sequence[Source], atol: float, threads: int, progress: Progress) -> Iterator[tuple[str, tuple[int, ...], Row]]:
    """Name, shape and row of each tensor of several open targets of one base: the elements that any of them changes, in one pass.

    Raises:
        CheckpointError: a name is in two scopes, a tensor has no counterpart in the base, or not the same one in all targets.
    """
    for source in sources:
        _check_counterparts(source)
    groups = _by_name(sources)
    jobs = (partial(_changed_bits, group, start, atol) for group in groups for start in group[0].starts)
    done, total = 0, sum(group[0].nbytes for group in groups)
    with closing(run_ordered(jobs, threads)) as results:
        for pair, *more in groups:
            flags = np.concatenate([next(results) for _ in pair.starts])
            for one in (pair, *more):
                one.finish()
            yield pair.name, pair.target_shape, row_from_bits(_with_added(flags, pair), math.prod(pair.target_shape))
            done += pair.nbytes
            progress("comparing", done, total)


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

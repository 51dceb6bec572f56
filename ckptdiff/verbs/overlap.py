"""``overlap`` compares which elements several updates of one base changed, and how an update grew over a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, TypeVar

from ckptdiff.analysis.cast_on_read import cast_dtype
from ckptdiff.analysis.overlap import CountArray, OverlapResult, count_block, distinct_names, tensor_overlap
from ckptdiff.analysis.overlap_work import Count, GroupCounting, counts_of, group_jobs
from ckptdiff.analysis.pairs import Pair, Source, check_common, named_base, open_source
from ckptdiff.analysis.sides import Side, check_ray_reads, check_sides, is_path, is_tensor
from ckptdiff.checkpoint.renames import check_globs
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError
from ckptdiff.io.parallel import Progress, Workers, no_progress, run_plan
from ckptdiff.io.workers import check_no_ray_with_stores, open_workers

Row = TypeVar("Row")


def overlap(
    updates: Sequence[Side],
    base: Side = None,
    *,
    as_dtype: Any = None,
    atol: float = 0.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    threads: int | None = None,
    ray: str | None = None,
    progress: Progress = no_progress,
) -> OverlapResult:
    """Compare which elements several updates of one base changed.

    Args:
        updates: patches from ``base``, or checkpoints, by their paths or in memory (state dicts, modules, :class:`ckptdiff.Patch`); those
            of one run in the order of its steps. A dict of updates names them.
        base: the checkpoint that all updates started from, without which positions in a patch cannot be read; None: the repo on the Hub
            that the first patch names as its base.
        as_dtype: cast all of them while they are read, as in :func:`ckptdiff.report`.
        atol: count an element as changed if |d| exceeds this; at 0, if its bits differ.
        include, exclude, follow_links: choose the files of checkpoints, as in :func:`ckptdiff.make`.
        threads, ray: who does the work, as in :func:`ckptdiff.make`.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        CheckpointError: a checkpoint cannot be read, or no tensor is in all of them.
        FormatError, UnsupportedError, IntegrityError: a patch is broken.
        BaseMismatchError: a patch has another base. HubError: no base is given or named, or the named one cannot be read.
    """
    named = updates if isinstance(updates, Mapping) else None
    updates = _listed(updates)
    if not updates:
        raise CheckpointError("updates: expected at least one patch or checkpoint, found none")
    sides = [*updates, *([base] if base is not None else ())]
    check_sides(**{f"updates[{k}]": update for k, update in enumerate(updates)}, **({"base": base} if base is not None else {}))
    check_ray_reads(ray, *sides)
    check_no_ray_with_stores(ray, *filter(is_path, sides))
    if base is None:
        base = named_base(*updates)
    with ExitStack() as stack:
        chosen = Selection(include, exclude, follow_links)
        sources = [stack.enter_context(open_source(base, update, selection=chosen, as_dtype=as_dtype)) for update in updates]
        checkpoints = [checkpoint for source in sources for checkpoint in source.checkpoints]
        if checkpoints:  # all at once, as one of the updates may have a file that no other has
            check_globs(chosen.globs, *checkpoints)
        with open_workers(threads, ray) as workers:
            names = tuple(named) if named is not None else distinct_names([_name_of(update, k) for k, update in enumerate(updates, 1)])
            return replace(compare_sources(sources, names, atol, workers, progress), cast=cast_dtype(as_dtype))


def _listed(updates: Any) -> list[Side]:
    """The updates, given as a list, or as a dict by names; raises CheckpointError for one update that is given by itself."""
    if isinstance(updates, Mapping) and all(isinstance(name, str) and not is_tensor(one) for name, one in updates.items()):
        return list(updates.values())
    alone = is_path(updates) or hasattr(updates, "state_dict") or isinstance(updates, Mapping)
    if alone or not isinstance(updates, Iterable):
        found = repr(os.fspath(updates)) if is_path(updates) else type(updates).__name__
        raise CheckpointError(f"updates: expected several, found {found}: put it in a list")
    return list(updates)


def _name_of(update: Side, number: int) -> str | os.PathLike[str]:
    return update if is_path(update) else f"update {number}"


def compare_sources(sources: Sequence[Source], names: tuple[str, ...], atol: float, workers: Workers, progress: Progress) -> OverlapResult:
    """:func:`overlap` of updates that are open; ``names``: of the updates, all distinct."""
    groups, left_out = shared_pairs(sources)
    rows = counted(groups, count_block, tensor_overlap, atol, workers, progress)
    return OverlapResult(sources[0].base, names, atol, tuple(rows), left_out)


def shared_pairs(sources: Sequence[Source]) -> tuple[list[list[Pair]], tuple[str, ...]]:
    """Of each part of the base that is in all updates, in one dtype, its pair in each of them; and the names of the tensors left out.

    Raises:
        CheckpointError: there is no such part.
    """
    for source in sources:
        check_common(source)
    tables = [_by_place(source.pairs) for source in sources]
    shared = set(tables[0]).intersection(*tables)
    keys = [key for key in tables[0] if key in shared]
    left_out = {pair.name for table in tables for key, pair in table.items() if key not in shared}
    left_out |= {name for source in sources for name in (*source.added, *source.removed, *source.unpaired)}
    if not keys and left_out:
        raise CheckpointError(
            f"no part of {sources[0].base} is in all updates in one dtype: is it their base? updates can be compared with each other only "
            "where they were saved in one dtype"
        )
    return [[table[key] for table in tables] for key in keys], tuple(sorted(left_out))


def counted(
    groups: Sequence[Sequence[Pair]],
    count: Count,
    put_together: Callable[[Sequence[Pair], Iterator[list[CountArray]]], Row],
    atol: float,
    workers: Workers,
    progress: Progress,
) -> list[Row]:
    """A row for each group of pairs, put together from the counts of its blocks."""
    done, total = 0, sum(group[0].nbytes for group in groups)
    rows = list[Row]()
    with closing(run_plan(workers.executor(total, 0), GroupCounting(groups, count, atol), group_jobs(groups))) as results:
        blocks = counts_of(groups, results)
        for group in groups:
            rows.append(put_together(group, blocks))
            done += group[0].nbytes
            progress("comparing", done, total)
    return rows


def _by_place(pairs: Sequence[Pair]) -> dict[Hashable, Pair]:
    """Pairs by what of the base they stand against; of several the one with the base tensor's name."""
    table: dict[Hashable, Pair] = {}
    for pair in pairs:
        place = pair.base_scope, pair.base.pieces, pair.dtype
        if place not in table or (pair.is_own and not table[place].is_own):
            table[place] = pair
    return table

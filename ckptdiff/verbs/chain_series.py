"""``report``, ``overlap`` and ``mask`` of a chain: its steps are read as patches, in one pass, and no model is rebuilt on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ckptdiff.analysis.cast_on_read import cast_dtype
from ckptdiff.analysis.overlap import OverlapResult, count_steps
from ckptdiff.analysis.pairs import Source
from ckptdiff.analysis.series import ChainReport, Segment, open_series, tensor_series
from ckptdiff.chain.contents import local_patches
from ckptdiff.chain.history import History, Step, read_history
from ckptdiff.chain.names import CHAIN, PatchName
from ckptdiff.chain.retention import chosen_steps
from ckptdiff.errors import CheckpointError
from ckptdiff.io.parallel import Progress, ThreadWorkers, default_threads, no_progress
from ckptdiff.io.places import is_there
from ckptdiff.io.store_path import store_path
from ckptdiff.io.store_urls import open_store
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.verbs.chain_parts import find_base, plan_of, working_in
from ckptdiff.verbs.overlap import compare_sources, counted, shared_pairs

MAX_PATCHES = 256
"""Patches that are read at once: the tables of all of them are held."""


def is_chain(path: str | os.PathLike[str]) -> bool:
    """Whether a folder on this machine, or what lies at a URL, is a chain; raises StoreError if the store cannot be read."""
    place = store_path(path)
    return os.path.isfile(os.path.join(path, CHAIN)) if place is None else is_there(place / CHAIN)


def chain_report(
    chain: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    steps: Sequence[str] = (),
    as_dtype: Any = None,
    atol: float = 0.0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> ChainReport:
    """Count, for each step of a chain, the elements that differ from the base and from the step before, those that any step so far changed,
    and those that were changed and are as in the base again.

    Args:
        chain: a folder, or a URL that fsspec knows.
        base: the chain's base; by default the repo on the Hub that the chain records.
        steps: which steps to take, as of :func:`ckptdiff.chain_prune`; by default all. At most 256 patches may lead through them.
        as_dtype: cast base and steps while they are read, as in :func:`ckptdiff.report`.
        atol: count an element as changed if |d| exceeds this; at 0, if its bits differ.
        threads: number of threads.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        CheckpointError: there is no base, no such step, too many patches, or nothing that all steps have of the base.
        BaseMismatchError: the base is another one. FormatError, UnsupportedError, IntegrityError: the chain is broken, or a patch.
        StoreError: the store cannot be read. OutputError: what is fetched, or built on the way, cannot be written.
    """
    with _open_steps(chain, base, steps, as_dtype, threads, progress) as run:
        groups, left_out = shared_pairs(run.sources)
        cast = cast_dtype(as_dtype)
        rows = counted(groups, count_steps, tensor_series, atol, ThreadWorkers(threads or default_threads()), progress)
        numbers = tuple(step.number for step in run.steps)
        return ChainReport(run.name, run.sources[0].base, atol, numbers, tuple(rows), left_out, cast)


def chain_overlap(
    chain: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    steps: Sequence[str] = (),
    as_dtype: Any = None,
    atol: float = 0.0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> OverlapResult:
    """:func:`ckptdiff.overlap` of the steps of a chain, in order. Arguments, and what is raised, are as of :func:`chain_report`."""
    with _open_steps(chain, base, steps, as_dtype, threads, progress) as run:
        workers = ThreadWorkers(threads or default_threads())
        names = tuple(f"step {step.number}" for step in run.steps)
        return replace(compare_sources(run.sources, names, atol, workers, progress), cast=cast_dtype(as_dtype))


def chain_mask(
    chain: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    steps: Sequence[str] = (),
    as_dtype: Any = None,
    atol: float = 0.0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Mask:
    """The elements that any step of a chain changes of its base: the union of the steps' masks. Arguments, and what is raised, are as of
    :func:`chain_report`, and as of :meth:`ckptdiff.Mask.from_patch`."""
    with _open_steps(chain, base, steps, as_dtype, threads, progress) as run:
        return Mask.from_sources(run.sources, atol=atol, threads=threads, progress=progress)


@dataclass(frozen=True, slots=True)
class _Run:
    """The steps of a chain, open to be read in order."""

    name: str
    steps: list[Step]
    sources: list[Source]


@contextmanager
def _open_steps(
    chain: str | os.PathLike[str],
    base: str | os.PathLike[str] | None,
    rules: Sequence[str],
    as_dtype: Any,
    threads: int | None,
    progress: Progress,
) -> Iterator[_Run]:
    history = read_history(open_store(chain))
    steps = chosen_steps(history, rules) if rules else history.steps
    if not steps:
        raise CheckpointError(f"{history.store.name}: has {history.number_text()}" + (", and none that was chosen" if rules else ""))
    base = base if base is not None else find_base(history, None, threads, progress).path
    segments = _segments(history, steps)
    names = list(dict.fromkeys(name for plan, _ in segments for name in plan))
    if len(names) > MAX_PATCHES:
        raise CheckpointError(
            f"{history.store.name}: {len(names)} patches lead through {len(steps)} steps, expected at most {MAX_PATCHES}: choose some by "
            "--steps, such as last:100"
        )
    with ExitStack() as stack:
        if history.store.path("") is None:
            work = stack.enter_context(working_in(history.store))
            paths = stack.enter_context(local_patches(history, names, work, progress))
        else:
            paths = [path for path in (history.store.path(name.key) for name in names) if path is not None]
        places = dict(zip(names, paths, strict=True))
        chains = [Segment([places[name] for name in plan], wanted) for plan, wanted in segments]
        yield _Run(history.store.name, steps, stack.enter_context(open_series(base, chains, as_dtype)))


def _segments(history: History, steps: Sequence[Step]) -> list[tuple[list[PatchName], list[tuple[int, str]]]]:
    """The patches that lead through some steps: on from the one before, or anew from the base where that takes fewer, or is the only way.

    Raises:
        FormatError: a step is out of reach.
    """
    segments: list[tuple[list[PatchName], list[tuple[int, str]]]] = []
    before: int | None = None
    for step in steps:
        at = history.find(step.number)
        assert at is not None
        direct, more = history.plan(at), None if before is None else history.plan(at, before)
        if more is None or (direct is not None and len(direct) < len(more)):
            segments.append((plan_of(history, at, None), []))
        else:
            segments[-1][0].extend(more)
        segments[-1][1].append((len(segments[-1][0]) - 1, f"step {step.number}"))
        before = at
    return segments

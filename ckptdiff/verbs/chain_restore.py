"""``chain restore`` rebuilds a step of a chain (spec/chain-v1.md, 5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ckptdiff.chain.history import read_history
from ckptdiff.chain.retention import find_step
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.places import Place, place_of
from ckptdiff.io.store_urls import open_store
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.verbs.chain_parts import Noted, apply_plan, find_base, not_noted, plan_of, work_beside


@dataclass(frozen=True, slots=True)
class ChainRestoreResult:
    """The result of :func:`chain_restore`."""

    out: Place
    """The folder or file that was written."""
    step: int
    start: int | None
    """The step that the base is; None for the base of the chain."""
    patches: tuple[str, ...]
    """Names of the patches that were applied, in order."""
    files: tuple[str, ...]
    size: int
    """Bytes of all files."""
    seconds: float
    """Wall time."""


def chain_restore(
    chain: str | os.PathLike[str],
    step: int,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    noted: Noted = not_noted,
    listed: Callable[[list[str]], None] = lambda paths: None,
) -> ChainRestoreResult:
    """Rebuild the checkpoint of a step, byte for byte: from the base, the nearest keyframe, and the patches after that.

    Args:
        chain: a folder, or a URL that fsspec knows.
        step: the step's number.
        out: the file or folder to write.
        base: the chain's base, or the checkpoint of any earlier step; by default the repo on the Hub that the chain records.
        threads: number of threads.
        overwrite: replace an existing ``out``.
        progress: called with what is being done, how much is done, and how much there is.
        noted: called with a line about what is unusual.
        listed: called before anything is written with the paths of the files, beside the weights, that the last patch adds or changes.

    Raises:
        CheckpointError: there is no such step, or no base. BaseMismatchError: the base is another one.
        FormatError, UnsupportedError, IntegrityError: the chain is broken, or a patch.
        StoreError: the store cannot be read. OutputError: ``out`` cannot be written.
    """
    watch, history = Stopwatch(), read_history(open_store(chain))
    at, out = find_step(history, step), place_of(out)
    known = find_base(history, base, threads, progress, at)
    if known.start is not None:
        noted(f"starts at step {history.steps[known.start].number}, which {known.path} is")
    plan = plan_of(history, at, known.start)
    with work_beside(history, plan, out) as work:
        done = apply_plan(history, plan, known.path, out, work, threads, progress, overwrite=overwrite, listed=listed, noted=noted)
    start = None if known.start is None else history.steps[known.start].number
    keys = tuple(name.key for name in plan)
    return ChainRestoreResult(done.out, step, start, keys, done.files, done.size, watch.seconds())

"""``chain prune`` removes steps of a chain, and leaves those that stay within reach (spec/chain-v1.md, 7)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ckptdiff.chain.history import History, read_history
from ckptdiff.chain.names import PatchName
from ckptdiff.chain.retention import Retention, kept_steps, plan_retention
from ckptdiff.chain.writer import ChainWriter
from ckptdiff.errors import BaseMismatchError, CheckpointError
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.store_urls import open_store
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.verbs.chain_parts import KnownBase, Noted, find_base, not_noted, working_in, write_keyframe


@dataclass(frozen=True, slots=True)
class ChainPruneResult:
    """The result of :func:`chain_prune`. Sizes are in bytes."""

    chain: str
    dry_run: bool
    """Whether nothing was done."""
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    """Numbers of the steps that stay, and of those that go."""
    keyframes: tuple[str, ...]
    """Names of the keyframes that were written, since a step that stays needs them."""
    removed: tuple[str, ...]
    """Names of the patches that went."""
    removed_size: int
    written_size: int
    """Bytes of those keyframes; 0 in a dry run, which does not make them."""
    seconds: float
    """Wall time."""


def chain_prune(
    chain: str | os.PathLike[str],
    keep: str | Sequence[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
    noted: Noted = not_noted,
) -> ChainPruneResult:
    """Remove all steps of a chain but some, and what is torn or does not count. The last step always stays.

    A step that stays, though the one before it goes, gets a keyframe first: it is rebuilt beside the chain, compared with the base, and the
    patch is checked against both. A publisher that is at work on the chain is shut out.

    Args:
        chain: a folder, or a URL that fsspec knows.
        keep: which steps stay: one or more of ``N``, ``A-B``, ``last:N`` and ``every:N`` (steps that N divides).
        base: the chain's base, which new keyframes are made from; by default the repo on the Hub that the chain records.
        dry_run: only tell what would be written and removed.
        threads: number of threads.
        progress: called with what is being done, how much is done, and how much there is.
        noted: called with a line about what takes long.

    Raises:
        CheckpointError: ``keep`` says no steps, or one that is out of reach, or a base is needed. BaseMismatchError: it is another one.
        OutputError: another publisher has taken over. StoreError: the store fails. FormatError, IntegrityError: the chain is broken.
    """
    watch, store = Stopwatch(), open_store(chain)
    rules = [keep] if isinstance(keep, str) else list(keep)
    history = read_history(store)
    retention = plan_retention(history, kept_steps(history, rules))
    removed_size, written_size = sum(map(history.size, retention.removed)), 0
    if not dry_run:
        known = _known_base(history, retention, base, threads, progress)
        publisher = ChainWriter.take_over(store, history.chain)
        history = read_history(store)
        retention = plan_retention(history, kept_steps(history, rules))  # again, as steps may have come since
        for name in history.torn:  # a keyframe that a killed run left may be in the way
            publisher.remove(history.objects(name), name.marker)
        if retention.keyframes:
            known = known or _known_base(history, retention, base, threads, progress)
            assert known is not None
            with working_in(store) as work:
                for name in retention.keyframes:
                    noted(f"rebuilding step {name.step} in {work}, for the keyframe that it needs")
                    written_size += write_keyframe(history, publisher, name, known.path, work, threads, progress)
        removed_size = _remove(history, publisher, retention.removed)
    return ChainPruneResult(
        chain=store.name,
        dry_run=dry_run,
        kept=tuple(retention.kept),
        dropped=tuple(retention.dropped),
        keyframes=tuple(name.key for name in retention.keyframes),
        removed=tuple(name.key for name in retention.removed),
        removed_size=removed_size,
        written_size=written_size,
        seconds=watch.seconds(),
    )


def _known_base(
    history: History, retention: Retention, base: str | os.PathLike[str] | None, threads: int | None, progress: Progress
) -> KnownBase | None:
    """The chain's own base, which keyframes are made from; None if none is needed."""
    if not retention.keyframes:
        return None
    steps = ", ".join(str(name.step) for name in retention.keyframes[:10])
    try:
        known = find_base(history, base, threads, progress)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: it takes keyframes to keep step {steps} without the steps before") from None
    if known.start is not None:
        number = history.steps[known.start].number
        raise BaseMismatchError(f"{base}: is step {number} of the chain, not its base, which keyframes (of step {steps}) are made from")
    return known


def _remove(history: History, publisher: ChainWriter, names: Sequence[PatchName]) -> int:
    """Remove patches and the documents of earlier epochs; returns the bytes of the patches."""
    publisher.check_alone()
    for name in names:
        publisher.remove(history.objects(name), name.marker)
    publisher.remove_epochs()
    return sum(map(history.size, names))

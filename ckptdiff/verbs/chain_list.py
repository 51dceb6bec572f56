"""``chain list`` shows the steps of a chain."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from ckptdiff.chain.contents import facts_of
from ckptdiff.chain.history import History, Step, foreign_objects, read_history
from ckptdiff.io.parallel import Progress, no_progress, run_ordered
from ckptdiff.io.store_urls import open_store

REQUESTS = 16
"""Patches whose beginnings are read at once: most of the time passes while a store elsewhere answers."""


@dataclass(frozen=True, slots=True)
class ListedStep:
    """A step of a chain. Sizes are in bytes."""

    step: int
    kind: str
    """``step``, ``keyframe``, or ``step + keyframe``."""
    patch_size: int
    """0 if there is a keyframe alone."""
    keyframe_size: int
    """0 if there is none."""
    changed: int
    units: int
    """Units that differ from the step before (or, of a keyframe alone, from the base), of how many (spec 4)."""
    patches: int | None
    """How many patches rebuild it from the base; None if it is out of reach."""
    identity: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ChainListing:
    """The result of :func:`chain_list`. Identities are in hexadecimal."""

    chain: str
    base_identity: str
    base_repo: str | None
    base_step: int | None
    keyframe_every: int
    codec: str | None
    epoch: int
    """How many publishers there have been."""
    steps: tuple[ListedStep, ...]
    size: int
    """Bytes of all patches, those that do not count included."""
    torn: tuple[str, ...]
    """Names of patches that are not complete: their publisher was killed, or is at work."""
    superseded: tuple[str, ...]
    """Names of patches that do not count, since a later publisher had gone on from an earlier step."""
    foreign: tuple[str, ...]
    """Names of what does not belong to the chain."""


def chain_list(chain: str | os.PathLike[str], *, progress: Progress = no_progress) -> ChainListing:
    """List the steps of a chain, with what the beginning of each patch says.

    Args:
        chain: a folder, or a URL that fsspec knows.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        FormatError, UnsupportedError, IntegrityError: the chain is broken, or a patch. StoreError: the store cannot be read.
    """
    history = read_history(open_store(chain))
    jobs: list[Callable[[], ListedStep]] = [partial(_row, history, at, step) for at, step in enumerate(history.steps)]
    rows: list[ListedStep] = []
    with closing(run_ordered(jobs, REQUESTS)) as results:
        for row in results:
            rows.append(row)
            progress("reading steps", len(rows), len(jobs))
    return ChainListing(
        chain=history.store.name,
        base_identity=history.chain.base_identity.hex(),
        base_repo=history.chain.base_repo,
        base_step=history.chain.base_step,
        keyframe_every=history.chain.keyframe_every,
        codec=history.chain.codec,
        epoch=history.epoch,
        steps=tuple(rows),
        size=sum(history.sizes.values()),
        torn=tuple(name.key for name in history.torn),
        superseded=tuple(name.key for name in history.superseded),
        foreign=tuple(foreign_objects(history)),
    )


def _row(history: History, at: int, step: Step) -> ListedStep:
    facts, plan = facts_of(history.store, step.name), history.plan(at)
    kinds = [kind for kind, name in (("step", step.patch), ("keyframe", step.keyframe)) if name is not None]
    return ListedStep(
        step=step.number,
        kind=" + ".join(kinds),
        patch_size=history.size(step.patch) if step.patch else 0,
        keyframe_size=history.size(step.keyframe) if step.keyframe else 0,
        changed=facts.totals.changed,
        units=facts.totals.units,
        patches=None if plan is None else len(plan),
        identity=facts.target_identity.hex(),
        epoch=step.name.epoch,
    )

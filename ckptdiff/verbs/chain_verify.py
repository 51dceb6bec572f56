"""``chain verify`` finds problems of a chain. It writes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckptdiff.chain.contents import Facts, facts_of, local_patches
from ckptdiff.chain.documents import check_epoch, read_head
from ckptdiff.chain.history import History, Step, foreign_objects, read_history
from ckptdiff.chain.names import PatchName
from ckptdiff.errors import CkptdiffError, StoreError
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.store_urls import open_store
from ckptdiff.verbs.chain_parts import working_in
from ckptdiff.verbs.verify import Problem, verify


@dataclass(frozen=True, slots=True)
class ChainVerifyResult:
    """The result of :func:`chain_verify`."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    """What does no harm: torn and superseded patches, foreign objects, a hint that is behind."""
    steps: int
    """Number of steps."""
    patches: int
    """Number of patches that were checked."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def chain_verify(chain: str | os.PathLike[str], *, threads: int | None = None, progress: Progress = no_progress) -> ChainVerifyResult:
    """Check every patch of a chain as :func:`ckptdiff.verify` does without a base, that each follows from the one before it by its whole
    identity, and that the base and keyframes lead to every step. Patches of a store elsewhere are fetched one at a time.

    Args:
        chain: a folder, or a URL that fsspec knows.
        threads: number of threads.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        StoreError: the store cannot be read. OutputError: what is fetched cannot be written.
    """
    store = open_store(chain)
    try:
        history = read_history(store)
    except StoreError:
        raise
    except CkptdiffError as error:  # nothing more can be told
        return ChainVerifyResult((Problem(error.kind, str(error)),), (), 0, 0)
    problems, notes = _document_problems(history)
    before, patches = history.chain.base_identity, 0
    for at, step in enumerate(history.steps):
        found = list[Problem]()
        for name in (step.patch, step.keyframe):
            if name is not None:
                found += _patch_problems(history, name, threads)
                patches += 1
        if history.plan(at) is None:
            found.append(Problem("format", f"{store.name}: step {step.number} is out of reach: what it follows from is missing"))
        before = _check_identities(history, step, before, found)
        problems += found
        progress("checking steps", at + 1, len(history.steps))
    notes += [f"{name.key} is torn: its publisher was killed, or is at work" for name in history.torn]
    notes += [f"{name.key} does not count: a later publisher went on from an earlier step" for name in history.superseded]
    notes += [f"{key} does not belong to the chain" for key in foreign_objects(history)]
    return ChainVerifyResult(tuple(problems), tuple(notes), len(history.steps), patches)


def _document_problems(history: History) -> tuple[list[Problem], list[str]]:
    """Problems of the epoch's document and of the hint; and a note if the hint is behind."""
    problems, notes, head, where = list[Problem](), list[str](), None, history.store.name
    try:
        if history.epoch:
            check_epoch(history.store, history.chain, history.epoch)
        head = read_head(history.store, history.chain)
    except CkptdiffError as error:
        problems.append(Problem(error.kind, str(error)))
    last = history.steps[-1].number if history.steps else None
    if head is not None and (last is None or head.step > last):
        problems.append(Problem("format", f"{where}/HEAD.json: names step {head.step}, but the chain has {history.number_text()}"))
    elif head is not None and head.step != last:
        notes.append(f"HEAD.json names step {head.step}, but the last one is {last}: the next chain add mends that")
    return problems, notes


def _patch_problems(history: History, name: PatchName, threads: int | None) -> list[Problem]:
    try:
        local = history.store.path(name.key)  # a chain that may not be written to can be verified
        if local is not None:
            return list(verify(local, threads=threads).problems)
        with working_in(history.store) as work, local_patches(history, [name], work, no_progress) as (path,):
            return list(verify(path, threads=threads).problems)
    except CkptdiffError as error:
        return [Problem(error.kind, str(error))]


def _check_identities(history: History, step: Step, before: bytes, problems: list[Problem]) -> bytes:
    """Compare the whole identities that a step's patches state with each other and with the step before; returns its own."""
    facts = dict[PatchName, Facts]()
    try:
        facts = {name: facts_of(history.store, name) for name in (step.patch, step.keyframe) if name is not None}
    except CkptdiffError as error:
        if not problems:  # else the same fault was found already
            problems.append(Problem(error.kind, str(error)))
    for name, found in facts.items():
        start = (
            before if name is step.patch and step.follows else history.chain.base_identity if name.parent is None else found.base_identity
        )
        if found.base_identity != start:
            text = f"{history.store.name}/{name.key}: was made from {found.base_identity.hex()}, expected {start.hex()}"
            problems.append(Problem("wrong_base", text))
    targets = {found.target_identity for found in facts.values()}
    if len(targets) > 1:
        problems.append(
            Problem("integrity", f"{history.store.name}: step {step.number}: its patch and its keyframe give different checkpoints")
        )
    return min(targets, default=b"")

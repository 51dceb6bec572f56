"""How to get from a state to a step of a chain: which patches lead there, fetched, checked, and put together where they can be."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ckptdiff.chain.contents import facts_of, local_patches, places_of
from ckptdiff.chain.documents import ChainDocument, Head, read_head
from ckptdiff.chain.history import History, read_history
from ckptdiff.chain.names import DIGITS, PatchName
from ckptdiff.chain.writer import highest_epoch
from ckptdiff.errors import BaseMismatchError, FormatError, IntegrityError, UnsupportedError
from ckptdiff.io.parallel import no_progress
from ckptdiff.io.store import Store, read_object
from ckptdiff.io.work_folder import work_folder
from ckptdiff.live.patch import Patch, compose_in_memory
from ckptdiff.patching.chain import check_order
from ckptdiff.patching.patch_limits import MAX_ALL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A step of a chain of states. Sizes are in bytes; they and the counts are 0 where it was read from the chain, not published."""

    step: int
    identity: str
    """Identity (:func:`ckptdiff.identity`) of the state, in hexadecimal."""
    epoch: int
    """Which publisher wrote it."""
    parent: int | None = None
    """The step that its patch starts from; None: the base."""
    patch_size: int = 0
    keyframe_size: int = 0
    """0 if no keyframe was written."""
    changed: int = 0
    units: int = 0
    """Units that differ from the step before, of how many (spec section 4)."""
    timings: dict[str, float] = field(default_factory=dict, compare=False)
    """Seconds: ``encode``, ``keyframe``, ``write`` and ``head``."""


def latest(store: Store, chain: ChainDocument, known: int | None = None) -> Version | None:
    """The last step, by ``HEAD.json`` if it is of the publisher who has taken over last, else by a listing; None if there is none.

    ``known``: a step that was met already; a hint at one before it was written before its publisher was killed, and is not followed.

    Raises:
        FormatError, IntegrityError: the chain is broken. StoreError: it cannot be read.
    """
    head = newest_head(store, chain)
    if head is not None and known is not None and head.step < known:
        head = None
    return last_of(read_history(store)) if head is None else Version(step=head.step, identity=head.identity.hex(), epoch=head.epoch)


def newest_head(store: Store, chain: ChainDocument) -> Head | None:
    """``HEAD.json``, if it is whole and of the highest epoch; None if only a listing tells the last step."""
    try:
        head = read_head(store, chain)
    except (FormatError, IntegrityError, UnsupportedError):  # it is a hint
        return None
    return head if head is not None and head.epoch == highest_epoch(store) else None


def last_of(history: History) -> Version | None:
    """The last step of a history; None if it has none."""
    if not history.steps:
        return None
    name = history.steps[-1].name
    return Version(step=name.step, identity=facts_of(history.store, name).target_identity.hex(), epoch=name.epoch, parent=name.parent)


def path_to(history: History, at: int, identity: bytes, what: str, start: int | None = None) -> list[PatchName]:
    """The patches that lead from a state to a step.

    Args:
        history: the chain's.
        at: the place of the step.
        identity: that of the state, 16 bytes: the chain's base, or an earlier step.
        what: what messages call the state.
        start: the place of the step that the state is, if it is known: several steps may have one identity.

    Raises:
        BaseMismatchError: the state is of another chain, comes after the step, or is it (of kind ``already_target``).
        FormatError: a patch that leads there is missing.
    """
    where, step = history.store.name, history.steps[at]
    is_base = identity == history.chain.base_identity
    plan = history.plan(at) if is_base and start is None else None
    if plan is None:
        start = place_of(history, identity, at, what) if start is None else start
        if start is not None and start >= at:
            how = "already: there is nothing to do" if start == at else f"which comes after step {step.number}: start from the chain's base"
            kind: Kind = "already_target" if start == at else "wrong_base"
            raise BaseMismatchError(f"{what} is at step {history.steps[start].number} of {where}, {how}", kind)
        plan = history.plan(at, start) or (history.plan(at) if is_base else None)
    if plan is None:
        raise FormatError(f"{where}: step {step.number} is out of reach: {history.gap_text(at)}: start from the chain's base")
    return plan


Kind = Literal["wrong_base", "already_target"]


def place_of(history: History, identity: bytes, at: int, what: str) -> int | None:
    """The place of the last step, up to that at a place if there is one, that has an identity; None for the base.

    Raises:
        BaseMismatchError: there is none.
    """
    places = places_of(history, identity)
    if not places and identity != history.chain.base_identity:
        raise BaseMismatchError(
            f"{what} is not of the chain {history.store.name}: its identity is {identity.hex()}, expected "
            f"{history.chain.base_identity.hex()}, that of the chain's base, or that of a step; was its step withdrawn? Start from the "
            "chain's base"
        )
    early = [k for k in places if k <= at]
    if early or identity == history.chain.base_identity:
        return early[-1] if early else None
    return places[0]


def read_patches(store: Store, names: Sequence[PatchName], history: History | None, stack: ExitStack) -> list[Patch]:
    """Fetch patches, and check all of them; what has to be kept in files is there until the stack is closed.

    Args:
        store: the chain's.
        names: the patches, in order.
        history: the chain's, which patch folders need.
        stack: takes what has to be closed.

    Raises:
        FormatError, UnsupportedError, IntegrityError: a patch is broken, or another one than its name says. StoreError: it cannot be read.
    """
    folders = [name for name in names if not name.is_file]
    places = dict[PatchName, Path]()
    if folders and history is not None:
        work = stack.enter_context(work_folder(Path(tempfile.gettempdir()), "ckptdiff-chain-")).path
        places = dict(zip(folders, stack.enter_context(local_patches(history, folders, work, no_progress)), strict=True))
    patches = list[Patch]()
    for name in names:
        if name in places:
            patch = stack.enter_context(Patch.open(places[name]))
        else:
            data = read_object(store, name.key, MAX_ALL_BYTES)
            patch = Patch.from_bytes(data or b"", f"{store.name}/{name.key}")
        if (patch.base_identity[:DIGITS], patch.target_identity[:DIGITS]) != (name.base, name.target):
            raise IntegrityError(f"{store.name}/{name.key}: holds another patch than its name says: fetch the chain again")
        patches.append(patch)
    check_order([patch.opened for patch in patches])
    return patches


def put_together(patches: Sequence[Patch], threads: int) -> list[Patch]:
    """One patch that does what several do, where ``sparse`` codes them all; else the same ones."""
    if len(patches) < 2 or any(patch.opened.index is not None or not is_sparse(patch) for patch in patches):
        return list(patches)
    try:
        return [compose_in_memory(patches, threads=threads, copies=False)]
    except UnsupportedError:  # a patch of another kind of chain: tensors that are new, moved or copied
        return list(patches)


def is_sparse(patch: Patch) -> bool:
    """Whether ``sparse`` codes all that a patch has."""
    return all(entry.codec in ("sparse", None) for _, entry in patch.opened.entries.values())

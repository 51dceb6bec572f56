"""What the verbs of chains share: which base was given, steps rebuilt, patches that are checked as they are made, work folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.chain.contents import facts_of, local_patches, places_of
from ckptdiff.chain.history import History
from ckptdiff.chain.names import PatchName
from ckptdiff.chain.writer import ChainWriter
from ckptdiff.errors import BaseMismatchError, CheckpointError, FormatError, IntegrityError
from ckptdiff.io.leftovers import WORK_PREFIX
from ckptdiff.io.parallel import Progress, default_threads
from ckptdiff.io.places import Place
from ckptdiff.io.store import Store
from ckptdiff.io.work_folder import discard, work_folder
from ckptdiff.live.identity import identity_of_files
from ckptdiff.patching.output import explain_write_errors
from ckptdiff.patching.patch import open_patch
from ckptdiff.verbs.apply import ApplyResult, apply
from ckptdiff.verbs.make import make
from ckptdiff.verbs.verify import verify

Noted = Callable[[str], None]
"""Takes a line about something unusual, or that takes long."""


def not_noted(text: str) -> None:
    """A :data:`Noted` that ignores what it is told: the default."""


@dataclass(frozen=True, slots=True)
class KnownBase:
    """A checkpoint that steps of a chain can be rebuilt from."""

    path: str
    """Its path, or its id on the Hub."""
    start: int | None
    """The place of the step that it is; None for the base of the chain."""


def find_base(
    history: History, base: str | os.PathLike[str] | None, threads: int | None, progress: Progress, at: int | None = None
) -> KnownBase:
    """Find out which checkpoint of a chain one is, by its identity, for which all of it is read.

    Args:
        history: the chain's.
        base: the checkpoint; None for the repo that the chain records, which :func:`~ckptdiff.verbs.apply.apply` checks.
        threads: number of threads.
        progress: as of all verbs.
        at: the place of the step that will be rebuilt; of several steps with one identity the last up to it is taken.

    Raises:
        CheckpointError: none is given, and none is recorded. BaseMismatchError: it is of another chain, or comes after that step.
    """
    where, chain = history.store.name, history.chain
    if base is None:
        if chain.base_repo is None:
            identity = chain.base_identity.hex()
            raise CheckpointError(f"{where}: does not record where its base is: give it with --base (its identity is {identity})")
        return KnownBase(chain.base_repo, None)
    found = identity_of_files(base, threads or default_threads(), progress)
    if found == chain.base_identity:
        return KnownBase(os.fspath(base), None)
    places = places_of(history, found)
    if not places:
        raise BaseMismatchError(
            f"{base}: is not of the chain {where}: its identity is {found.hex()}, expected {chain.base_identity.hex()}, that of the "
            "chain's base, or that of a step"
        )
    early = [k for k in places if at is None or k <= at]
    if not early and at is not None:
        raise BaseMismatchError(
            f"{base}: is step {history.steps[places[0]].number} of {where}, which comes after step {history.steps[at].number}: give the "
            "chain's base, or an earlier step"
        )
    return KnownBase(os.fspath(base), early[-1])


def plan_of(history: History, at: int, start: int | None) -> list[PatchName]:
    """The patches that rebuild a step, as :meth:`ckptdiff.chain.history.History.plan` finds them.

    Raises:
        FormatError: one of them is missing.
    """
    where, plan, direct = f"{history.store.name}: step {history.steps[at].number}", history.plan(at, start), history.plan(at)
    other = f": give the chain's base, from which it takes {len(direct)}" if start is not None and direct is not None else ""
    if plan is None:
        raise FormatError(f"{where}: is out of reach: {history.gap_text(at)}{other}")
    return plan


def apply_plan(
    history: History,
    plan: list[PatchName],
    base: str,
    out: Place,
    work: Path,
    threads: int | None,
    progress: Progress,
    *,
    overwrite: bool = False,
    listed: Callable[[list[str]], None] = lambda paths: None,
    noted: Noted = not_noted,
) -> ApplyResult:
    """Rebuild a checkpoint from a base and patches of a chain, which are fetched into ``work`` if they lie elsewhere."""
    if not plan:
        raise CheckpointError(f"{base}: is that step itself: copy it")
    with explain_write_errors(out), local_patches(history, plan, work, progress) as patches:
        return apply(base, patches, out, threads=threads, overwrite=overwrite, progress=progress, listed=listed, noted=noted)


@contextmanager
def work_beside(history: History, plan: list[PatchName], out: Place) -> Iterator[Path]:
    """A folder on an output's disk to fetch patches into: one for the work of this run, or where none is fetched the output's own. For an
    output in a store it is a folder for temporary files.

    Raises:
        OutputError: it cannot be made.
    """
    parent = out.absolute().parent if isinstance(out, Path) else Path(tempfile.gettempdir())
    if not plan or history.store.path(plan[0].key) is not None:
        yield parent
        return
    with explain_write_errors(out), work_folder(parent, WORK_PREFIX) as work:
        yield work.path


@contextmanager
def working_in(store: Store) -> Iterator[Path]:
    """A work folder: in the chain's own folder, or for a chain elsewhere in the folder for temporary files (``TMPDIR``).

    Raises:
        OutputError: it cannot be made.
    """
    place = store.path("") or Path(tempfile.gettempdir())
    with explain_write_errors(place), work_folder(place, WORK_PREFIX) as work:
        yield work.path


@dataclass(frozen=True, slots=True)
class CheckedPatch:
    """A patch that was made, and gives its target."""

    base: bytes
    target: bytes
    """Identities, 16 bytes each."""
    is_file: bool
    """Whether it is a patch file, not a folder."""


def make_checked(base: str, target: str, out: Path, codec: str | None, threads: int | None, progress: Progress) -> CheckedPatch:
    """Make a patch in the place of any other, and check it against both checkpoints: changes by digests, files by SHA-256.

    Raises:
        IntegrityError: it does not give its target; and as :func:`~ckptdiff.verbs.make.make`.
    """
    discard(out)
    make(base, target, out, codec=codec, threads=threads, progress=progress)
    found = verify(out, base=base, target=target, threads=threads, progress=progress)
    if not found.ok:
        raise IntegrityError(f"the patch of {target} was made, but does not give it: {found.problems[0].message}")
    with open_patch(out) as patch:
        return CheckedPatch(patch.base_identity, patch.target_identity, patch.index is None)


def write_keyframe(
    history: History, publisher: ChainWriter, name: PatchName, base: str, work: Path, threads: int | None, progress: Progress
) -> int:
    """Rebuild a step from the chain's base, make its keyframe, check it against both, and put it under a name; returns its bytes.

    Raises:
        IntegrityError: it does not give the step. Others as :func:`apply_plan` and :func:`make_checked`; StoreError: it cannot be put.
    """
    at = history.find(name.step)
    assert at is not None
    place = work / f"keyframe-{name.step}"
    place.mkdir()
    target, patch = place / "step", place / "keyframe"
    apply_plan(history, plan_of(history, at, None), base, target, place, threads, progress)
    made = make_checked(base, str(target), patch, history.chain.codec, threads, progress)
    if made.target != facts_of(history.store, history.steps[at].name).target_identity:
        raise IntegrityError(f"{history.store.name}: the keyframe of step {name.step} gives {made.target.hex()}, which is not that step")
    sizes = publisher.put(name, patch)
    publisher.check_stored(name, patch)
    discard(place)
    return sum(sizes.values())

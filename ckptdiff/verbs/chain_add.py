"""``chain add`` puts checkpoints into a chain, which is made if there is none (spec/chain-v1.md, 6)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdiff.chain.contents import facts_of, local_patches, open_stored
from ckptdiff.chain.creation import KEYFRAME_EVERY, Policy, check_policy, new_chain
from ckptdiff.chain.documents import ChainDocument, Head, read_chain
from ckptdiff.chain.history import BEFORE_ALL, History, Step, read_history
from ckptdiff.chain.names import DIGITS, MAX_STEP, NamedStep, PatchName, in_natural_order
from ckptdiff.chain.originals import StoredFile, check_same, remove, stored_files
from ckptdiff.chain.writer import ChainWriter
from ckptdiff.checkpoint.recognition import check_exists
from ckptdiff.errors import BaseMismatchError, CheckpointError, IntegrityError
from ckptdiff.hub.ids import parse_id
from ckptdiff.io.parallel import Progress, default_threads, no_progress
from ckptdiff.io.store import Store
from ckptdiff.io.store_urls import open_store
from ckptdiff.io.work_folder import discard
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.live.identity import identity_of_files
from ckptdiff.patching.patch import open_patch
from ckptdiff.verbs.chain_parts import KnownBase, Noted, apply_plan, find_base, make_checked, not_noted, plan_of, working_in, write_keyframe
from ckptdiff.verbs.verify import verify


@dataclass(frozen=True, slots=True)
class AddedStep:
    """A checkpoint that was given. Sizes are in bytes."""

    step: int
    checkpoint: str
    state: str
    """``base``, ``added``, or ``present``: the chain had it already."""
    identity: str
    """In hexadecimal."""
    target_size: int = 0
    patch_size: int = 0
    keyframe_size: int = 0
    """0 if no keyframe was due."""
    changed: int = 0
    units: int = 0
    """Units that differ from the step before, of how many (spec 4)."""
    removed: int = 0
    """How many of its files were removed."""


@dataclass(frozen=True, slots=True)
class ChainAddResult:
    """The result of :func:`chain_add`."""

    chain: str
    steps: tuple[AddedStep, ...]
    created: bool
    """Whether the chain is new."""
    seconds: float
    """Wall time."""


def chain_add(
    chain: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    step: int | None = None,
    keyframe_every: int | None = None,
    codec: str | None = None,
    remove_originals: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
    noted: Noted = not_noted,
) -> ChainAddResult:
    """Put checkpoints into a chain, each as a patch of the one before. A chain that does not exist is made.

    Each patch is checked against both checkpoints before it goes in. A step is in the chain once it is whole there; a run that was killed
    is completed by the same call. A publisher that is at work on the chain is shut out.

    Args:
        chain: a folder, or a URL that fsspec knows.
        checkpoints: one or more, which are taken in the order of the steps that their names state (``checkpoint-100`` is step 100).
        base: the chain's base. A new chain without it takes the first checkpoint, which is not copied. For a chain that exists it is needed
            where a keyframe is due, or the last step is not among the checkpoints; and the checkpoint of a step may be given in its place.
        step: the number of the step, for one checkpoint.
        keyframe_every: the most patches that a step takes (1 to 64; 50), and ``codec``, that of every patch (the smallest): of a new
            chain; one that exists must have the same.
        codec: see there.
        remove_originals: remove the files of each checkpoint but the base, once they are in the chain, and were read back and compared.
            Files that are not in it, such as optimizer state, stay.
        threads: number of threads.
        progress: called with what is being done, how much is done, and how much there is.
        noted: called with a line about what takes long.

    Raises:
        CheckpointError: a checkpoint cannot be read, its step is not above those of the chain, or a base is needed.
        BaseMismatchError: the base, or a checkpoint, is of another chain. IntegrityError: a step has other files in the chain.
        OutputError: another publisher has taken over. StoreError: the store fails. FormatError: the chain is broken.
    """
    watch, store = Stopwatch(), open_store(chain)
    given = [checkpoints] if isinstance(checkpoints, (str, os.PathLike)) else list(checkpoints)
    steps = _numbered([os.fspath(path) for path in given], step)
    check_policy(keyframe_every, codec)
    if not steps:
        raise CheckpointError("no checkpoint to add: expected one or more")
    for named in () if remove_originals else steps:  # before anything is done; an earlier run may have removed some
        check_exists(named.path)
    document = read_chain(store)
    created = document is None
    if document is None:
        own = steps[0] if base is None else next((named for named in steps if _is_same_path(named.path, base)), None)
        policy = Policy(codec, keyframe_every or KEYFRAME_EVERY)
        document = new_chain(store, steps[0].path if base is None else base, own and own.step, policy, threads, progress)
    elif (keyframe_every or document.keyframe_every, codec or document.codec) != (document.keyframe_every, document.codec):
        raise CheckpointError(
            f"{store.name}: was made with --keyframe-every {document.keyframe_every} and --codec {document.codec or 'auto'}, which stay"
        )
    with working_in(store) as work:
        adder = _Adder(store, document, work, threads, progress, noted, remove_originals)
        added = adder.run(steps, base)
    return ChainAddResult(store.name, tuple(added), created, watch.seconds())


def _numbered(paths: list[str], step: int | None) -> list[NamedStep]:
    """The checkpoints with their steps, in order."""
    if step is None:
        return in_natural_order(paths)
    if len(paths) != 1 or not 0 <= step <= MAX_STEP:
        raise CheckpointError(f"--step {step}: expected 0 to {MAX_STEP}, for one checkpoint, found {len(paths)}")
    return [NamedStep(step, "", paths[0])]


@dataclass(slots=True)
class _Adder:
    """A run of :func:`chain_add`."""

    store: Store
    chain: ChainDocument
    work: Path
    threads: int | None
    progress: Progress
    noted: Noted
    remove_originals: bool
    base: KnownBase | None = None
    last: tuple[int, str] | None = None
    """The last step that is known to be in the chain, and its checkpoint."""
    publisher: ChainWriter = field(init=False)
    history: History = field(init=False)

    def run(self, steps: Sequence[NamedStep], base: str | os.PathLike[str] | None) -> list[AddedStep]:
        self.publisher = ChainWriter.take_over(self.store, self.chain)
        self.history = read_history(self.store)
        if base is not None:
            self.base = find_base(self.history, base, self.threads, self.progress)
        added, before = list[AddedStep](), list[tuple[int, list[StoredFile]]]()
        for named in steps:
            row, files = self._take(named)
            added.append(row)
            self._remove(added, before)  # those before it, which it was made from
            if row.state != "base":
                before.append((len(added) - 1, files))
        self._remove(added, before)
        if self.history.steps and not any(row.state == "added" for row in added):  # a run that was killed may have left an older head
            head = self.history.steps[-1]
            self._put_head(head, facts_of(self.store, head.name).target_identity)
        for name in filter(self.history.is_outdated, self.history.torn):
            self.publisher.remove(self.history.objects(name), name.marker)
        self.publisher.remove_epochs()
        return added

    def _take(self, named: NamedStep) -> tuple[AddedStep, list[StoredFile]]:
        """Put a checkpoint into the chain, unless it is there; returns the files that the chain has of it too."""
        own, at = self.chain.base_step, self.history.find(named.step)
        if named.step == own:
            return self._take_base(named), []
        if self.remove_originals and not os.path.exists(named.path):
            return self._take_removed(named, at), []
        check_exists(named.path)
        if at is not None:
            return self._take_present(named, self.history.steps[at])
        highest = self.history.steps[-1].number if self.history.steps else BEFORE_ALL if own is None else own
        if named.step < highest:
            raise CheckpointError(
                f"{named.path}: step {named.step} comes before step {highest}, the last of {self.store.name}, which only grows at its end"
            )
        return self._add(named)

    def _take_base(self, named: NamedStep) -> AddedStep:
        found = identity_of_files(named.path, self.threads or default_threads(), self.progress)
        if found != self.chain.base_identity:
            raise BaseMismatchError(
                f"{named.path}: has the identity {found.hex()}, but step {named.step} of {self.store.name} is its base, "
                f"{self.chain.base_identity.hex()}: is it of another run?"
            )
        self.base = self.base or KnownBase(named.path, None)
        return AddedStep(named.step, named.path, "base", found.hex())

    def _take_removed(self, named: NamedStep, at: int | None) -> AddedStep:
        """A checkpoint that is not there, as an earlier run has removed all of it."""
        if at is None:
            check_exists(named.path)
            raise CheckpointError(f"{named.path}: is on the Hub, from where nothing is removed: leave out --remove-originals")
        identity = facts_of(self.store, self.history.steps[at].name).target_identity
        return AddedStep(named.step, named.path, "present", identity.hex())

    def _take_present(self, named: NamedStep, step: Step) -> tuple[AddedStep, list[StoredFile]]:
        """A step that the chain has: the checkpoint must have its files, or what a removal left of them."""
        what = f"step {named.step} of {self.store.name}"
        with open_stored(self.store, step.name) as patch:
            files, identity = stored_files(patch), patch.target_identity
        if parse_id(named.path) is not None:
            if identity_of_files(named.path, self.threads or default_threads(), self.progress) != identity:
                raise IntegrityError(f"{named.path}: is not the checkpoint that {what} has: a chain keeps one checkpoint a step")
            self.last = (named.step, named.path)
        elif check_same(Path(named.path), files, what):
            self.last = (named.step, named.path)
        if self.remove_originals and any(os.path.lexists(Path(named.path, file.path)) for file in files):
            # the run that put it may have been killed before it had read it back
            with local_patches(self.history, [step.name], self.work, self.progress) as (patch_path,):
                found = verify(patch_path, threads=self.threads, progress=self.progress)
            if not found.ok:
                raise IntegrityError(f"{what} is damaged, so that {named.path} was not removed: {found.problems[0].message}")
        size = sum(file.size for file in files)
        return AddedStep(named.step, named.path, "present", identity.hex(), size), files

    def _add(self, named: NamedStep) -> tuple[AddedStep, list[StoredFile]]:
        """Make, check and put the patches of a new step."""
        self._complete_last()
        before, identity = self._before(named)
        keyframe_due = self.history.next_length > self.chain.keyframe_every
        keyframe, keyframe_path = None, self.work / "keyframe"
        if keyframe_due:
            base = self._base(f"step {named.step} needs a keyframe").path
            keyframe = self._make(base, named, self.chain.base_identity, None, True, keyframe_path)
        parent = self.history.steps[-1].number if self.history.steps else None
        patch_path = self.work / "patch"
        name = self._make(before, named, identity, parent, False, patch_path)
        with open_patch(patch_path) as patch:
            totals, files, found = patch.totals, stored_files(patch), patch.target_identity
        if keyframe is not None and keyframe.target != name.target:
            raise CheckpointError(f"{named.path}: was changed by another program while it was read: run again")
        sizes = [self._put(keyframe, keyframe_path), self._put(name, patch_path)]
        self.history.append(name, keyframe, sizes[0] | sizes[1])
        self._put_head(self.history.steps[-1], found)
        self.last = (named.step, named.path)
        row = AddedStep(
            step=named.step,
            checkpoint=named.path,
            state="added",
            identity=found.hex(),
            target_size=sum(file.size for file in files),
            patch_size=sum(sizes[1].values()),
            keyframe_size=sum(sizes[0].values()),
            changed=totals.changed,
            units=totals.units,
        )
        return row, files

    def _complete_last(self) -> None:
        """Put the keyframe of the last step, if a publisher was killed before it had (spec/chain-v1.md, 6)."""
        plan = self.history.plan(len(self.history.steps) - 1) if self.history.steps else None
        if plan is not None and len(plan) > self.chain.keyframe_every:
            last = self.history.steps[-1].name
            base = self._base(f"step {last.step} lacks its keyframe")
            name = replace(last, parent=None, base=self.chain.base_identity.hex()[:DIGITS], is_keyframe=True)
            self.noted(f"rebuilding step {last.step} in {self.work}, for the keyframe that a killed publisher did not put")
            write_keyframe(self.history, self.publisher, name, base.path, self.work, self.threads, self.progress)
            self.history = read_history(self.store)

    def _before(self, named: NamedStep) -> tuple[str, bytes]:
        """The checkpoint of the last step, rebuilt if it is not at hand; and its identity."""
        if not self.history.steps:
            return self._base(f"step {named.step} is the first one").path, self.chain.base_identity
        at = len(self.history.steps) - 1
        head = self.history.steps[at]
        identity = facts_of(self.store, head.name).target_identity
        if self.last is not None and self.last[0] == head.number:
            return self.last[1], identity
        base = self._base(f"step {named.step} is made from step {head.number}, which is rebuilt for that")
        if base.start == at:
            return base.path, identity
        out = self.work / "before"
        self.noted(f"rebuilding step {head.number} in {self.work}, as step {named.step} is made from it")
        apply_plan(self.history, plan_of(self.history, at, base.start), base.path, out, self.work, self.threads, self.progress)
        return str(out), identity

    def _base(self, why: str) -> KnownBase:
        """The base that is known, or that the chain records."""
        if self.base is None:
            try:
                self.base = find_base(self.history, None, self.threads, self.progress)
            except CheckpointError as error:
                raise CheckpointError(f"{error}: {why}") from None
        return self.base

    def _make(self, base: str, named: NamedStep, identity: bytes, parent: int | None, is_keyframe: bool, out: Path) -> PatchName:
        """Make a patch, and check it against both checkpoints; returns its name in the chain."""
        made = make_checked(base, named.path, out, self.chain.codec, self.threads, self.progress)
        if made.base != identity:
            what = "the chain's base" if parent is None else f"step {parent} of {self.store.name}"
            raise BaseMismatchError(f"{base}: has the identity {made.base.hex()}, expected {identity.hex()}, that of {what}")
        digits = identity.hex()[:DIGITS], made.target.hex()[:DIGITS]
        return PatchName(named.step, parent, *digits, self.publisher.epoch, made.is_file, is_keyframe)

    def _put(self, name: PatchName | None, patch: Path) -> dict[str, int]:
        """Put a patch, if there is one to put; with a look at what was stored before originals are removed."""
        if name is None:
            return {}
        sizes = self.publisher.put(name, patch)
        if self.remove_originals:
            self.publisher.check_stored(name, patch)
        return sizes

    def _put_head(self, step: Step, identity: bytes) -> None:
        self.publisher.put_head(Head(step.number, step.name.epoch, identity))

    def _remove(self, added: list[AddedStep], before: list[tuple[int, list[StoredFile]]]) -> None:
        """Remove checkpoints that nothing more is made from, and what this run rebuilt."""
        discard(self.work / "before")
        for at, files in before if self.remove_originals else ():
            row = added[at]
            is_base = row.identity == self.chain.base_identity.hex()
            if not is_base and (self.base is None or not _is_same_path(row.checkpoint, self.base.path)):
                added[at] = replace(row, removed=remove(Path(row.checkpoint), files))
        before.clear()


def _is_same_path(one: str, other: str | os.PathLike[str]) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)

"""The history of a chain: the steps that count, told from names alone (spec/chain-v1.md, 2, 4 and 5)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from ckptdiff.chain.documents import ChainDocument, read_chain
from ckptdiff.chain.names import CHAIN, DIGITS, EPOCHS, HEAD, KEYFRAMES, STEPS, PatchName, epoch_of
from ckptdiff.errors import FormatError
from ckptdiff.format.index import INDEX_NAME
from ckptdiff.format.safe_paths import safe_path
from ckptdiff.io.store import Store

BEFORE_ALL = -1
"""Stands for the base where steps are compared: it is below all of them."""


@dataclass(slots=True)
class Step:
    """A step of the history."""

    number: int
    target: str
    """The first digits of its identity."""
    patch: PatchName | None = None
    """The patch from the step before it, or from the base to the first step; None once the step before it was removed."""
    keyframe: PatchName | None = None
    """The patch straight from the base, beside that one."""
    follows: bool = False
    """Whether ``patch`` starts from the step before it in the history."""

    @property
    def name(self) -> PatchName:
        """One of its patches, which there is at least one of."""
        name = self.patch or self.keyframe
        assert name is not None
        return name


@dataclass(slots=True)
class History:
    """What a listing of a chain says."""

    store: Store
    chain: ChainDocument
    steps: list[Step]
    """In the order of their numbers."""
    sizes: dict[str, int]
    """Bytes of every object under ``steps`` and ``keyframes``, by name."""
    epoch: int
    """The highest epoch that is listed; 0 if there is none."""
    torn: list[PatchName] = field(default_factory=list)
    """Patches that are not complete."""
    superseded: list[PatchName] = field(default_factory=list)
    """Complete patches that do not count."""
    foreign: list[str] = field(default_factory=list)
    """Objects in the chain's folders that are not of this chain."""
    _keys: list[str] = field(default_factory=list)
    """The names in ``sizes``, in order; empty until they are needed."""

    def find(self, number: int) -> int | None:
        """Where in ``steps`` a step is; None if there is none of this number."""
        at = bisect_left(self.steps, number, key=lambda step: step.number)
        return at if at < len(self.steps) and self.steps[at].number == number else None

    def objects(self, name: PatchName) -> list[str]:
        """Names of the objects of a patch, that which completes it last."""
        if name.is_file:
            return [name.key] * (name.key in self.sizes)
        if not self._keys:
            self._keys = sorted(self.sizes)
        folder = name.key + "/"
        keys = self._keys[bisect_left(self._keys, folder) : bisect_left(self._keys, folder[:-1] + "0")]  # 0 comes next to a slash
        return sorted(keys, key=lambda key: key == name.marker)

    def is_outdated(self, name: PatchName) -> bool:
        """Whether a torn patch would be superseded if it were complete."""
        later = (step.patch for step in self.steps if step.patch is not None and step.patch.epoch > name.epoch)
        return any((BEFORE_ALL if patch.parent is None else patch.parent) < name.step for patch in later)

    def size(self, name: PatchName) -> int:
        """Bytes of a patch."""
        return sum(self.sizes[key] for key in self.objects(name))

    def append(self, name: PatchName, keyframe: PatchName | None, sizes: dict[str, int]) -> None:
        """Note a step that was just published, above all others, and the sizes of its objects."""
        self.steps.append(Step(name.step, name.target, name, keyframe, True))
        self.sizes |= sizes
        self._keys = []

    def plan(self, at: int, start: int | None = None) -> list[PatchName] | None:
        """The patches that rebuild the step at a place of ``steps``; None if one of them is missing.

        Args:
            at: the place of the step.
            start: the place of the step that the base is; None for the base of the chain.
        """
        patches: list[PatchName] = []
        while at != start:
            step = self.steps[at]
            if start is None and step.keyframe is not None:
                return [step.keyframe, *reversed(patches)]
            if step.patch is None or not step.follows:
                return None
            patches.append(step.patch)
            if at == 0:
                return patches[::-1] if start is None else None
            at -= 1
        return patches[::-1]

    def gap_text(self, at: int) -> str:
        """Which gap keeps the step at a place from being rebuilt, for messages."""
        gap = next((k for k in range(at, -1, -1) if not self.steps[k].follows), 0)
        return f"there is a gap before step {self.steps[gap].number}, which does not follow from a step that is there"

    @property
    def next_length(self) -> int:
        """How many patches a step after the last one would take without a keyframe; infinitely many if the last one is out of reach."""
        patches = self.plan(len(self.steps) - 1) if self.steps else []
        return int(1e9) if patches is None else len(patches) + 1

    def number_text(self) -> str:
        """The first and the last step, for messages."""
        if not self.steps:
            return "no step"
        first, last = self.steps[0].number, self.steps[-1].number
        return f"step {first}" if first == last else f"{len(self.steps)} steps, {first} to {last}"


def read_history(store: Store) -> History:
    """Read ``chain.json`` and list a chain.

    Raises:
        FormatError: there is no ``chain.json``, it breaks a rule, or the chain is forked. UnsupportedError, IntegrityError: that of
            ``chain.json``. StoreError: the store cannot be read.
    """
    chain = read_chain(store)
    if chain is None:
        raise FormatError(f"{store.name}: is not a chain: it has no {CHAIN}; ckptdiff chain add makes one")
    sizes = {**store.objects(STEPS), **store.objects(KEYFRAMES)}  # in this order, epochs last (spec 2)
    epochs = {key: epoch_of(key) for key in store.objects(EPOCHS)}
    history = History(store, chain, [], sizes, max((epoch or 0 for epoch in epochs.values()), default=0))
    history.foreign = [key for key, epoch in epochs.items() if epoch is None]
    valid = _without_superseded(history, _complete(history))
    _join(history, sorted(valid, key=lambda name: (name.step, name.is_keyframe)))
    return history


def patch_files(history: History, name: PatchName) -> list[str]:
    """Names of the objects of a patch that are its files, that which completes it last; others in its folder are left out.

    Raises:
        FormatError: one of them is not the name of a file (spec/ckptdiff-v1.md, 3.4).
    """
    found: list[str] = []
    for key in history.objects(name):
        path = "" if name.is_file else key.removeprefix(f"{name.key}/")
        if path.startswith(("patch/", "files/")):
            safe_path(path, f"{history.store.name}/{name.key}")
        elif path not in ("", INDEX_NAME):
            continue
        found.append(key)
    return found


def foreign_objects(history: History) -> list[str]:
    """Names of all objects in the store that are not of this chain."""
    known = {CHAIN, HEAD}
    folders = tuple(f"{folder}/" for folder in (STEPS, KEYFRAMES, EPOCHS))
    return [*history.foreign, *(key for key in history.store.objects("") if key not in known and not key.startswith(folders))]


def _complete(history: History) -> list[PatchName]:
    """The complete patches; torn ones and foreign objects are noted."""
    names: dict[PatchName, bool] = {}
    base = history.chain.base_identity.hex()[:DIGITS]
    for key in history.sizes:
        name = PatchName.parse(key)
        if name is None or name.epoch > history.epoch or (name.parent is None and name.base != base):
            history.foreign.append(key)
        else:
            names[name] = names.get(name, False) or key == name.marker
    history.torn = [name for name, complete in names.items() if not complete]
    return [name for name, complete in names.items() if complete]


def _without_superseded(history: History, names: Iterable[PatchName]) -> list[PatchName]:
    """The patches that count (spec 4, rule 1); the others are noted."""
    by_epoch: dict[int, list[PatchName]] = {}
    for name in names:
        by_epoch.setdefault(name.epoch, []).append(name)
    valid, limit = list[PatchName](), math.inf
    for epoch in sorted(by_epoch, reverse=True):
        counting = [name for name in by_epoch[epoch] if name.step <= limit]
        history.superseded += [name for name in by_epoch[epoch] if name.step > limit]
        parents = (BEFORE_ALL if name.parent is None else name.parent for name in counting if not name.is_keyframe)
        limit = min(limit, min(parents, default=limit))
        valid += counting
    return valid


def _join(history: History, names: Iterable[PatchName]) -> None:
    """Put the patches that count together to steps, in order; raises FormatError where the chain is forked."""
    where = history.store.name
    for name in names:
        if not history.steps or history.steps[-1].number != name.step:
            history.steps.append(Step(name.step, name.target))
        step = history.steps[-1]
        if step.target != name.target:
            raise _forked(where, step.name, name, f"both are step {name.step}, but they give different checkpoints")
        if name.is_keyframe:
            both = sorted({name, step.keyframe or name}, key=lambda keyframe: keyframe.epoch)
            step.keyframe = both[-1]
            history.superseded += both[:-1]
        elif step.patch is not None:
            raise _forked(where, step.patch, name, f"both lead to step {name.step}")
        else:
            step.patch = name
    own = history.chain.base_step
    if own is not None and history.steps and history.steps[0].number <= own:
        raise FormatError(f"{where}/{history.steps[0].name.key}: is not above step {own}, which is the chain's base")
    numbers = {step.number for step in history.steps}
    for k, step in enumerate(history.steps):
        if step.patch is not None:
            step.follows = _follows(history, k, step.patch, numbers)


def _follows(history: History, k: int, patch: PatchName, numbers: set[int]) -> bool:
    """Whether a step's patch starts from the step before it; raises FormatError if from another one (spec 4, rule 3)."""
    before = history.steps[k - 1] if k else None
    if patch.parent == (before.number if before else None):
        if before is not None and patch.base != before.target:
            raise _forked(history.store.name, before.name, patch, "the second was not made from what the first gives")
        return True
    if patch.parent is None or patch.parent in numbers:
        assert before is not None
        start = "the base" if patch.parent is None else f"step {patch.parent}"
        raise _forked(history.store.name, before.name, patch, f"the second starts from {start}, and leaves out step {before.number}")
    return False


def _forked(where: str, first: PatchName, second: PatchName, why: str) -> FormatError:
    return FormatError(f"{where}: is forked: {first.key} and {second.key}: {why}: move one of them away, with all that follows from it")

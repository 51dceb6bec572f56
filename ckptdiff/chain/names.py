"""Names of the objects of a chain (spec/chain-v1.md, 2), and the steps that names of checkpoints state."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ckptdiff.errors import CheckpointError
from ckptdiff.format.index import INDEX_NAME

CHAIN, HEAD = "chain.json", "HEAD.json"
STEPS, KEYFRAMES, EPOCHS = "steps", "keyframes", "epochs"
MAX_STEP = 10**12 - 1
MAX_EPOCH = 10**6 - 1
DIGITS = 8
"""Digits of an identity in a name."""
NAME = re.compile(
    r"(?P<step>\d{12})-(?P<parent>\d{12}|base)-(?P<base>[0-9a-f]{8})-(?P<target>[0-9a-f]{8})-(?P<epoch>\d{6})(?P<file>\.safetensors)?",
    re.ASCII,
)
EPOCH_NAME = re.compile(r"epochs/(?P<epoch>\d{6})\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class PatchName:
    """What the name of a patch in a chain says."""

    step: int
    parent: int | None
    """The step that the patch starts from; None for the base."""
    base: str
    target: str
    """The first digits of the identities of the patch's base and target."""
    epoch: int
    is_file: bool
    """Whether it is a patch file, not a folder."""
    is_keyframe: bool

    @property
    def key(self) -> str:
        """The object's name in the store, or that of the folder of its objects."""
        parent = "base" if self.parent is None else f"{self.parent:012}"
        name = f"{self.step:012}-{parent}-{self.base}-{self.target}-{self.epoch:06}"
        return f"{KEYFRAMES if self.is_keyframe else STEPS}/{name}{'.safetensors' if self.is_file else ''}"

    @property
    def marker(self) -> str:
        """The object that is put last: once it is there the patch is complete."""
        return self.key if self.is_file else f"{self.key}/{INDEX_NAME}"

    @classmethod
    def parse(cls, key: str) -> PatchName | None:
        """What the name of an object, under ``steps`` or ``keyframes``, says of its patch; None if it is no name of this form."""
        folder, _, rest = key.partition("/")
        name, slash, _ = rest.partition("/")
        match = NAME.fullmatch(name)
        if match is None or bool(match["file"]) == bool(slash) or int(match["epoch"]) == 0:
            return None
        step, parent = int(match["step"]), None if match["parent"] == "base" else int(match["parent"])
        is_keyframe = folder == KEYFRAMES
        if parent is not None and (is_keyframe or parent >= step):
            return None
        return cls(step, parent, match["base"], match["target"], int(match["epoch"]), bool(match["file"]), is_keyframe)


def epoch_key(epoch: int) -> str:
    """Name of the object by which a publisher takes over."""
    return f"{EPOCHS}/{epoch:06}.json"


def epoch_of(key: str) -> int | None:
    """The epoch that such a name states, at least 1; None if it is no such name."""
    match = EPOCH_NAME.fullmatch(key)
    return (int(match["epoch"]) or None) if match else None


STEP_IN_NAME = re.compile(
    r"(?P<word>global[-_]?step|checkpoint|ckpt|step|iteration|iter|epoch)s?[-_=]?(?P<step>\d+)(?!\d)", re.IGNORECASE | re.ASCII
)
"""How trainers name checkpoints: ``checkpoint-100``, ``global_step_100``, ``epoch=3``."""
NUMBER_AT_END = re.compile(r"(?P<word>.*?)[-_.]?(?P<step>\d+)", re.ASCII)


class NamedStep(NamedTuple):
    """The step of a checkpoint, as its name states it."""

    step: int
    word: str
    """What stands before the number."""
    path: str


def step_of(path: str) -> NamedStep:
    """The step that the path of a checkpoint states: the last part of it that says one.

    Raises:
        CheckpointError: it states none, or one that is too large.
    """
    place = Path(path)
    parts = [place.name.removesuffix(".safetensors"), *(parent.name for parent in place.parents if parent.name)]
    found = next((list(STEP_IN_NAME.finditer(part))[-1] for part in parts if STEP_IN_NAME.search(part)), None)
    found = found or NUMBER_AT_END.fullmatch(parts[0] if parts else "")
    if found is None:
        raise CheckpointError(f"{path}: its name does not say which step it is, as checkpoint-100 does: give --step N, for one at a time")
    if int(found["step"]) > MAX_STEP:
        raise CheckpointError(f"{path}: states the step {found['step']}, expected at most {MAX_STEP}")
    return NamedStep(int(found["step"]), found["word"].lower().replace("_", "").replace("-", ""), path)


def in_natural_order(paths: Sequence[str]) -> list[NamedStep]:
    """Checkpoints by the steps that their names state, the lowest first.

    Raises:
        CheckpointError: a name states no step, two state the same one, or one counts steps where another counts epochs.
    """
    steps = sorted(map(step_of, paths))
    for before, after in itertools.pairwise(steps):
        if before.step == after.step:
            raise CheckpointError(f"{before.path} and {after.path}: both are step {after.step}: give one of them")
        if before.word != after.word:
            raise CheckpointError(
                f"{before.path} and {after.path}: count different things, {before.word or 'a number'} and {after.word or 'a number'}: "
                "give each with its --step N, one at a time"
            )
    return steps

"""Which steps of a chain stay, and what has to be written and removed for it (spec/chain-v1.md, 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ckptdiff.chain.history import History, Step
from ckptdiff.chain.names import PatchName
from ckptdiff.errors import CheckpointError

RULE = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?|(?P<word>last|every):(?P<count>\d+)", re.ASCII)


def kept_steps(history: History, rules: Sequence[str]) -> list[Step]:
    """The steps that any of some rules keeps, and the last step; in order. Rules, and what is raised, are as of :func:`chosen_steps`."""
    kept = {step.number for step in [*chosen_steps(history, rules), *history.steps[-1:]]}
    return [step for step in history.steps if step.number in kept]


def chosen_steps(history: History, rules: Sequence[str]) -> list[Step]:
    """The steps that any of some rules chooses, in order.

    Args:
        history: the chain's.
        rules: each with one or more of ``N``, ``A-B``, ``last:N`` and ``every:N`` (steps that N divides), with commas between.

    Raises:
        CheckpointError: a rule has another form, or names a step that there is not.
    """
    kept = set[int]()
    for rule in (part.strip() for rules_of_one in rules for part in rules_of_one.split(",")):
        match = RULE.fullmatch(rule)
        if match is None or match["count"] == "0":
            raise CheckpointError(f"{rule!r} says no steps to keep or take: expected a step, A-B, last:N or every:N")
        numbers = [step.number for step in history.steps]
        if match["word"] == "last":
            kept |= set(numbers[-int(match["count"]) :])
        elif match["word"] == "every":
            kept |= {number for number in numbers if number % int(match["count"]) == 0}
        elif match["last"]:
            kept |= {number for number in numbers if int(match["first"]) <= number <= int(match["last"])}
        else:
            find_step(history, int(match["first"]))
            kept.add(int(match["first"]))
    return [step for step in history.steps if step.number in kept]


def find_step(history: History, number: int) -> int:
    """The place of a step in the history.

    Raises:
        CheckpointError: the chain has no such step; the message names the nearest ones.
    """
    at = history.find(number)
    if at is not None:
        return at
    if number == history.chain.base_step:
        raise CheckpointError(f"{history.store.name}: step {number} is the chain's base, of which the chain has no copy")
    below = [step.number for step in history.steps if step.number < number][-1:]
    above = [step.number for step in history.steps if step.number > number][:1]
    nearest = " and ".join(map(str, below + above))
    there = f": the nearest of its {len(history.steps)} are {nearest}" if len(below + above) == 2 else f": it has {history.number_text()}"
    raise CheckpointError(f"{history.store.name}: has no step {number}{there}")


@dataclass(frozen=True, slots=True)
class Retention:
    """What keeping some steps of a chain takes."""

    kept: list[int]
    dropped: list[int]
    """Numbers of the steps that go."""
    keyframes: list[PatchName]
    """Keyframes that must be written first."""
    removed: list[PatchName]
    """Patches that go: those of dropped steps, those that nothing needs then, torn and superseded ones."""


def plan_retention(history: History, kept: Sequence[Step]) -> Retention:
    """What must be written and removed so that just some steps stay, each within reach of the base.

    Raises:
        CheckpointError: a step that is to be kept is out of reach already.
    """
    numbers = {step.number for step in kept}
    keyframes, needed = list[PatchName](), set[PatchName]()
    for at, step in enumerate(history.steps):
        if step.number not in numbers:
            continue
        if history.plan(at) is None:
            raise CheckpointError(f"{history.store.name}: step {step.number} is out of reach, as patches before it are missing: verify it")
        before = history.steps[at - 1].number if at else None
        if step.patch is not None and step.follows and (before is None or before in numbers):
            needed.add(step.patch)
        elif step.keyframe is None:
            keyframes.append(_keyframe_of(history, step))
        if step.keyframe is not None:
            needed.add(step.keyframe)
    there = [name for step in history.steps for name in (step.patch, step.keyframe) if name is not None]
    removed = [name for name in there if name not in needed] + history.superseded + history.torn
    dropped = [step.number for step in history.steps if step.number not in numbers]
    return Retention(sorted(numbers), dropped, keyframes, removed)


def _keyframe_of(history: History, step: Step) -> PatchName:
    """The name of a keyframe for a step, of the epoch of its patch."""
    base = history.chain.base_identity.hex()[: len(step.target)]
    return PatchName(step.number, None, base, step.target, step.name.epoch, step.name.is_file, True)

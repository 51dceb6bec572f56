"""Rules ``--rename REGEX=REPL``, and the check that every rule and glob that a caller gives matches something."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.selection import matches_path
from ckptdiff.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Rename:
    """A rule ``--rename REGEX=REPL``, which turns the name of a target tensor into that of its base tensor."""

    pattern: re.Pattern[str]
    replacement: str

    @classmethod
    def parse(cls, text: str) -> Rename:
        """Parse ``REGEX=REPL``, split at the first ``=``.

        Raises:
            CheckpointError: there is no ``=``, or the pattern or the replacement is not valid.
        """
        pattern, separator, replacement = text.partition("=")
        try:
            if not separator or not pattern:
                raise re.error("expected REGEX=REPL")
            rename = cls(re.compile(pattern), replacement)
            re.compile(pattern + "|").sub(replacement, "")
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"--rename {text!r}: {error}") from None
        return rename


def rename_all(name: str, renames: Sequence[Rename]) -> tuple[str, set[Rename]]:
    """Apply rules to a target tensor's name, one after the other; returns its name in the base, and the rules that matched."""
    used = set()
    for rename in renames:
        if rename.pattern.search(name):
            used.add(rename)
            name = rename.pattern.sub(rename.replacement, name)
    return name, used


def check_patterns(base: Checkpoint, target: Checkpoint, renames: Sequence[Rename], globs: Iterable[str]) -> None:
    """Raise CheckpointError for a rule that matches no tensor of the target, or a glob that matches no file: most likely a slip."""
    check_renames(target, renames)
    check_globs(globs, base, target)


def check_renames(target: Checkpoint, renames: Sequence[Rename]) -> None:
    """Raise CheckpointError for a rule that matches no tensor of the target."""
    tensors = [name for tensors in target.scopes.values() for name in tensors]
    used = set[Rename]().union(*(rename_all(name, renames)[1] for name in tensors))
    for rename in renames:
        if rename not in used:
            raise CheckpointError(f"--rename {rename.pattern.pattern!r} matches no tensor of {target.path}, such as {tensors[:1]}")


def check_globs(globs: Iterable[str], *sides: Checkpoint) -> None:
    """Raise CheckpointError for a glob that matches no file of any of the checkpoints."""
    names = {name for side in sides for name in (*side.others, *(file.path for file in side.weights), *side.left_out, *side.followed)}
    for glob in globs:
        if not any(matches_path(name, [glob]) for name in names):
            raise CheckpointError(f"the glob {glob!r} matches no file of {' and '.join(dict.fromkeys(str(side.path) for side in sides))}")

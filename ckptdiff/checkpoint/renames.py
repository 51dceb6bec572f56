"""Rules ``--rename REGEX=REPL``, and the check that every rule and glob that a caller gives matches something."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.names import near_names
from ckptdiff.checkpoint.selection import matches_path
from ckptdiff.errors import CheckpointError, cut


@dataclass(frozen=True, slots=True)
class Rename:
    """A rule ``--rename REGEX=REPL``, which turns the name of a target tensor into that of its base tensor."""

    pattern: re.Pattern[str]
    replacement: str

    def __str__(self) -> str:
        return shlex.quote(f"{self.pattern.pattern}={self.replacement}")

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
            raise CheckpointError(f"--rename {text!r}: {error}; a rule is a regular expression, =, and what replaces it") from None
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
    """Raise CheckpointError for a rule that helps no tensor of the target, or a glob that matches no file: most likely a slip."""
    check_renames(base, target, renames)
    check_globs(globs, base, target)


def check_renames(base: Checkpoint, target: Checkpoint, renames: Sequence[Rename]) -> None:
    """Raise CheckpointError for a rule that matches no tensor of the target, or turns none of those into a name that the base has."""
    names = [name for tensors in target.scopes.values() for name in tensors]
    known = {name for tensors in base.scopes.values() for name in tensors} | set(base.tied)
    first: dict[Rename, tuple[str, str]] = {}
    helpful = set[Rename]()
    for name in names if renames else ():
        wanted, used = rename_all(name, renames)
        if wanted in known and wanted != name:
            helpful |= used
        first |= {rename: (name, wanted) for rename in used if rename not in first}
    for rename in renames:
        if rename not in first:
            such = f", such as {near_names(rename.pattern.pattern, names)}" if names else ""
            raise CheckpointError(f"--rename {rename}: matches none of the {len(names):,} tensors of {target.path}{such}")
        if rename not in helpful:
            raise CheckpointError(f"--rename {rename}: {_why_useless(base, *first[rename], known)}")


def _why_useless(base: Checkpoint, name: str, wanted: str, known: Collection[str]) -> str:
    """Why a rule does not help a tensor of the target, nor any other."""
    if wanted == name:
        return f"leaves all names as they are, such as {cut(name)}: leave it out, or mend it"
    near = near_names(wanted, known)
    return f"turns names of the target into none that {base.path} has, such as {cut(name)} into {cut(wanted)}" + (
        f"; the nearest names there are {near}" if near else ""
    )


def check_globs(globs: Iterable[str], *sides: Checkpoint) -> None:
    """Raise CheckpointError for a glob that matches no file of any of the checkpoints."""
    names = {name for side in sides for name in (*side.others, *(file.path for file in side.weights), *side.left_out, *side.followed)}
    for glob in globs:
        if not any(matches_path(name, [glob]) for name in names):
            where = " and ".join(dict.fromkeys(str(side.path) for side in sides))
            raise CheckpointError(f"the glob {glob!r} matches no file of {where}: it is matched with the whole path in the folder")

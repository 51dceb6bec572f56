"""Base tensors paired with target tensors by name (spec 3.1 and 8).

Pairing by content needs digests, and is in :mod:`ckptdiff.patching.encode_pair`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.selection import matches_path
from ckptdiff.errors import CheckpointError
from ckptdiff.format.dtypes import is_castable

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and head models put before the names of tensors."""


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


def pair_scopes(base: Checkpoint, target: Checkpoint) -> dict[str, str | None]:
    """The base scope of each target scope: the same id, or the only one where each side has only one."""
    if len(base.scopes) == 1 and len(target.scopes) == 1:
        return dict(zip(target.scopes, base.scopes, strict=True))
    return {scope: scope if scope in base.scopes else None for scope in target.scopes}


def is_adaptable(base: Tensor, target: Tensor) -> bool:
    """Whether a base tensor can be adapted to a target tensor: it has the same dtype, or one that can be cast, and they have units."""
    if base.dtype != target.dtype and not is_castable(base.dtype, target.dtype):
        return False
    return base.name == target.name or min(base.units, target.units) > 0


def pair_names(base: dict[str, Tensor], target: Iterable[Tensor], renames: Sequence[Rename] = ()) -> dict[str, Tensor]:
    """Base tensor by target name: by ``--rename``, then by equal name, then by names that differ in a common prefix only.

    Pairs whose dtypes do not allow to adapt one to the other are left out.
    """
    targets = list(target)
    pairs: dict[str, Tensor] = {}
    for tensor in targets:
        wanted, _ = rename_all(tensor.name, renames)
        if wanted in base and is_adaptable(base[wanted], tensor):
            pairs[tensor.name] = base[wanted]
    used = {tensor.name for tensor in pairs.values()}
    free_base = _by_stem(tensor for tensor in base.values() if tensor.name not in used)
    free_target = _by_stem(tensor for tensor in targets if tensor.name not in pairs)
    for stem, candidates in free_target.items():
        others = free_base.get(stem, [])
        if len(candidates) == len(others) == 1 and is_adaptable(others[0], candidates[0]):
            pairs[candidates[0].name] = others[0]
    return pairs


def pair_tied(
    base: dict[str, Tensor], base_tied: Mapping[str, str], target: Sequence[Tensor], tied: Mapping[str, str], renames: Sequence[Rename]
) -> dict[str, Tensor]:
    """As :func:`pair_names`, but a tensor with further names may also be paired by one of these."""
    pairs = pair_names(base, target, renames)
    known = {name: base[kept] for name, kept in base_tied.items()} | base
    for tensor in target if base_tied or tied else ():
        names = (tensor.name, *(name for name, kept in tied.items() if kept == tensor.name))
        candidates = [known[name] for name in names if name in known and is_adaptable(known[name], tensor)]
        if tensor.name not in pairs and candidates:
            pairs[tensor.name] = candidates[0]
    return pairs


def _by_stem(tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Tensors by their name without prefixes."""
    stems: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        stems.setdefault(strip_prefixes(tensor.name), []).append(tensor)
    return stems


def strip_prefixes(name: str) -> str:
    """The name without :data:`WRAPPER_PREFIXES`."""
    while True:
        stripped = name
        for prefix in WRAPPER_PREFIXES:
            stripped = stripped.removeprefix(prefix)
        if stripped == name or not stripped:
            return name
        name = stripped


@dataclass(frozen=True, slots=True)
class PairedTensors:
    """The tensors of two checkpoints, paired as far as they have the same dtype and shape."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    """Tensors of base and target."""
    only_in_base: tuple[str, ...]
    only_in_target: tuple[str, ...]
    mismatched: tuple[str, ...]
    """Names of tensors whose dtype or shape is not that of their counterpart."""


def pair_all(base: Checkpoint, target: Checkpoint, renames: Sequence[Rename] = ()) -> PairedTensors:
    """Pair all tensors of two checkpoints, and name those without a counterpart of the same dtype and shape."""
    pairs: list[tuple[Tensor, Tensor]] = []
    only_in_base, only_in_target, mismatched = [], [], []
    scopes = pair_scopes(base, target)
    for scope, tensors in target.scopes.items():
        others = base.scopes.get(scopes[scope] or "", {})
        names = pair_names(others, tensors.values(), renames)
        for tensor in tensors.values():
            other = names.get(tensor.name) or others.get(tensor.name)
            if other is None:
                only_in_target.append(display_name(tensor, target))
            elif (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
                mismatched.append(display_name(tensor, target))
            else:
                pairs.append((other, tensor))
        used = {tensor.name for tensor in names.values()} | set(tensors)
        only_in_base += [display_name(tensor, base) for name, tensor in others.items() if name not in used]
    only_in_base += [
        display_name(t, base) for scope, tensors in base.scopes.items() if scope not in scopes.values() for t in tensors.values()
    ]
    return PairedTensors(tuple(pairs), tuple(only_in_base), tuple(only_in_target), tuple(mismatched))


def display_name(tensor: Tensor, checkpoint: Checkpoint) -> str:
    """A tensor's name, with its scope before it if the checkpoint has several."""
    return tensor.name if len(checkpoint.scopes) == 1 else f"{tensor.scope}: {tensor.name}"

"""Scopes (spec 3.1): groups of weight files in which tensor names are unique, told by indexes and by the names of shards."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ckptdiff.checkpoint.selection import exclude_option
from ckptdiff.checkpoint.weight_map import WeightMap, read_weight_map
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.io.places import Place

INDEX_FILE = re.compile(r"(?s)(?P<stem>.+)\.safetensors\.index(?P<variant>\.[^./]+)?\.json")
SHARD_FILE = re.compile(r"(?s)(?P<stem>.+)-(?P<number>[0-9]{5,})-of-(?P<count>[0-9]{5,})(?P<variant>\.[^./]+)?\.safetensors")


@dataclass(slots=True)
class Scopes:
    """The scopes of a checkpoint's weight files."""

    of_file: dict[str, str] = field(default_factory=dict)
    """Scope of each weight file, by its path."""
    weight_maps: dict[str, list[WeightMap]] = field(default_factory=dict)
    """The weight maps of each scope's indexes, in the order of their paths, by scope; they name shards by their paths."""


def is_index(path: str) -> bool:
    """Whether a path is that of an index of safetensors shards."""
    return INDEX_FILE.fullmatch(path.rpartition("/")[2]) is not None


def scope_of_name(path: str, indexed: Collection[str] = ()) -> str:
    """Scope of a weight file that no index lists (spec 3.1, rules 2 and 3); ``indexed``: the scopes that indexes give."""
    folder, _, name = path.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    match = SHARD_FILE.fullmatch(name)
    scope = prefix + _stem(match) if match else None
    return scope if scope is not None and scope not in indexed else prefix + name.removesuffix(".safetensors")


def possible_scopes(path: str) -> set[str]:
    """The scopes that a weight file which no index lists may have, whatever lies beside it."""
    return {scope_of_name(path), path.removesuffix(".safetensors"), path}


def _stem(shard: re.Match[str]) -> str:
    """What the names of all shards of a set have in common."""
    stem = shard["stem"]
    return (stem.removesuffix(".safetensors") or stem) + (shard["variant"] or "")


def scopes_of(
    weights: Collection[str], indexes: Mapping[str, Place], can_exclude: bool, unused: Mapping[str, Place] | None = None
) -> Scopes:
    """The scopes of all weight files.

    Args:
        weights: paths of all weight files.
        indexes: files of the indexes to use, by path.
        unused: those that are left out. Where one gives the same scopes, it still says which tensor of a doubled name counts: a reader of
            the patch finds it beside the base (:func:`scopes_of_recorded`).
        can_exclude: whether the caller has an option to leave files out, which messages may advise.

    Raises:
        CheckpointError: an index is broken, or lists a file that does not exist; or not all shards of a set exist.
    """
    scopes = _scopes_by_index(indexes, weights, can_exclude)
    given = set(scopes.of_file.values())
    _check_siblings([name for name in weights if name not in scopes.of_file and _is_shard(name, given)], can_exclude)
    found = _with_others(weights, scopes)
    for name in sorted(unused or ()):
        more = _usable({name: (unused or {})[name]}, weights)
        if more.of_file.items() <= found.of_file.items():
            for scope, maps in more.weight_maps.items():
                found.weight_maps.setdefault(scope, []).extend(maps)
    return found


def scopes_of_recorded(weights: Collection[str], indexes: Mapping[str, Place], wanted: Collection[str]) -> Scopes:
    """The scopes of a base of which a patch records the weight files and scopes, but not which indexes were used.

    Those indexes are used whose shards are all recorded; but none of them if they do not give the scopes that the patch wants.
    """
    scopes = _with_others(weights, _usable(indexes, weights))
    given = set(scopes.of_file.values())
    return scopes if len(given) == 1 or given.issuperset(wanted) else _with_others(weights, Scopes())


def _usable(indexes: Mapping[str, Place], weights: Collection[str]) -> Scopes:
    """Scopes of the files that those indexes list whose shards are all there; others are stale or broken, and ``make`` leaves them out."""
    usable: dict[str, Place] = {}
    for name, path in indexes.items():
        try:
            name.encode()
            _scopes_by_index({name: path}, weights, False)
        except (CheckpointError, UnicodeEncodeError):  # or its name is not text
            continue
        usable[name] = path
    return _scopes_by_index(usable, weights, False)


def _with_others(weights: Collection[str], scopes: Scopes) -> Scopes:
    """Scopes of all weight files, given those of indexed ones; a single file whose scope is taken is a scope of its own path."""
    given = set(scopes.of_file.values())
    found = {name: scopes.of_file.get(name) or scope_of_name(name, given) for name in weights}
    alone = {name for name in weights if name not in scopes.of_file and not _is_shard(name, given)}
    taken = {scope for name, scope in found.items() if name not in alone}
    of_file = {name: name if name in alone and scope in taken else scope for name, scope in found.items()}
    return Scopes(of_file, scopes.weight_maps)


def _is_shard(path: str, indexed: Collection[str]) -> bool:
    """Whether a file that no index lists is in a scope with others by its name (spec 3.1, rule 2)."""
    folder, _, name = path.rpartition("/")
    match = SHARD_FILE.fullmatch(name)
    return match is not None and (f"{folder}/" if folder else "") + _stem(match) not in indexed


def _scopes_by_index(indexes: Mapping[str, Place], weights: Collection[str], can_exclude: bool) -> Scopes:
    """Scopes of the weight files that indexes list; raises CheckpointError if one of these is missing."""
    scopes = Scopes()
    for name in sorted(indexes, key=str.encode):
        path, (folder, _, file_name) = indexes[name], name.rpartition("/")
        match = INDEX_FILE.fullmatch(file_name)
        assert match is not None
        prefix = f"{folder}/" if folder else ""
        weight_map = {tensor: prefix + shard for tensor, shard in read_weight_map(path).items()}
        shards = sorted(set(weight_map.values()))
        missing = [shard.removeprefix(prefix) for shard in shards if shard not in weights]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            way_on = f"leave the stale index out with {exclude_option(name)}" if can_exclude else "remove the stale index"
            raise CheckpointError(f"{path}: lists the shard {cut(missing[0])}, which is missing{more}: fetch it, or {way_on}")
        scope = prefix + match["stem"] + (match["variant"] or "")
        scopes.weight_maps.setdefault(scope, []).append(weight_map)
        for shard in shards:
            scopes.of_file.setdefault(shard, scope)
    return scopes


def _check_siblings(names: Iterable[str], can_exclude: bool) -> None:
    """Raise CheckpointError unless the shards of each set, which no index lists, are numbered through; the first may have the number 0."""
    sets: dict[tuple[str | None, ...], dict[int, str]] = {}
    for name in names:
        match = SHARD_FILE.fullmatch(name)
        assert match is not None
        sets.setdefault(match.group("stem", "count", "variant"), {})[int(match["number"])] = name
    for (_, count, _), shards in sets.items():
        wanted = range(min(min(shards), 1), min(min(shards), 1) + int(count or 0))
        missing = next((number for number in wanted if number not in shards), None)
        if missing is not None:
            first = min(shards.values(), key=str.encode)
            match = SHARD_FILE.fullmatch(first)
            assert match is not None
            sibling = f"{first[: match.start('number')]}{missing:0{len(match['number'])}}{first[match.end('number') :]}"
            way_on = f", or leave the others out with {exclude_option(*list(shards.values())[:3])}" if can_exclude else ""
            raise CheckpointError(f"{first}: its sibling {sibling} is missing: fetch it{way_on}")

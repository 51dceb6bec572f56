"""Scopes (spec 3.1): groups of weight files in which tensor names are unique, told by indexes and by the names of shards."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from ckptdiff.checkpoint.selection import exclude_option
from ckptdiff.checkpoint.weight_map import shards_of_index
from ckptdiff.errors import CheckpointError, cut

INDEX_FILE = re.compile(r"(?s)(?P<stem>.+)\.safetensors\.index(?P<variant>\.[^./]+)?\.json")
SHARD_FILE = re.compile(r"(?s)(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})(?P<variant>\.[^./]+)?\.safetensors")


def is_index(path: str) -> bool:
    """Whether a path is that of an index of safetensors shards."""
    return INDEX_FILE.fullmatch(path.rpartition("/")[2]) is not None


def scope_of_name(path: str) -> str:
    """Scope of a weight file that no index lists (spec 3.1, rules 2 and 3)."""
    folder, _, name = path.rpartition("/")
    match = SHARD_FILE.fullmatch(name)
    stem = match["stem"] + (match["variant"] or "") if match else name.removesuffix(".safetensors")
    return f"{folder}/{stem}" if folder else stem


def scopes_of(weights: Collection[str], indexes: Mapping[str, Path], can_exclude: bool) -> dict[str, str]:
    """Scope of every weight file, by its path.

    Args:
        weights: paths of all weight files.
        indexes: local files of the indexes to use, by path.
        can_exclude: whether the caller has an option to leave files out, which messages may advise.

    Raises:
        CheckpointError: an index is broken, or lists a file that does not exist; or not all shards of a set exist.
    """
    indexed = _scopes_by_index(indexes, weights, can_exclude)
    _check_siblings([name for name in weights if name not in indexed], set(weights), can_exclude)
    return _all_scopes(weights, indexed)


def scopes_of_recorded(weights: Collection[str], indexes: Mapping[str, Path], wanted: Collection[str]) -> dict[str, str]:
    """Scope of every weight file of a base, of which a patch records the files and scopes, but not which indexes were used.

    Those indexes are used whose shards are all recorded; but none of them if they do not give the scopes that the patch wants.
    """
    usable: dict[str, str] = {}
    for name, path in indexes.items():
        try:
            usable = {**_scopes_by_index({name: path}, weights, False), **usable}
        except CheckpointError:
            continue  # it is stale or broken, so that make was told to leave it out
    scopes = _all_scopes(weights, usable)
    given = set(scopes.values())
    return scopes if len(given) == 1 or given.issuperset(wanted) else _all_scopes(weights, {})


def _all_scopes(weights: Collection[str], indexed: Mapping[str, str]) -> dict[str, str]:
    """Scopes of all weight files, given those of indexed ones; a single file whose scope is taken is a scope of its own path."""
    scopes = {name: indexed.get(name) or scope_of_name(name) for name in weights}
    alone = {name for name in weights if name not in indexed and not SHARD_FILE.fullmatch(name)}
    taken = {scope for name, scope in scopes.items() if name not in alone}
    return {name: name if name in alone and scope in taken else scope for name, scope in scopes.items()}


def _scopes_by_index(indexes: Mapping[str, Path], weights: Collection[str], can_exclude: bool) -> dict[str, str]:
    """Scopes of the weight files that indexes list; raises CheckpointError if one of these is missing."""
    indexed: dict[str, str] = {}
    for name, path in indexes.items():
        folder, _, file_name = name.rpartition("/")
        match = INDEX_FILE.fullmatch(file_name)
        assert match is not None
        prefix = f"{folder}/" if folder else ""
        shards = shards_of_index(path)
        missing = [shard for shard in shards if prefix + shard not in weights]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            way_on = f"leave the stale index out with {exclude_option(name)}" if can_exclude else "remove the stale index"
            raise CheckpointError(f"{path}: lists the shard {cut(missing[0])}, which is missing{more}: fetch it, or {way_on}")
        for shard in shards:
            indexed.setdefault(prefix + shard, prefix + match["stem"] + (match["variant"] or ""))
    return indexed


def _check_siblings(names: list[str], present: set[str], can_exclude: bool) -> None:
    """Raise CheckpointError if a file called K-of-N, which no index lists, lacks one of its N - 1 siblings."""
    for name in names:
        match = SHARD_FILE.fullmatch(name)
        if match:
            for k in range(1, int(match["count"]) + 1):
                sibling = f"{match['stem']}-{k:05}-of-{match['count']}{match['variant'] or ''}.safetensors"
                if sibling not in present:
                    alike = match.group("stem", "count", "variant")
                    siblings = [
                        other for other in names if (m := SHARD_FILE.fullmatch(other)) and m.group("stem", "count", "variant") == alike
                    ]
                    way_on = f", or leave the others out with {exclude_option(*siblings[:3])}" if can_exclude else ""
                    raise CheckpointError(f"{name}: its sibling {sibling} is missing: fetch it{way_on}")

"""Decides, for paths, folders and repos, whether they hold a patch or a checkpoint, and which files a patch has (spec sections 5 and 9)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

from ckptdiff.errors import CheckpointError
from ckptdiff.format.index import INDEX_NAME
from ckptdiff.format.patch_file import METADATA_KEY, is_patch_header
from ckptdiff.format.safetensors import MAX_HEADER, read_header
from ckptdiff.hub.ids import parse_id
from ckptdiff.hub.repo import RemoteSource, Repo, open_repo
from ckptdiff.io.folder import list_store
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.places import Place, is_file, open_file, place_of
from ckptdiff.io.source import LocalFile, WeightSource, read_bytes
from ckptdiff.io.store_path import StorePath, store_path


def patch_members(paths: Collection[str]) -> list[str]:
    """The paths, among those of a folder or repo, that a patch would have.

    If there is an index, it and all files that it may list; otherwise the only weight file, or the only one under ``patch/`` (where
    `push` puts a lone patch file), which may be a patch file; otherwise none.
    """
    if INDEX_NAME in paths:
        return [path for path in paths if path == INDEX_NAME or path.startswith(("patch/", "files/"))]
    weights = [path for path in paths if path.endswith(".safetensors")]
    candidates = [path for path in weights if path.startswith("patch/")] or weights
    return candidates if len(candidates) == 1 else []


def is_patch_repo(repo: Repo) -> bool:
    """Whether a repo, or the folder or file of it that an id names, is a patch; reads at most one header.

    Raises:
        HubError: that header cannot be read.
    """
    members = list(repo.files) if repo.is_file else patch_members(repo.files)
    if not repo.is_file and (INDEX_NAME in members or not members):
        return bool(members)
    return _is_patch_source(LocalFile(repo.cache / members[0]) if repo.cache else RemoteSource(repo, members[0]))


def is_patch_folder(files: Mapping[str, Place]) -> bool:
    """Whether a folder, here or in a store, that has these files by their paths in it, is a patch."""
    members = patch_members(files)
    if INDEX_NAME in members or not members:
        return bool(members)
    return is_file(files[members[0]]) and _is_patch_source(open_file(files[members[0]]))


def is_patch(path: str | os.PathLike[str]) -> bool:
    """Whether a path, URL or id is a patch file or folder, not a checkpoint.

    Raises:
        CheckpointError: the path does not exist, or cannot be read. HubError: the repo does not exist, or cannot be read. StoreError: the
            store cannot be read.
    """
    hub_id = parse_id(path)
    if hub_id is not None:
        return is_patch_repo(open_repo(hub_id))
    place = place_of(path)
    if isinstance(place, StorePath):
        files = list_store(place).files
        return _is_patch_source(open_file(files[""])) if "" in files else is_patch_folder(files)
    check_exists(place)
    return (
        is_patch_folder({name: place / name for name in files_to_examine(place)})
        if os.path.isdir(place)
        else _is_patch_source(LocalFile(place))
    )


def files_to_examine(folder: Path) -> list[str]:
    """The paths of a local folder that :func:`patch_members` needs to know: its index alone if it has one, else all weight files."""
    if (folder / INDEX_NAME).is_file():
        return [INDEX_NAME]
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def check_exists(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError if a local path does not exist. Ids on the Hub and URLs pass: they are looked up when they are opened."""
    if parse_id(path) is None and store_path(path) is None and not os.path.exists(place_of(path)):
        raise CheckpointError(f"{path}: no such file or folder{if_gone(path)}")


def patch_error(path: str | os.PathLike[str]) -> CheckpointError:
    """The error of a patch that was given in place of a checkpoint."""
    command = f"pull {path}" if parse_id(path) is not None else f"apply BASE {path}"
    return CheckpointError(f"{path}: is a ckptdiff patch, not a checkpoint; rebuild its target with: ckptdiff {command} -o OUT")


def _is_patch_source(source: WeightSource | RemoteSource) -> bool:
    with closing(source):
        try:
            return _may_be_patch(source) and is_patch_header(read_header(source))
        except ValueError:
            return False


def _may_be_patch(source: WeightSource | RemoteSource) -> bool:
    """Whether a header has to be parsed to tell: unless it is of a local file, and its text without the key of a patch's metadata."""
    if not isinstance(source, LocalFile) or source.size < 8:
        return True
    size = int.from_bytes(read_bytes(source, 0, 8), "little")
    if size > min(source.size - 8, MAX_HEADER):
        return True
    text = read_bytes(source, 8, size)
    return METADATA_KEY.encode() in text or b"\\" in text  # which may spell it in another way

"""What is a patch (spec sections 5 and 9), and which files make it: the one room that decides, for paths, folders and repos."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from ckptdiff.errors import CheckpointError
from ckptdiff.format.index import INDEX_NAME
from ckptdiff.format.patch_file import is_patch_header
from ckptdiff.format.safetensors import read_header
from ckptdiff.hub.ids import parse_id
from ckptdiff.hub.repo import RemoteSource, Repo, open_repo
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.source import LocalFile


def patch_members(paths: Collection[str]) -> list[str]:
    """Of a folder's or repo's files those that make a patch, if it is one.

    Where there is an index, it and what may belong to it; else the one weight file that may be a lone patch file, which `push` puts
    under ``patch/``; else none.
    """
    if INDEX_NAME in paths:
        return [path for path in paths if path == INDEX_NAME or path.startswith(("patch/", "files/"))]
    weights = [path for path in paths if path.endswith(".safetensors")]
    found = [path for path in weights if path.startswith("patch/")] or weights
    return found if len(found) == 1 else []


def is_patch_repo(repo: Repo) -> bool:
    """Whether a repo, or the folder or file of it that an id names, is a patch; reads at most one header.

    Raises:
        HubError: that header cannot be read.
    """
    found = list(repo.files) if repo.is_file else patch_members(repo.files)
    if not repo.is_file and (INDEX_NAME in found or not found):
        return bool(found)
    return _is_patch_source(LocalFile(repo.cache / found[0]) if repo.cache else RemoteSource(repo, found[0]))


def is_patch_folder(folder: Path, paths: Collection[str]) -> bool:
    """Whether a folder here, whose files have these paths, is a patch."""
    found = patch_members(paths)
    if INDEX_NAME in found or not found:
        return bool(found)
    return os.path.isfile(folder / found[0]) and _is_patch_source(LocalFile(folder / found[0]))


def is_patch(path: str | os.PathLike[str]) -> bool:
    """Whether a path or id is a patch file or folder, not a checkpoint.

    Raises:
        CheckpointError: there is nothing, or it cannot be read. HubError: the same of the Hub.
    """
    hub_id = parse_id(path)
    if hub_id is not None:
        return is_patch_repo(open_repo(hub_id))
    here = Path(path)
    check_exists(here)
    return is_patch_folder(here, files_to_examine(here)) if here.is_dir() else _is_patch_source(LocalFile(here))


def files_to_examine(folder: Path) -> list[str]:
    """What :func:`patch_members` asks of a folder here: its index alone if it has one, else all its weight files."""
    if (folder / INDEX_NAME).is_file():
        return [INDEX_NAME]
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def check_exists(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError for a path at which there is nothing; ids on the Hub are looked up by those who open them."""
    if parse_id(path) is None and not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder{if_gone(path)}")


def _is_patch_source(source: LocalFile | RemoteSource) -> bool:
    with closing(source):
        try:
            return is_patch_header(read_header(source))
        except ValueError:
            return False

"""The files below a folder, and links that lead out of it; the objects below a URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.errors import CheckpointError, CkptdiffError
from ckptdiff.io.in_place import JOURNAL
from ckptdiff.io.places import Place
from ckptdiff.io.store_path import UNFINISHED, StorePath

REPO_PREFIXES = ("models--", "datasets--", "spaces--")
"""How the names of folders of repos in the Hub's cache begin."""


def blob_sha256(path: Place) -> str | None:
    """The SHA-256 of a file of the Hub's cache as its name there states it; None for any other file.

    The cache names a large file by its SHA-256, and a small one, which Git has, by its shorter Git hash.
    """
    if isinstance(path, StorePath):
        return None
    blob = Path(os.path.realpath(path))
    in_cache = blob.parent.name == "blobs" and blob.parent.parent.name.startswith(REPO_PREFIXES)
    return blob.name if in_cache and re.fullmatch("[0-9a-f]{64}", blob.name) else None


@dataclass(slots=True)
class Listing:
    """What lies below a folder, here or in a store: by path relative to it, with ``/``."""

    files: dict[str, Place] = field(default_factory=dict)
    """Every file, links to files included, and where to open it; sorted by the UTF-8 bytes of the path."""
    outside: dict[str, Path] = field(default_factory=dict)
    """Links that lead out of the folder, and where to. The names of links to folders, which were not listed, end in ``/``.

    Links into the blobs of the Hub's cache, as its snapshots and folders of older clients have, do not count.
    """
    again: dict[str, str] = field(default_factory=dict)
    """Files that are listed a second time, since there is a link to their folder; and their real paths below the folder."""
    skipped: list[str] = field(default_factory=list)
    """Links to folders that were not followed: the link lies in that folder, or behind another link. They end in ``/``."""


def list_folder(folder: Path, *, follow_links: bool = False) -> Listing:
    """List a folder.

    A link to a folder is followed if that lies below this folder too, or if ``follow_links`` is set. No link that lies behind another
    one is followed, so that the walk ends wherever links lead.

    Raises:
        CheckpointError: a name is not UTF-8, or a link that is to be followed leads to a folder that holds this one.
        OSError: a folder cannot be read.
    """
    walk = _Walk(folder, follow_links)
    walk.visit(folder, "", behind_link=False)
    walk.listing.files = dict(sorted(walk.listing.files.items(), key=lambda item: item[0].encode()))
    return walk.listing


def list_store(path: StorePath) -> Listing:
    """List the objects below a URL; where there is an object of that URL itself, that one, whose name is then empty.

    Raises:
        StoreError: the store cannot be read. CheckpointError: there is no such object and none below it, or a run that writes there is not
            finished.
    """
    if path.suffix == ".safetensors" and (alone := path.stat()) is not None:
        return Listing({"": StorePath(path.store, path.key, alone)})
    found = {key: StorePath(path.store, key, row) for key, row in path.store.listing(path.key).items()}
    if path.key in found:
        return Listing({"": found[path.key]})
    prefix = f"{path.key}/" if path.key else ""
    files = {key.removeprefix(prefix): place for key, place in found.items() if key.startswith(prefix)}
    if UNFINISHED in files:
        raise unfinished_error(path)
    if not files:
        raise CheckpointError(f"{path}: no such object, and none below it: check the URL")
    return Listing(dict(sorted(files.items(), key=lambda item: item[0].encode())))


def unfinished_error(path: StorePath) -> CkptdiffError:
    """The error of a folder in a store that was not written to its end."""
    return CheckpointError(
        f"{path}: is not finished: the command that writes it is still running, or was stopped; run that command again, which starts over"
    )


class _Walk:
    """The state of :func:`list_folder`."""

    def __init__(self, folder: Path, follow_links: bool) -> None:
        self.root, self.follow_links, self.listing = Path(os.path.realpath(folder)), follow_links, Listing()
        snapshots = next((parent for parent in (self.root, *self.root.parents) if parent.parent.name == "snapshots"), None)
        self.blobs = snapshots.parent.parent / "blobs" if snapshots else None

    def visit(self, folder: Path, prefix: str, behind_link: bool) -> None:
        """List one folder and those below it; ``prefix`` is its path, with a ``/`` at the end."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == JOURNAL and not prefix:
                    continue  # a leftover; while it is none, nothing opens this folder
                path, name = Path(entry.path), prefix + entry.name
                try:
                    name.encode()
                except UnicodeEncodeError:
                    raise CheckpointError(f"{entry.path!a}: the file's name is not UTF-8: rename it") from None
                if not _is_folder(entry):
                    self._file(path, name, entry.is_symlink() or behind_link)
                elif entry.is_symlink():
                    self._linked_folder(path, name + "/", behind_link)
                else:
                    self.visit(path, name + "/", behind_link)

    def _file(self, path: Path, name: str, linked: bool) -> None:
        """List a file; ``linked``: it is a link, or lies behind one."""
        self.listing.files[name] = path
        if not linked:
            return
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.root):
            if not self._is_blob(path, real):
                self.listing.outside[name] = real
        elif not path.is_symlink():
            self.listing.again[name] = real.relative_to(self.root).as_posix()

    def _is_blob(self, path: Path, real: Path) -> bool:
        """Whether a link leads to a blob of the Hub's cache; a blob may itself be a link, into a store that repos share."""
        first = Path(os.path.normpath(os.path.join(os.path.realpath(path.parent), os.readlink(path)))) if path.is_symlink() else real
        return any(
            place.parent == self.blobs or (place.parent.name == "blobs" and place.parent.parent.name.startswith(REPO_PREFIXES))
            for place in (first, real)
        )

    def _linked_folder(self, path: Path, name: str, behind_link: bool) -> None:
        """List a link to a folder, and follow it if it is to be followed."""
        real = Path(os.path.realpath(path))
        inside = real.is_relative_to(self.root)
        if behind_link or (inside and Path(os.path.realpath(path.parent)).is_relative_to(real)):
            self.listing.skipped.append(name)
        elif inside:
            self.visit(path, name, behind_link=True)
        else:
            self.listing.outside[name] = real
            if self.follow_links:
                if self.root.is_relative_to(real):
                    raise CheckpointError(f"{path}: a link to a folder that holds the one it is in: remove it")
                self.visit(path, name, behind_link=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads back to itself: it counts as a file, and whoever opens it finds that there is none

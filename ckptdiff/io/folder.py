"""The files below a folder, and the links that lead out of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.errors import CheckpointError

REPOS = ("models--", "datasets--", "spaces--")
"""What folders of repos in the Hub's cache are called."""


@dataclass(slots=True)
class Listing:
    """What lies below a folder, by relative path with ``/``, sorted by the path's UTF-8 bytes.

    Attributes:
        files: every file, links included, and where to open it.
        outside: where links lead that leave the folder: of ``files``, and of folders, which were not looked into and end in ``/``. The
            links into the blobs of the Hub's cache, as its snapshots and folders of older clients have, do not count.
        again: the real path, below the folder too, of a file that is there once more by a link to its folder.
        skipped: links to folders that were not followed: to one that the link lies in, or met behind another link. They end in ``/``.
    """

    files: dict[str, Path] = field(default_factory=dict)
    outside: dict[str, Path] = field(default_factory=dict)
    again: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def list_folder(folder: Path, *, follow_links: bool = False) -> Listing:
    """List a folder.

    A link to a folder is followed where that lies below this one too, or with ``follow_links``; but no link that lies behind it, so that
    the walk ends however links are laid.

    Raises:
        CheckpointError: a name is not UTF-8, or a link leads to a folder that holds this one and is to be followed.
        OSError: a folder cannot be read.
    """
    walk = _Walk(folder, follow_links)
    walk.visit(folder, "", behind_link=False)
    found = walk.found
    found.files = dict(sorted(found.files.items(), key=lambda item: item[0].encode()))
    return found


class _Walk:
    def __init__(self, folder: Path, follow_links: bool) -> None:
        self.root, self.follow_links, self.found = Path(os.path.realpath(folder)), follow_links, Listing()
        snapshots = next((parent for parent in (self.root, *self.root.parents) if parent.parent.name == "snapshots"), None)
        self.blobs = snapshots.parent.parent / "blobs" if snapshots else None

    def visit(self, folder: Path, prefix: str, behind_link: bool) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
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
        self.found.files[name] = path
        if not linked:
            return
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.root):
            if not self._is_blob(path, real):
                self.found.outside[name] = real
        elif not path.is_symlink():
            self.found.again[name] = real.relative_to(self.root).as_posix()

    def _is_blob(self, path: Path, real: Path) -> bool:
        """Whether a link leads to a blob of the Hub's cache, which may be a link into a store again."""
        first = Path(os.path.normpath(os.path.join(os.path.realpath(path.parent), os.readlink(path)))) if path.is_symlink() else real
        return any(
            place.parent == self.blobs or (place.parent.name == "blobs" and place.parent.parent.name.startswith(REPOS))
            for place in (first, real)
        )

    def _linked_folder(self, path: Path, name: str, behind_link: bool) -> None:
        real = Path(os.path.realpath(path))
        inside = real.is_relative_to(self.root)
        if behind_link or (inside and Path(os.path.realpath(path.parent)).is_relative_to(real)):
            self.found.skipped.append(name)
        elif inside:
            self.visit(path, name, behind_link=True)
        else:
            self.found.outside[name] = real
            if self.follow_links:
                if self.root.is_relative_to(real):
                    raise CheckpointError(f"{path}: a link to a folder that holds this one; remove it")
                self.visit(path, name, behind_link=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads round in a circle: whoever wants the file says that it is not there

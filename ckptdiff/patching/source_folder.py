"""Where the files of a patch lie: a folder on this machine, in a store, or on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ckptdiff.format.index import OtherFile
from ckptdiff.io.places import Place, open_file, size_of
from ckptdiff.io.source import ByteSource, LocalFile, WeightSource
from ckptdiff.io.store_path import StorePath


class ClosableSource(ByteSource, Protocol):
    """A :class:`ByteSource` that must be closed."""

    def close(self) -> None: ...


class SourceFolder(Protocol):
    """The folder with the files of a patch, on this machine, in a store or on the Hub."""

    name: str

    @property
    def path(self) -> Place:
        """The folder's path."""

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if there is none."""

    def open(self, path: str) -> ClosableSource: ...


class LocalFolder:
    """A :class:`SourceFolder` on this machine."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = str(path), path

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if there is none."""
        file = self.path / path
        return file.stat().st_size if os.path.isfile(file) else None

    def open(self, path: str) -> LocalFile:
        return LocalFile(self.path / path)


class ListedFolder:
    """A :class:`SourceFolder` in a store, whose objects are listed; an object alone has the path ``""``."""

    def __init__(self, path: StorePath, files: Mapping[str, Place]) -> None:
        self.name, self.path, self._files = str(path), path, files

    def size(self, path: str) -> int | None:
        """Size of an object in bytes; None if there is none."""
        return size_of(self._files[path]) if path in self._files else None

    def open(self, path: str) -> WeightSource:
        """Open an object, to be read by ranges."""
        return open_file(self._files.get(path) or self.path / path)


@dataclass(frozen=True, slots=True)
class Frames:
    """The stored forms of a patch folder's files without weights: they can be opened once the patch is closed, too."""

    path: Place
    """The patch's path."""
    folder: SourceFolder

    def where(self, other: OtherFile) -> str:
        """What messages call the stored form of a file."""
        return f"{self.path}/{other.stored_path}"

    @contextmanager
    def open_other(self, other: OtherFile) -> Iterator[ByteSource]:
        """Open the stored form of a file; raises CheckpointError if it cannot be opened."""
        with closing(self.folder.open(other.stored_path)) as source:
            yield source

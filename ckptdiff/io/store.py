"""Stores of named objects, which chains lie in (spec/chain-v1.md, 1): what a store does, and the store that is a folder."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from ckptdiff.errors import StoreError, cut
from ckptdiff.io.durable import link_new, move_new, sync
from ckptdiff.io.leftovers import RESULT
from ckptdiff.io.work_folder import work_folder
from ckptdiff.machine import machine_error

READ_AT_ONCE = 1 << 23
"""Bytes of an object that are read at once where it is copied or compared."""
PUT_PREFIX = ".put.ckptdiff-"
"""How the names begin of the work folders in which a folder's objects are written before they are put."""
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


class Store(Protocol):
    """Named objects. A name has parts with ``/`` between them. Every method raises StoreError where the store fails."""

    name: str
    """Its path or URL, for messages."""

    def read(self, key: str, start: int, size: int) -> bytes:
        """``size`` bytes of an object from ``start`` on; it is an error if it has fewer, or is not there."""

    def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""

    def objects(self, folder: str) -> dict[str, int]:
        """Names and sizes of all objects whose names begin with ``folder`` and a slash, or of all (``""``), in order of their names.

        Names of which a part begins with a dot are not listed: they are the store's own.
        """

    def put(self, key: str, data: bytes) -> bool:
        """Make an object, seen whole or not at all. Returns False, and leaves it, if there is one of this name with other bytes."""

    def put_file(self, key: str, path: Path) -> bool:
        """As :meth:`put`, with the bytes of a file, which must not be changed afterwards."""

    def replace(self, key: str, data: bytes) -> None:
        """Make an object, or replace it, seen whole at all times.

        It is not flushed: only a hint is ever replaced, which a machine that stops may lose.
        """

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""

    def path(self, key: str) -> Path | None:
        """The file or folder on this machine that has the object, or the objects below the name; None for a store elsewhere."""


def read_object(store: Store, key: str, most: int) -> bytes | None:
    """A whole object; None if there is none.

    Raises:
        StoreError: it has more than ``most`` bytes, or cannot be read.
    """
    size = store.size(key)
    if size is None:
        return None
    if size > most:
        raise StoreError(f"{store.name}/{key}: has {size} bytes, expected at most {most}: it is not what its name says")
    return store.read(key, 0, size)


def fetch(store: Store, key: str, size: int, out: Path) -> None:
    """Copy an object of ``size`` bytes to a new file; raises StoreError if it cannot be read, OSError if the file cannot be written."""
    with open(out, "xb") as file:
        for start in range(0, size, READ_AT_ONCE):
            file.write(store.read(key, start, min(READ_AT_ONCE, size - start)))


def holds(store: Store, key: str, content: bytes | Path) -> bool:
    """Whether an object is there and has exactly these bytes, or those of this file; they are compared, not trusted by size."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if store.size(key) != size:
        return False
    if isinstance(content, bytes):
        return store.read(key, 0, size) == content
    with open(content, "rb") as file:
        starts = range(0, size, READ_AT_ONCE)
        return all(store.read(key, start, min(READ_AT_ONCE, size - start)) == file.read(READ_AT_ONCE) for start in starts)


class FolderStore:
    """A folder on this machine: objects are its files. They are written and flushed elsewhere in it first, and then linked."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def path(self, key: str) -> Path:
        return self.root / key

    def read(self, key: str, start: int, size: int) -> bytes:
        with self._explained(key, "read"), open(self.root / key, "rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) != size:
            raise StoreError(f"{self.name}/{key}: ends at byte {start + len(data)}, expected {start + size} or more: truncated?")
        return data

    def size(self, key: str) -> int | None:
        with self._explained(key, "read"):
            try:
                status = os.stat(f"{self.name}/{key}")
            except (FileNotFoundError, NotADirectoryError):
                return None
            return status.st_size if stat.S_ISREG(status.st_mode) else None

    def objects(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        left = [f"{folder}/" if folder else ""]
        with self._explained(folder, "listed"):
            while left:
                prefix = left.pop()
                try:
                    with os.scandir(self.root / prefix) as entries:
                        for entry in entries:
                            if entry.name.startswith("."):
                                continue
                            if entry.is_dir(follow_symlinks=False):
                                left.append(f"{prefix}{entry.name}/")
                            elif (size := self.size(prefix + entry.name)) is not None:
                                found[prefix + entry.name] = size
                except (FileNotFoundError, NotADirectoryError):  # deleted just now, or there is none
                    continue
        return dict(sorted(found.items()))

    def put(self, key: str, data: bytes) -> bool:
        path = self.root / key
        with self._explained(key, "written"):
            self._make_folders(path.parent)
            try:
                if link_new(path, data):
                    sync(path.parent)
                    return True
            except FileExistsError:
                return holds(self, key, data)
            with self._written(key, data) as file:
                return self._place(file, key) or holds(self, key, data)

    def put_file(self, key: str, path: Path) -> bool:
        with self._explained(key, "written"):
            self._make_folders((self.root / key).parent)
            sync(path)
            try:
                os.link(path, self.root / key)
            except FileExistsError:
                return holds(self, key, path)
            except OSError:  # another file system, or one without hard links
                with self._written(key, path) as file:
                    return self._place(file, key) or holds(self, key, path)
            sync((self.root / key).parent)
            return True

    def replace(self, key: str, data: bytes) -> None:
        path = self.root / key
        new = path.with_name(f".{path.name}.new")
        with self._explained(key, "written"):
            with suppress(FileExistsError, FileNotFoundError):  # another process replaces it now
                new.unlink(missing_ok=True)
                if link_new(new, data, flush=False):
                    os.replace(new, path)
                    return
            with self._written(key, data) as file:
                os.replace(file, path)

    def delete(self, key: str) -> None:
        with self._explained(key, "deleted"):
            path = self.root / key
            path.unlink(missing_ok=True)
            while path.parent != self.root and path.parent.is_dir():
                path = path.parent
                try:
                    path.rmdir()
                except OSError:  # it is not empty
                    break
            sync(path.parent if path.parent.is_dir() else self.root)

    @contextmanager
    def _written(self, key: str, content: bytes | Path) -> Iterator[Path]:
        """A flushed file in this folder that has the content, until the block ends; and the folders that the object lies in."""
        self._make_folders((self.root / key).parent)
        with work_folder(self.root, PUT_PREFIX) as work:
            file = work.path / RESULT
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                shutil.copyfile(content, file)
            sync(file)
            yield file

    def _place(self, file: Path, key: str) -> bool:
        """Move a file to its place, and flush that; False if there is something."""
        try:
            move_new(file, self.root / key)
        except FileExistsError:
            return False
        sync((self.root / key).parent)
        return True

    def _make_folders(self, folder: Path) -> None:
        """Make a folder of the store, and those above it, of which that of the store itself must lie in one that is there."""
        if not self.root.is_dir() and not self.root.absolute().parent.is_dir():
            raise StoreError(f"{self.root.absolute().parent}: no such folder; create it first")
        missing = [place for place in (folder, *folder.parents) if not place.is_dir() and place.is_relative_to(self.root)]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            sync(place.absolute().parent)

    @contextmanager
    def _explained(self, key: str, what: str) -> Iterator[None]:
        """Turn an OSError into a StoreError that says what to do, or a lack of the machine into a ResourceError."""
        try:
            yield
        except OSError as error:
            lacking = machine_error(error)
            if lacking is not None:
                raise lacking from None
            where = f"{self.name}/{cut(key)}" if key else self.name
            if isinstance(error, FileNotFoundError) and what == "read":
                raise StoreError(f"{where}: is missing: was it removed meanwhile? run again") from None
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                advice = ": the disk is full; free some space, and run again"
            else:
                advice = f": {error.strerror or error}" + (": get the right to write there" if error.errno in READ_ONLY else "")
            raise StoreError(f"{where}: cannot be {what}{advice}") from None

"""Stores by their path or URL: folders, and what fsspec has a file system for (``s3://``, ``memory://``, ...)."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptdiff.errors import CkptdiffError, StoreError, cut
from ckptdiff.io.store import FolderStore, Store, holds
from ckptdiff.lazy import fsspec
from ckptdiff.machine import machine_error
from ckptdiff.obtaining import how_to_get

URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
LOCAL = ("file", "local")
"""Schemes of folders on this machine."""
SECRET = re.compile(r"(?<=://)[^/@]*@")
"""What may be a name and a password in a URL."""


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether a text has the form of a URL of a store; a path on this machine has not."""
    return URL.fullmatch(os.fspath(text)) is not None


def open_store(where: str | os.PathLike[str]) -> Store:
    """The store at a path, or at a URL that fsspec knows. Nothing is read, made or checked yet; credentials are the store's own.

    Raises:
        StoreError: there is no such kind of store, or its library is not installed.
    """
    text = os.fspath(where)
    match = URL.fullmatch(text)
    if match is None:
        return FolderStore(Path(text))
    if match["scheme"] in LOCAL:
        return FolderStore(Path(match["rest"]))
    if match["scheme"] == "hf":
        raise StoreError(f"{text}: the Hub cannot create files only where there are none, which a chain needs: use a folder or s3://")
    return FsspecStore(text)


class FsspecStore:
    """Objects below a URL. Retries are those of the file system's library.

    Objects are made by its ``mode="create"``, which is one step on S3, Google's storage and in memory. A file system that does not know it
    is asked first whether there is such an object, so that two publishers at one moment may not see each other.
    """

    def __init__(self, url: str) -> None:
        self.name = SECRET.sub("***@", url.rstrip("/"))
        with self._explained("", "opened"):
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._root = str(root).rstrip("/")

    def path(self, key: str) -> None:
        """None: its objects are not on this machine."""

    def read(self, key: str, start: int, size: int) -> bytes:
        if size == 0:
            return b""
        with self._explained(key, "read"):
            data = bytes(self._fs.cat_file(self._at(key), start=start, end=start + size))
        if len(data) != size:
            raise StoreError(f"{self.name}/{key}: gave {len(data)} bytes from {start} on, expected {size}: truncated?")
        return data

    def size(self, key: str) -> int | None:
        with self._explained(key, "read"):
            try:
                found = self._fs.info(self._at(key))
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

    def objects(self, folder: str) -> dict[str, int]:
        with self._explained(folder, "listed"):
            try:
                rows = self._fs.find(self._at(folder) if folder else self._root, detail=True)
            except FileNotFoundError:
                return {}
            sizes = {name[len(self._root) :].strip("/"): int(row["size"]) for name, row in rows.items() if row["type"] == "file"}
        return {key: sizes[key] for key in sorted(sizes) if key and not any(part.startswith(".") for part in key.split("/"))}

    def put(self, key: str, data: bytes) -> bool:
        return self._create(key, self._fs.pipe_file, (self._at(key), data), data)

    def put_file(self, key: str, path: Path) -> bool:
        return self._create(key, self._fs.put_file, (str(path), self._at(key)), path)

    def replace(self, key: str, data: bytes) -> None:
        with self._explained(key, "written"):
            self._fs.pipe_file(self._at(key), data)

    def delete(self, key: str) -> None:
        with self._explained(key, "deleted"):
            try:
                self._fs.rm_file(self._at(key))
            except FileNotFoundError:
                pass

    def _create(self, key: str, call: Callable[..., Any], arguments: tuple[Any, ...], content: bytes | Path) -> bool:
        """Make an object. If there is one, it may be this one: the answer to a first try may have been lost."""
        with self._explained(key, "written"):
            try:
                if "mode" in inspect.signature(call).parameters:
                    call(*arguments, mode="create")
                    return True
                if not self._fs.exists(self._at(key)):
                    call(*arguments)
                    return True
            except FileExistsError:
                pass
        return holds(self, key, content)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _explained(self, key: str, what: str) -> Iterator[None]:
        """Turn any error of the library into a StoreError that says what to do, or a lack of the machine into a ResourceError."""
        try:
            yield
        except CkptdiffError:
            raise
        except ImportError as error:
            advice = how_to_get("s3") if self.name.startswith("s3") else "install what it names"
            raise StoreError(f"{self.name}: {cut(error)}: {advice}") from None
        except Exception as error:
            lacking = machine_error(error)
            if lacking is not None:
                raise lacking from None
            where = f"{self.name}/{key}" if key else self.name
            raise StoreError(f"{where}: cannot be {what}: {_cause(error)}: {_advice(error, what)}") from None


def _cause(error: Exception) -> str:
    """What an error says, in one line, without passwords."""
    return SECRET.sub("***@", cut(" ".join(str(error).split()) or type(error).__name__))


def _advice(error: Exception, what: str) -> str:
    """What to do about an error."""
    if isinstance(error, FileNotFoundError):
        return "is there such a bucket?" if what != "read" else "was it removed meanwhile? run again"
    if isinstance(error, PermissionError) or "credentials" in str(error).lower():
        return "check the store's credentials, and the rights that they give"
    if isinstance(error, ValueError):
        return "check the URL"
    return "the store may be busy or out of reach: run again"

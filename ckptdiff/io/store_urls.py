"""Stores by their path or URL: folders, and what fsspec has a file system for (``s3://``, ``memory://``, ...)."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ckptdiff.errors import CkptdiffError, StoreError, cut
from ckptdiff.io.store import FolderStore, Store, holds
from ckptdiff.io.store_traffic import TRAFFIC
from ckptdiff.lazy import fsspec
from ckptdiff.machine import machine_error
from ckptdiff.obtaining import how_to_get

URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
LOCAL = ("file", "local")
"""Schemes of folders on this machine."""
SECRET = re.compile(r"(?<=://)[^/@]*@")
"""What may be a name and a password in a URL."""
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call the value that changes with an object's bytes; the first that is there counts."""
LISTED_AT_ONCE = 1000
"""Objects that S3 lists in one request."""


class Stored(NamedTuple):
    """What a store says of an object."""

    size: int
    """Bytes."""
    version: str
    """Another one once the object is written again: its ETag or the like, or the time; empty where the store states neither."""


def _stored(row: dict[str, Any]) -> Stored:
    value = next((row[name] for name in VERSION_FIELDS if row.get(name)), "")
    moment = value.timestamp() if isinstance(value, datetime) else value  # some file systems give the one in listings, the other alone
    return Stored(int(row["size"]), str(moment).strip('"'))


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


def no_check() -> None:
    """What is called before an object is made, unless a command has more to say."""


class FsspecStore:
    """Objects below a URL. Retries are those of the file system's library.

    Objects are made by its ``mode="create"``, which is one step on S3, Google's storage and in memory. A file system that does not know it
    is asked first whether there is such an object, so that two publishers at one moment may not see each other.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = SECRET.sub("***@", self.url)
        with self.explained("", "opened"):
            self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._root = str(root).rstrip("/")
        self.made = dict[str, str]()
        """Names of the objects that this run has made here, or has begun to, and their versions (:class:`Stored`)."""
        self.before_making: Callable[[], None] = no_check
        """Called before an object is made that a :class:`~ckptdiff.io.store_upload.StoreWriter` has written; may raise an error."""

    def path(self, key: str) -> None:
        """None: its objects are not on this machine."""

    def read(self, key: str, start: int, size: int) -> bytes:
        if size == 0:
            return b""
        with self.explained(key, "read"):
            data = bytes(self.fs.cat_file(self.at(key), start=start, end=start + size))
        TRAFFIC.add(requests=1, read=len(data))
        if len(data) != size:
            raise StoreError(f"{self.name}/{key}: gave {len(data)} bytes from {start} on, expected {size}: truncated?")
        return data

    def size(self, key: str) -> int | None:
        found = self.stat(key)
        return found.size if found is not None else None

    def stat(self, key: str) -> Stored | None:
        """What the store says of an object; None if there is none."""
        with self.explained(key, "read"):
            TRAFFIC.add(requests=1)
            try:
                found = self.fs.info(self.at(key))
            except FileNotFoundError:
                return None
            return _stored(found) if found["type"] == "file" else None

    def objects(self, folder: str) -> dict[str, int]:
        found = self.listing(folder)
        return {key: row.size for key, row in found.items() if key and not any(part.startswith(".") for part in key.split("/"))}

    def listing(self, folder: str = "") -> dict[str, Stored]:
        """As :meth:`objects`, with all that the store says, and all names; ``""`` is that of what the URL itself names."""
        with self.explained(folder, "listed"):
            try:
                rows = self.fs.find(self.at(folder), detail=True)
            except FileNotFoundError:
                rows = {}
            TRAFFIC.add(requests=1 + len(rows) // LISTED_AT_ONCE)
            found = {name[len(self._root) :].strip("/"): _stored(row) for name, row in rows.items() if row["type"] == "file"}
        return {key: found[key] for key in sorted(found)}

    def put(self, key: str, data: bytes) -> bool:
        return self._create(key, self.fs.pipe_file, (self.at(key), data), data)

    def put_file(self, key: str, path: Path) -> bool:
        return self._create(key, self.fs.put_file, (str(path), self.at(key)), path)

    def replace(self, key: str, data: bytes) -> None:
        with self.explained(key, "written"):
            self.fs.pipe_file(self.at(key), data)
        TRAFFIC.add(requests=1, written=len(data))

    def delete(self, key: str) -> None:
        with self.explained(key, "deleted"):
            TRAFFIC.add(requests=1)
            try:
                self.fs.rm_file(self.at(key))
            except FileNotFoundError:
                pass

    def _create(self, key: str, call: Callable[..., Any], arguments: tuple[Any, ...], content: bytes | Path) -> bool:
        """Make an object. If there is one, it may be this one: the answer to a first try may have been lost."""
        TRAFFIC.add(requests=1, written=len(content) if isinstance(content, bytes) else content.stat().st_size)
        with self.explained(key, "written"):
            try:
                if "mode" in inspect.signature(call).parameters:
                    call(*arguments, mode="create")
                    return True
                if not self.fs.exists(self.at(key)):
                    call(*arguments)
                    return True
            except FileExistsError:
                pass
        return holds(self, key, content)

    def at(self, key: str) -> str:
        """What the file system calls an object."""
        return f"{self._root}/{key}" if key else self._root

    @contextmanager
    def explained(self, key: str, what: str) -> Iterator[None]:
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
    if isinstance(error, FileExistsError):
        return "another command has written it meanwhile: run again once no other one writes there"
    if isinstance(error, PermissionError) or "credentials" in str(error).lower():
        return "check the store's credentials, and the rights that they give"
    if isinstance(error, ValueError):
        return "check the URL"
    return "the store may be busy or out of reach: run again"

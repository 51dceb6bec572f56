"""Paths of objects in a store, which stand where a path of this machine may stand too."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ckptdiff.io.store_urls import LOCAL, URL, FsspecStore, Stored

UNFINISHED = ".ckptdiff-unfinished"
"""Name of the object that a folder has from before its first object is written until after its last one is."""


@dataclass(frozen=True, slots=True)
class StorePath:
    """An object of a store, or the objects below a name. As text it is a URL, in which names and passwords are masked."""

    store: FsspecStore = field(compare=False)
    key: str = ""
    """Its name below the URL of the store; empty for what that URL names itself."""
    stored: Stored | None = field(default=None, compare=False)
    """What a listing has said of the object; None if it was not listed."""
    url: str = field(init=False, repr=False, default="")
    """The whole URL, without a mask: it is no text for people."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", f"{self.store.url}/{self.key}" if self.key else self.store.url)

    def __str__(self) -> str:
        return f"{self.store.name}/{self.key}" if self.key else self.store.name

    def __fspath__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.store, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return os.path.splitext(self.name)[1]

    def stat(self) -> Stored | None:
        """What the store says of the object now; None if there is none. Raises StoreError."""
        return self.store.stat(self.key)

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the object; raises StoreError if it ends before."""
        return self.store.read(self.key, start, size)

    def holds(self, other: StorePath) -> bool:
        """Whether another path is this one, or lies below it."""
        return other.url == self.url or other.url.startswith(f"{self.url}/")


def store_path(text: str | os.PathLike[str]) -> StorePath | None:
    """The path in a store that a text is the URL of; None for a path of this machine, and for an id on the Hub.

    Raises:
        StoreError: there is no such kind of store, or its library is not installed.
    """
    if isinstance(text, StorePath):
        return text
    match = URL.fullmatch(os.fspath(text))
    if match is None or match["scheme"] in (*LOCAL, "hf"):
        return None
    return StorePath(FsspecStore(os.fspath(text)))

"""Places of files: paths of this machine and of stores, which are read, listed and told from each other by the same functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ckptdiff.errors import CheckpointError
from ckptdiff.io.source import LocalFile, WeightSource, read_bytes
from ckptdiff.io.store_file import StoreFile
from ckptdiff.io.store_path import StorePath, store_path
from ckptdiff.io.store_upload import StoreWriter
from ckptdiff.io.store_urls import LOCAL, URL

Place = Path | StorePath


def place_of(text: str | os.PathLike[str]) -> Place:
    """The place that a path or URL names; raises StoreError if there is no such kind of store."""
    found = store_path(text)
    if found is not None:
        return found
    match = URL.fullmatch(os.fspath(text))
    return Path(match["rest"]) if match is not None and match["scheme"] in LOCAL else Path(text)


def is_in_store(text: str | os.PathLike[str]) -> bool:
    """Whether a path or URL leads to a store, and not to this machine or to the Hub; raises StoreError as :func:`place_of`."""
    return isinstance(place_of(text), StorePath)


def local_path(text: str | os.PathLike[str], what: str) -> Path:
    """A path of this machine; ``what``: begins the message that refuses the URL of a store.

    Raises:
        CheckpointError: it is the URL of a store.
    """
    place = place_of(text)
    if isinstance(place, StorePath):
        raise CheckpointError(f"{place}: is the URL of a store: {what} on this machine alone: give a path")
    return place


def open_file(place: Place) -> WeightSource:
    """Open a file; raises CheckpointError if it cannot be read, StoreError if its store cannot."""
    return LocalFile(place) if isinstance(place, Path) else StoreFile(place)


def is_file(place: Place) -> bool:
    """Whether there is a regular file, or an object; what a listing has found is not asked for again."""
    if isinstance(place, Path):
        return os.path.isfile(place)
    return (place.stored or place.stat()) is not None


def is_there(place: Place) -> bool:
    """Whether there is something, of any kind."""
    return os.path.exists(place) if isinstance(place, Path) else is_file(place)


def size_of(place: Place) -> int:
    """Bytes of a file; raises OSError or CheckpointError if there is none."""
    if isinstance(place, Path):
        return place.stat().st_size
    found = place.stored or place.stat()
    if found is None:
        raise CheckpointError(f"{place}: no such object: check the URL, or fetch what is missing")
    return found.size


@contextmanager
def create_file(place: Place, size: int = 0) -> Iterator[BinaryIO | StoreWriter]:
    """A new file, or object, to write from its beginning on, and the folders that it lies in.

    An object is there once the block has ended; after an error nothing of it is left.

    Args:
        place: where.
        size: about how many bytes it will have.

    Raises:
        OSError, StoreError: it cannot be written.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "xb") as file:
            yield file
        return
    writer = StoreWriter(place, size)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abort()
        raise


def read_file(place: Place) -> bytes:
    """All bytes of a file, which the caller knows to be small; raises as :func:`open_file`."""
    file = open_file(place)
    try:
        return read_bytes(file, 0, file.size)
    finally:
        file.close()

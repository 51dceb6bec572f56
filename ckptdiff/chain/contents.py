"""What lies behind the names of a chain: patches opened in the store or fetched from it, and steps told by their identity."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckptdiff.chain.history import History, patch_files
from ckptdiff.chain.names import DIGITS, PatchName
from ckptdiff.errors import IntegrityError
from ckptdiff.format.entry import Totals
from ckptdiff.format.index import Index
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.sealed import MAX_INDEX
from ckptdiff.io.parallel import Progress
from ckptdiff.io.places import Place
from ckptdiff.io.store import Store, fetch, read_object
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_urls import FsspecStore
from ckptdiff.patching.output import check_space
from ckptdiff.patching.patch import OpenPatch, open_patch, open_patch_in


class StoreSource:
    """An object as a :class:`~ckptdiff.io.source.ByteSource`."""

    def __init__(self, store: Store, key: str) -> None:
        self.name, self._store, self._key = f"{store.name}/{key}", store, key
        self.size = store.size(key) or 0

    def readinto(self, offset: int, out: npt.NDArray[np.uint8] | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises StoreError if the object ends before, or is not there."""
        view = memoryview(out).cast("B")
        view[:] = self._store.read(self._key, offset, len(view))

    def close(self) -> None:
        """Nothing is held open."""


class StoreFolder:
    """The objects below a name as a :class:`~ckptdiff.patching.patch.SourceFolder`."""

    def __init__(self, store: Store, key: str) -> None:
        self.name, self._store, self._key = f"{store.name}/{key}", store, key
        self.path: Place = StorePath(store, key) if isinstance(store, FsspecStore) else Path(self.name)

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if there is none."""
        return self._store.size(f"{self._key}/{path}")

    def open(self, path: str) -> StoreSource:
        return StoreSource(self._store, f"{self._key}/{path}")


@contextmanager
def open_stored(store: Store, name: PatchName) -> Generator[OpenPatch, None, None]:
    """Open a patch of a chain where it lies, and check that it is what its name says; payloads are not read.

    Raises:
        FormatError, UnsupportedError, IntegrityError: it is broken, or another one. StoreError: it cannot be read.
    """
    local = store.path(name.key)
    folder, _, file = name.key.rpartition("/")
    if local is not None:
        opening = open_patch(local)
    else:
        opening = open_patch_in(StoreFolder(store, folder), file) if name.is_file else open_patch_in(StoreFolder(store, name.key))
    with opening as patch:
        _check_name(store, name, patch.base_identity, patch.target_identity)
        yield patch


@dataclass(frozen=True, slots=True)
class Facts:
    """What a patch of a chain says about itself at its beginning."""

    base_identity: bytes
    target_identity: bytes
    totals: Totals


def facts_of(store: Store, name: PatchName) -> Facts:
    """Read the index of a patch folder, or the beginning of a patch file; raises as :func:`open_stored`."""
    if name.is_file:
        with closing(StoreSource(store, name.key)) as source:
            metadata = PatchFile(source).metadata
            facts = Facts(metadata.base_identity, metadata.target_identity, metadata.totals)
    else:
        index = Index.from_bytes(read_object(store, name.marker, MAX_INDEX) or b"", f"{store.name}/{name.marker}")
        facts = Facts(index.base_identity, index.target_identity, index.totals)
    _check_name(store, name, facts.base_identity, facts.target_identity)
    return facts


def _check_name(store: Store, name: PatchName, base: bytes, target: bytes) -> None:
    found = base.hex()[:DIGITS], target.hex()[:DIGITS]
    if found != (name.base, name.target):
        raise IntegrityError(f"{store.name}/{name.key}: holds a patch from {found[0]} to {found[1]}, which is not what its name says")


@contextmanager
def local_patches(history: History, names: Sequence[PatchName], work: Path, progress: Progress) -> Generator[list[Path], None, None]:
    """Patches of a chain as files and folders of this machine: where they lie, or fetched into a folder until the block ends.

    Raises:
        StoreError: a patch cannot be read. FormatError: the name of an object is not that of a file. OutputError: there is no room.
    """
    store = history.store
    places = [store.path(name.key) for name in names]
    if all(places):
        yield [place for place in places if place is not None]
        return
    total, done = sum(map(history.size, names)), 0
    check_space(work / "fetched", total)
    fetched: list[Path] = []
    for number, name in enumerate(names):
        out = work / f"fetched-{number}{'.safetensors' if name.is_file else ''}"
        fetched.append(out)
        for key in patch_files(history, name):
            path = key.removeprefix(name.key).lstrip("/")
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            fetch(store, key, history.sizes[key], out / path)
            done += history.sizes[key]
            progress("fetching patches", done, max(total, 1))
    yield fetched


def places_of(history: History, identity: bytes) -> list[int]:
    """The places of the steps that have an identity, 16 bytes; the patches of those whose names begin like it are read.

    Raises:
        StoreError: a patch cannot be read. FormatError, IntegrityError: one is broken.
    """
    alike = [k for k, step in enumerate(history.steps) if step.target == identity.hex()[:DIGITS]]
    return [k for k in alike if facts_of(history.store, history.steps[k].name).target_identity == identity]

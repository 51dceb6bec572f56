"""A chain in a repo on the Hub, which is read but never written as a store: a commit is not a create-only put (spec/chain-v1.md, 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ckptdiff.chain.history import History, patch_files
from ckptdiff.chain.names import CHAIN, EPOCHS, HEAD, PatchName, epoch_of
from ckptdiff.errors import StoreError
from ckptdiff.format.index import INDEX_NAME
from ckptdiff.hub.repo import RemoteFile, Repo, download


class ListedStore:
    """A :class:`~ckptdiff.io.store.Store` of which the listing is known already. It cannot be written to.

    Args:
        name: for messages.
        sizes: bytes of each object.
        fetch: the bytes of an object, which is small.
    """

    def __init__(self, name: str, sizes: Mapping[str, int], fetch: Callable[[str], bytes]) -> None:
        self.name, self._sizes, self._fetch = name, sizes, fetch

    def read(self, key: str, start: int, size: int) -> bytes:
        data = self._fetch(key)[start : start + size]
        if len(data) != size:
            raise StoreError(f"{self.name}/{key}: has no {size} bytes from {start} on: truncated?")
        return data

    def size(self, key: str) -> int | None:
        return self._sizes.get(key)

    def objects(self, folder: str) -> dict[str, int]:
        prefix = f"{folder}/" if folder else ""
        found = {key: size for key, size in self._sizes.items() if key.startswith(prefix)}
        return {key: found[key] for key in sorted(found) if not any(part.startswith(".") for part in key.split("/"))}

    def put(self, key: str, data: bytes) -> bool:
        raise self._unwritable()

    def put_file(self, key: str, path: Path) -> bool:
        raise self._unwritable()

    def replace(self, key: str, data: bytes) -> None:
        raise self._unwritable()

    def delete(self, key: str) -> None:
        raise self._unwritable()

    def path(self, key: str) -> None:
        """None: its objects are not on this machine."""

    def _unwritable(self) -> StoreError:
        return StoreError(f"{self.name}: chains on the Hub are written by ckptdiff push alone")


def holds_chain(repo: Repo) -> bool:
    """Whether a repo, or the folder of it that an id names, is a chain."""
    return not repo.is_file and CHAIN in repo.files and INDEX_NAME not in repo.files


def repo_store(repo: Repo) -> ListedStore:
    """The chain in a repo."""
    sizes = {path: file.size for path, file in repo.files.items()}
    return ListedStore(str(repo.pinned), sizes, lambda key: (download(repo, [key]) / key).read_bytes())


def is_blob(file: RemoteFile | None, data: bytes) -> bool:
    """Whether a small file of a repo has these bytes, by the git blob id that the Hub states."""
    return file is not None and file.blob_id == hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


def counting_patches(history: History) -> list[PatchName]:
    """The patches of the steps that count, each step's keyframe first: after any of them what is there is a chain."""
    return [name for step in history.steps for name in (step.keyframe, step.patch) if name is not None]


def in_batches(history: History, names: Iterable[PatchName], wanted: Callable[[str], bool], most: int) -> list[list[str]]:
    """Objects to send or fetch at a time: first the documents that a chain begins with, then whole patches, up to ``most`` a batch or one
    patch; at last the hint. Raises FormatError if one of them is not the name of a file."""
    batches: list[list[str]] = [[]]
    epochs = [key for key in history.store.objects(EPOCHS) if epoch_of(key) is not None]
    groups = [[CHAIN, *epochs], *(patch_files(history, name) for name in names), [HEAD]]
    for group in groups:
        keys = [key for key in group if wanted(key)]
        if batches[-1] and len(batches[-1]) + len(keys) > most:
            batches.append([])
        batches[-1] += keys
    return [batch for batch in batches if batch]

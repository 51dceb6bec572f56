"""Writing to a chain: a publisher takes over, puts patches that are whole once their last object is there, and removes them
(spec/chain-v1.md, 6 and 7)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from ckptdiff.chain.documents import ChainDocument, Head, epoch_bytes
from ckptdiff.chain.names import EPOCHS, HEAD, MAX_EPOCH, PatchName, epoch_key, epoch_of
from ckptdiff.errors import FormatError, IntegrityError, OutputError, StoreError
from ckptdiff.io.signals import held
from ckptdiff.io.store import Store, holds


class ChainWriter:
    """The one who may write to a chain, from when it took over until another one does."""

    def __init__(self, store: Store, chain: ChainDocument, epoch: int) -> None:
        self.store, self.chain, self.epoch = store, chain, epoch

    @classmethod
    def take_over(cls, store: Store, chain: ChainDocument, after: int | None = None) -> ChainWriter:
        """Take over from whoever has written so far, and who can complete no step any more; ``after``: only from this epoch's.

        Raises:
            OutputError: another one takes over at this moment, or has done so too often. StoreError: the store fails.
        """
        epoch = (highest_epoch(store) if after is None else after) + 1
        if epoch > MAX_EPOCH:
            raise OutputError(f"{store.name}: has had {MAX_EPOCH} publishers, the most that there can be: begin another chain")
        if not store.put(epoch_key(epoch), epoch_bytes(chain, epoch, os.urandom(16))):
            raise OutputError(f"{store.name}: another publisher takes over at this moment: run one at a time")
        publisher = cls(store, chain, epoch)
        publisher.check_alone()
        return publisher

    def check_alone(self) -> None:
        """Raise OutputError if another publisher has taken over."""
        highest = highest_epoch(self.store)
        if highest != self.epoch:
            raise OutputError(
                f"{self.store.name}: another publisher has taken over (epoch {highest}, this one has {self.epoch}): run one at a time. "
                "What this one had completed stays"
            )

    def put(self, name: PatchName, patch: Path) -> dict[str, int]:
        """Put a patch file or folder of this machine, what completes it last. Returns the objects' names and sizes.

        If it is interrupted, or fails, before that, what was put is removed, as far as the store still answers.

        Raises:
            OutputError: another publisher has taken over, or other bytes are there. StoreError: the store fails.
        """
        *members, (marker, file) = _objects(name, patch)
        try:
            for key, member in members:
                self._put_file(key, member)
            self.check_alone()
        except BaseException:
            with suppress(StoreError):
                if self.store.size(marker) is None:
                    self.remove([key for key, _ in members], marker)
            raise
        with nullcontext() if name.is_file else held():  # an interrupt leaves the folder whole, or the patch file whole or not there
            self._put_file(marker, file)
        return {key: path.stat().st_size for key, path in (*members, (marker, file))}

    def _put_file(self, key: str, file: Path) -> None:
        if not self.store.put_file(key, file):
            raise self._taken(key)

    def _taken(self, key: str) -> OutputError:
        return OutputError(f"{self.store.name}/{key}: is there already, with other bytes: {_WHO}")

    def put_bytes(self, name: PatchName, data: bytes) -> None:
        """:meth:`put` of the bytes of a patch file."""
        self.check_alone()
        if not self.store.put(name.key, data):
            raise self._taken(name.key)

    def check_stored(self, name: PatchName, patch: Path) -> None:
        """Read a patch back; raises IntegrityError unless the store has the bytes of the one on this machine."""
        for key, file in _objects(name, patch):
            if not holds(self.store, key, file):
                raise IntegrityError(f"{self.store.name}/{key}: does not have the bytes that were put: {_WHO}")

    def put_head(self, head: Head) -> None:
        """Replace ``HEAD.json``, after a look whether this publisher is still alone."""
        self.check_alone()
        self.store.replace(HEAD, head.to_bytes(self.chain))

    def remove(self, keys: Sequence[str], marker: str) -> None:
        """Delete the objects of a patch, that which completes it first."""
        for key in sorted(keys, key=lambda key: key != marker):
            self.store.delete(key)

    def remove_epochs(self) -> None:
        """Delete the documents of epochs before this one."""
        for key in self.store.objects(EPOCHS):
            if (epoch_of(key) or self.epoch) < self.epoch:
                self.store.delete(key)


_WHO = "does anything but ckptdiff write there?"


def highest_epoch(store: Store) -> int:
    """The highest epoch that is listed; 0 if there is none."""
    return max((epoch_of(key) or 0 for key in store.objects(EPOCHS)), default=0)


def _objects(name: PatchName, patch: Path) -> list[tuple[str, Path]]:
    """The objects of a patch on this machine and its files, that which completes it last."""
    if patch.is_file() != name.is_file:
        raise FormatError(f"{patch}: is not a {'file' if name.is_file else 'folder'}, as {name.key} says")
    if name.is_file:
        return [(name.key, patch)]
    files = sorted(file for file in patch.rglob("*") if file.is_file())
    objects = [(f"{name.key}/{file.relative_to(patch).as_posix()}", file) for file in files]
    return sorted(objects, key=lambda item: item[0] == name.marker)

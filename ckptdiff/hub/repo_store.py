"""The files of a repo as objects of a store, which are read by ranges as those of any store are: nothing is kept on this machine."""

from __future__ import annotations

import threading
from typing import Any

from ckptdiff.hub.repo import RemoteSource, Repo
from ckptdiff.io.store_traffic import TRAFFIC
from ckptdiff.io.store_urls import FsspecStore, Stored


class RepoStore(FsspecStore):
    """A repo at one commit, to read from."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.url = self.name = f"hf://{repo.pinned}"
        self._free, self._lock = dict[str, list[RemoteSource]](), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RepoStore, (self.repo,)

    def read(self, key: str, start: int, size: int) -> bytes:
        """Bytes of a file; raises HubError, or CheckpointError if it ends before."""
        with self._lock:
            free = self._free.setdefault(key, [])
            source = free.pop() if free else None
        source = source or RemoteSource(self.repo, key)
        data = bytearray(size)
        source.readinto(start, memoryview(data))
        with self._lock:
            free.append(source)
        TRAFFIC.add(requests=1, read=size)
        return bytes(data)

    def stat(self, key: str) -> Stored | None:
        """Size and commit of a file, which were told when the repo was opened; None if there is none."""
        found = self.repo.files.get(key)
        return None if found is None else Stored(found.size, self.repo.commit)

    def listing(self, folder: str = "") -> dict[str, Stored]:
        """As :meth:`stat`, of all files below a folder."""
        keys = (key for key in self.repo.files if not folder or key.startswith(f"{folder}/"))
        return {key: Stored(self.repo.files[key].size, self.repo.commit) for key in keys}

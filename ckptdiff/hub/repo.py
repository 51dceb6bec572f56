"""Repos on the Hugging Face Hub: an id becomes a commit and its files, files a folder in the cache, or readers of ranges."""

from __future__ import annotations

import glob
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdiff.errors import CheckpointError, HubError
from ckptdiff.format.dtypes import Bytes
from ckptdiff.hub.client import LIBRARY_NAME, client, current_token, is_offline, translate_errors
from ckptdiff.hub.ids import HubId
from ckptdiff.lazy import huggingface_hub

NO_LOCAL_PATH = "no such file or folder here"
"""An id is looked up on the Hub only where no local path has its name: who mistyped a path must be told."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repo: ``sha256`` is known of large files, ``blob_id`` (git's SHA-1) of small ones. From a cache neither is."""

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo at one commit. ``files`` are those below ``folder``, by path relative to it; ``cache``: only what is there.

    ``is_file``: the id names one file, the only one in ``files``.
    """

    id: HubId
    name: str
    commit: str
    folder: str
    files: dict[str, RemoteFile]
    is_file: bool = False
    cache: Path | None = None

    @property
    def pinned(self) -> HubId:
        """The id at this commit."""
        return HubId(self.name, self.commit, self.id.subfolder)

    def inside(self, path: str) -> str:
        """Path in the repo of one of ``files``."""
        return f"{self.folder}/{path}" if self.folder else path


def open_repo(hub_id: HubId) -> Repo:
    """Resolve an id to a commit and its files; offline to what the cache has.

    Raises:
        HubError: there is no such repo or revision, or no access to it, or the Hub cannot be reached.
    """
    if is_offline():
        return _open_cached(hub_id)
    api = client()
    with translate_errors(hub_id, first=f"{NO_LOCAL_PATH}, and "):
        found = api.model_info(hub_id.repo, revision=hub_id.revision)
        entries = list(api.list_repo_tree(found.id, recursive=True, revision=found.sha))
    rows = [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, None if entry.lfs else entry.blob_id)
        for entry in entries
        if isinstance(entry, huggingface_hub.hf_api.RepoFile)
    ]
    return _narrowed(hub_id, found.id, found.sha, rows)


def _narrowed(hub_id: HubId, name: str, commit: str, rows: Iterable[RemoteFile], cache: Path | None = None) -> Repo:
    """The part of a repo that an id names: all of it, a folder, or one file."""
    whole = {row.path: row for row in sorted(rows, key=lambda row: row.path.encode())}
    is_file = hub_id.subfolder in whole
    folder = hub_id.subfolder.rpartition("/")[0] if is_file else hub_id.subfolder
    prefix = f"{folder}/" if folder else ""
    chosen = [row for path, row in whole.items() if (path == hub_id.subfolder if is_file else path.startswith(prefix))]
    files = {row.path.removeprefix(prefix): replace(row, path=row.path.removeprefix(prefix)) for row in chosen}
    if not files:
        raise HubError(f"{hub_id}: there are no files" + (f" in {hub_id.subfolder}" if hub_id.subfolder else " in it"))
    return Repo(hub_id, name, commit, folder, files, is_file, cache / folder if cache else None)


def _open_cached(hub_id: HubId) -> Repo:
    """What the cache has of a repo: of the commit or branch that is asked for, else of the commit that was fetched last."""
    try:
        repos = [repo for repo in huggingface_hub.scan_cache_dir().repos if (repo.repo_id, repo.repo_type) == (hub_id.repo, "model")]
    except huggingface_hub.errors.CacheNotFound:
        repos = []
    revisions = sorted((row for repo in repos for row in repo.revisions), key=lambda row: row.last_modified)
    wanted = hub_id.revision
    matching = [row for row in revisions if wanted is None or wanted == row.commit_hash or wanted in row.refs]
    if not matching:
        at = f" at {wanted}" if wanted else ""
        raise HubError(
            f"{hub_id.repo}: {NO_LOCAL_PATH}, HF_HUB_OFFLINE is set, and the cache has no files of it{at}: fetch it once while online"
        )
    root = matching[-1].snapshot_path
    rows = [RemoteFile(p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file()]
    return _narrowed(hub_id, hub_id.repo, matching[-1].commit_hash, rows, root)


def download(repo: Repo, paths: Iterable[str]) -> Path:
    """Fetch files of a repo into the Hub's cache, those that are not there yet; returns the folder that they lie in.

    Raises:
        HubError: a file is not in the repo, or cannot be fetched.
    """
    wanted = sorted(set(paths))
    for path in wanted:
        if path not in repo.files:
            raise HubError(f"{repo.pinned}: has no file {path}" + (" in the cache, and HF_HUB_OFFLINE is set" if repo.cache else ""))
    if repo.cache is not None:
        return repo.cache
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    with translate_errors(repo.pinned):
        folder = huggingface_hub.snapshot_download(
            repo.name,
            revision=repo.commit,
            allow_patterns=_glob_patterns(repo, wanted),
            token=current_token(),
            library_name=LIBRARY_NAME,
        )
    return Path(folder) / repo.folder


MAX_GLOBS = 100
"""Globs that the client may try on each file of a repo: with thirty thousand of both that takes minutes."""


def _glob_patterns(repo: Repo, wanted: Sequence[str]) -> list[str]:
    """Globs of just these files: each by name where they are few, else one for all of an ending, in the whole repo or in one of its
    folders, where none of these is to stay behind."""
    if repo.is_file or len(wanted) <= MAX_GLOBS:
        return [glob.escape(repo.inside(path)) for path in wanted]
    of, found = (Counter(kind for path in paths for kind in _glob_candidates(path)) for paths in (repo.files, wanted))
    patterns = set()
    for path in wanted:
        whole = next((kind for kind in _glob_candidates(path) if found[kind] == of[kind]), None)
        patterns.add(glob.escape(repo.inside(path)) if whole is None else f"{glob.escape(repo.inside(whole[0]))}*{glob.escape(whole[1])}")
    return sorted(patterns)


def _glob_candidates(path: str) -> tuple[tuple[str, str], ...]:
    """Folders that a path is in, each with a slash at its end, the whole repo first, and the path's ending; a file without has none."""
    folder, _, name = path.rpartition("/")
    ending = name[name.rfind(".") :] if "." in name else ""
    first = f"{path.partition('/')[0]}/" if folder else ""
    return tuple((place, ending) for place in dict.fromkeys(("", first))) if ending else ()


def check_files(repo: Repo, sha256: Mapping[str, str], where: str) -> int:
    """Compare files' SHA-256 by path with those that the Hub states, as far as it states them; returns how many were compared.

    It states none of files that are not in LFS or Xet, nor does a cache.

    Raises:
        HubError: the repo lacks one, or has another. A single file may have another name there.
    """
    compared = 0
    for path, expected in sha256.items():
        row = repo.files.get(path) or (next(iter(repo.files.values())) if len(sha256) == len(repo.files) == 1 else None)
        if row is None:
            raise HubError(f"{where}: {repo.pinned} has no file {path}, so it is not that checkpoint")
        if row.sha256 is not None and row.sha256 != expected:
            raise HubError(f"{where}: {path} has the SHA-256 {expected}, but in {repo.pinned} it is {row.sha256}: not the same checkpoint")
        compared += row.sha256 is not None
    return compared


class RemoteSource:
    """A :class:`~ckptdiff.io.source.ByteSource` over a file of a repo: each read is one request of just these bytes."""

    def __init__(self, repo: Repo, path: str) -> None:
        self.name = f"{repo.pinned}: {path}"
        self._id, self._lock = repo.pinned, threading.Lock()
        with translate_errors(self._id):
            files = huggingface_hub.HfFileSystem(token=current_token())
            self._file = files.open(f"{repo.name}@{repo.commit}/{repo.inside(path)}", "rb", cache_type="none")
        self.size = repo.files[path].size

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises HubError, or CheckpointError if they are not all there."""
        view = memoryview(out).cast("B")
        if not len(view):
            return
        with self._lock, translate_errors(self._id):
            self._file.seek(offset)
            data = self._file.read(len(view))
        if len(data) != len(view):
            raise CheckpointError(f"{self.name}: ends at byte {offset + len(data)}, expected {offset + len(view)} or more")
        view[:] = data

    def close(self) -> None:
        self._file.close()


class RemoteFolder:
    """Files of a repo, to be read by ranges."""

    def __init__(self, repo: Repo) -> None:
        self.name = str(repo.pinned)
        self._repo = repo

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""
        return self._repo.files[path].size if path in self._repo.files else None

    def open(self, path: str) -> RemoteSource:
        return RemoteSource(self._repo, path)

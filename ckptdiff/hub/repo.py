"""Repos on the Hugging Face Hub: ids resolved to a commit and its files, which are fetched into the cache or read by ranges."""

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
"""Begins the messages about a missing repo: a text counts as an id if no local path has that name, and it may be a mistyped path."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repo. The Hub states a SHA-256 of large files and a git blob id of small ones; a cache states neither."""

    path: str
    size: int
    """Size in bytes."""
    sha256: str | None = None
    blob_id: str | None = None
    """Git's SHA-1 of the file."""


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo at one commit, or the folder or file of it that an id names."""

    id: HubId
    """The id that was asked for."""
    name: str
    """Owner and name; not those of ``id`` if the repo was renamed."""
    commit: str
    folder: str
    """The folder that ``files`` are in; empty: the root."""
    files: dict[str, RemoteFile]
    """The files by their path relative to ``folder``."""
    is_file: bool = False
    """Whether the id names one file, the only one in ``files``."""
    cache: Path | None = None
    """Offline, the local folder with ``files``, which are those that were fetched earlier."""

    @property
    def pinned(self) -> HubId:
        """The id at this commit."""
        return HubId(self.name, self.commit, self.id.subfolder)

    def inside(self, path: str) -> str:
        """The path in the repo of one of ``files``."""
        return f"{self.folder}/{path}" if self.folder else path


def open_repo(hub_id: HubId) -> Repo:
    """Resolve an id to a commit and its files; offline to those that the cache has.

    Raises:
        HubError: there is no such repo, revision or file, the token gives no access to it, or the Hub cannot be reached.
    """
    if is_offline():
        return _open_cached(hub_id)
    api = client()
    with translate_errors(hub_id, first=f"{NO_LOCAL_PATH}, and "):
        model = api.model_info(hub_id.repo, revision=hub_id.revision)
        entries = list(api.list_repo_tree(model.id, recursive=True, revision=model.sha))
    files = [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, None if entry.lfs else entry.blob_id)
        for entry in entries
        if isinstance(entry, huggingface_hub.hf_api.RepoFile)
    ]
    return _narrowed(hub_id, model.id, model.sha, files)


def _narrowed(hub_id: HubId, name: str, commit: str, all_files: Iterable[RemoteFile], cache: Path | None = None) -> Repo:
    """The part of a repo that an id names: all of it, a folder, or one file."""
    by_path = {file.path: file for file in sorted(all_files, key=lambda file: file.path.encode())}
    is_file = hub_id.subfolder in by_path
    folder = hub_id.subfolder.rpartition("/")[0] if is_file else hub_id.subfolder
    prefix = f"{folder}/" if folder else ""
    chosen = [file for path, file in by_path.items() if (path == hub_id.subfolder if is_file else path.startswith(prefix))]
    files = {file.path.removeprefix(prefix): replace(file, path=file.path.removeprefix(prefix)) for file in chosen}
    if not files:
        raise HubError(f"{hub_id}: has no files" + (f" in {hub_id.subfolder}" if hub_id.subfolder else ""))
    return Repo(hub_id, name, commit, folder, files, is_file, cache / folder if cache else None)


def _open_cached(hub_id: HubId) -> Repo:
    """What the cache holds of a repo: at the revision that is asked for, or without one at the commit that was fetched last."""
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
    files = [RemoteFile(p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file()]
    return _narrowed(hub_id, hub_id.repo, matching[-1].commit_hash, files, root)


def download(repo: Repo, paths: Iterable[str]) -> Path:
    """Fetch files of a repo into the Hub's cache unless they are there already; returns the folder of the cache that they are in.

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


def cached(repo: Repo, paths: Sequence[str]) -> Path | None:
    """The folder of the Hub's cache that files of a repo are in, if all of them were fetched earlier."""
    if repo.cache is not None:
        return repo.cache
    found = [huggingface_hub.try_to_load_from_cache(repo.name, repo.inside(path), revision=repo.commit) for path in paths]
    folders = {Path(file.removesuffix(path)) for file, path in zip(found, paths, strict=True) if isinstance(file, str)}
    return folders.pop() if all(isinstance(file, str) for file in found) and len(folders) == 1 else None


MAX_GLOBS = 100
"""Globs to give to the client, which tries each of them on each file of a repo: with thirty thousand of both, that takes minutes."""


def _glob_patterns(repo: Repo, wanted: Sequence[str]) -> list[str]:
    """Globs that match just the wanted files of a repo.

    A few files are named each. Of many, those of one ending share a glob, in the whole repo or in one of its top folders, unless that
    would match a file which is not wanted.
    """
    if repo.is_file or len(wanted) <= MAX_GLOBS:
        return [glob.escape(repo.inside(path)) for path in wanted]
    in_repo, in_wanted = (Counter(group for path in paths for group in _glob_candidates(path)) for paths in (repo.files, wanted))
    patterns = set()
    for path in wanted:
        group = next((group for group in _glob_candidates(path) if in_wanted[group] == in_repo[group]), None)
        patterns.add(glob.escape(repo.inside(path)) if group is None else f"{glob.escape(repo.inside(group[0]))}*{glob.escape(group[1])}")
    return sorted(patterns)


def _glob_candidates(path: str) -> tuple[tuple[str, str], ...]:
    """Folder and ending of each glob that could stand for a file: the whole repo first, then its top folder, which ends in a slash."""
    folder, _, name = path.rpartition("/")
    ending = name[name.rfind(".") :] if "." in name else ""
    first = f"{path.partition('/')[0]}/" if folder else ""
    return tuple((place, ending) for place in dict.fromkeys(("", first))) if ending else ()


def check_files(repo: Repo, sha256: Mapping[str, str], where: str) -> int:
    """Compare the SHA-256 of files with those that the Hub states.

    It states none of files that are not in LFS or Xet; a cache states none at all. If there is one file on both sides, it may have
    another name in the repo.

    Args:
        repo: what to compare with.
        sha256: SHA-256 by path.
        where: what messages call the files.

    Returns:
        The number of files that could be compared.

    Raises:
        HubError: the repo lacks a file, or has another one of that path.
    """
    compared = 0
    for path, expected in sha256.items():
        file = repo.files.get(path) or (next(iter(repo.files.values())) if len(sha256) == len(repo.files) == 1 else None)
        if file is None:
            raise HubError(f"{where}: {repo.pinned} has no file {path}, so it is not that checkpoint")
        if file.sha256 is not None and file.sha256 != expected:
            raise HubError(f"{where}: {path} has the SHA-256 {expected}, but in {repo.pinned} it is {file.sha256}: not the same checkpoint")
        compared += file.sha256 is not None
    return compared


class RemoteSource:
    """A :class:`~ckptdiff.io.source.ByteSource` over a file of a repo; each read is one request for just these bytes."""

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
    """The files of a repo, opened to be read by ranges."""

    def __init__(self, repo: Repo) -> None:
        self.name = str(repo.pinned)
        self.path = Path(self.name)
        self._repo = repo

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if there is none."""
        return self._repo.files[path].size if path in self._repo.files else None

    def open(self, path: str) -> RemoteSource:
        return RemoteSource(self._repo, path)

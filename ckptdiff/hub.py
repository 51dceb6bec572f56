"""The Hugging Face Hub: the only module that imports huggingface_hub. Turns ids into folders and readers, and errors into HubError.

Only the client's public functions are used, which 0.36, 1.x and 2.x share.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptdiff.dtypes import Bytes
from ckptdiff.errors import CheckpointError, HubError
from ckptdiff.hubid import HubId

LIBRARY = "ckptdiff"
NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet"}
"""Packages whose errors the client lets through."""
_token: ContextVar[str | None] = ContextVar("token", default=None)
TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}")


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


@contextmanager
def using(token: str | None) -> Iterator[None]:
    """Use a token for what the Hub is asked inside, instead of ``HF_TOKEN`` or the one that `hf auth login` stored."""
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def client() -> Any:
    """A ``huggingface_hub.HfApi``, which says who we are."""
    from huggingface_hub import HfApi

    from ckptdiff import __version__

    return HfApi(token=_token.get(), library_name=LIBRARY, library_version=__version__)


def is_offline() -> bool:
    """Whether the client is told to use its cache alone (``HF_HUB_OFFLINE=1``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def open_repo(hub_id: HubId) -> Repo:
    """Resolve an id to a commit and its files; offline to what the cache has.

    Raises:
        HubError: there is no such repo or revision, or no access to it, or the Hub cannot be reached.
    """
    if is_offline():
        return _cached(hub_id)
    from huggingface_hub.hf_api import RepoFile

    api = client()
    with translated(hub_id):
        found = api.model_info(hub_id.repo, revision=hub_id.revision)
        entries = list(api.list_repo_tree(found.id, recursive=True, revision=found.sha))
    rows = [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, None if entry.lfs else entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    return _repo(hub_id, found.id, found.sha, rows)


def _repo(hub_id: HubId, name: str, commit: str, rows: Iterable[RemoteFile], cache: Path | None = None) -> Repo:
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


def _cached(hub_id: HubId) -> Repo:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    revision = hub_id.revision or "main"
    try:
        repos = [repo for repo in scan_cache_dir().repos if (repo.repo_id, repo.repo_type) == (hub_id.repo, "model")]
    except CacheNotFound:
        repos = []
    for repo in repos:
        for found in repo.revisions:
            if revision == found.commit_hash or revision in found.refs:
                root = found.snapshot_path
                rows = [RemoteFile(p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file()]
                return _repo(hub_id, hub_id.repo, found.commit_hash, rows, root)
    raise HubError(f"{hub_id}: HF_HUB_OFFLINE is set, and the cache has no files of it at {revision}: fetch it once while online")


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with translated(repo.pinned):
        folder = snapshot_download(
            repo.name,
            revision=repo.commit,
            allow_patterns=[glob.escape(repo.inside(path)) for path in wanted],
            token=_token.get(),
            library_name=LIBRARY,
        )
    return Path(folder) / repo.folder


def check_files(repo: Repo, sha256: Mapping[str, str], where: str) -> None:
    """Compare files' SHA-256 by path with those that the Hub states, as far as it states them.

    Raises:
        HubError: the repo lacks one, or has another. A single file may have another name there.
    """
    for path, expected in sha256.items():
        row = repo.files.get(path) or (next(iter(repo.files.values())) if len(sha256) == len(repo.files) == 1 else None)
        if row is None:
            raise HubError(f"{where}: {repo.pinned} has no file {path}, so it is not that checkpoint")
        if row.sha256 is not None and row.sha256 != expected:
            raise HubError(f"{where}: {path} has the SHA-256 {expected}, but in {repo.pinned} it is {row.sha256}: not the same checkpoint")


class RemoteSource:
    """A :class:`~ckptdiff.stfile.ByteSource` over a file of a repo: each read is one request of just these bytes."""

    def __init__(self, repo: Repo, path: str) -> None:
        from huggingface_hub import HfFileSystem

        self.name = f"{repo.pinned}: {path}"
        self._id, self._lock = repo.pinned, threading.Lock()
        with translated(self._id):
            self._file = HfFileSystem(token=_token.get()).open(f"{repo.name}@{repo.commit}/{repo.inside(path)}", "rb", cache_type="none")
        self.size = repo.files[path].size

    def readinto(self, offset: int, out: Bytes | memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; raises HubError, or CheckpointError if they are not all there."""
        view = memoryview(out).cast("B")
        if not len(view):
            return
        with self._lock, translated(self._id):
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


# --- publishing ---


@dataclass(frozen=True, slots=True)
class Commit:
    """What a push made: its commit and page; ``pull_request`` if it opened one."""

    oid: str
    url: str
    pull_request: str | None


def find_repo(hub_id: HubId) -> Repo | None:
    """The repo, or None if it, or its revision, is not there yet (or holds nothing)."""
    from huggingface_hub import errors

    api = client()
    with translated(hub_id):
        try:
            if not api.model_info(hub_id.repo, revision=hub_id.revision).siblings:
                return None
        except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
            if isinstance(error, errors.GatedRepoError):
                raise
            return None
    return open_repo(hub_id)


def licence_of(hub_id: HubId) -> dict[str, str]:
    """The members of a repo's card that state its licence."""
    with translated(hub_id):
        data = client().model_info(hub_id.repo, revision=hub_id.revision).card_data
    found = data.to_dict() if data is not None else {}
    return {key: str(found[key]) for key in ("license", "license_name", "license_link") if found.get(key)}


def publish(
    hub_id: HubId, files: Mapping[str, bytes | Path], gone: Iterable[str], *, message: str, private: bool | None, pull_request: bool
) -> Commit:
    """Write files to a repo, made if it is not there, in one commit on top of what it has now; ``gone`` are deleted by it.

    Large files that an earlier try has sent are not sent again.

    Raises:
        HubError: the token may not, somebody else committed meanwhile, or the Hub cannot be reached. Then the repo is as before.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = client()
    with translated(hub_id):
        api.create_repo(hub_id.repo, private=private, exist_ok=True)
        if hub_id.revision is not None and not pull_request:
            api.create_branch(hub_id.repo, branch=hub_id.revision, exist_ok=True)
        parent = api.model_info(hub_id.repo, revision=hub_id.revision).sha
        operations: list[Any] = [CommitOperationDelete(path) for path in gone]
        operations += [CommitOperationAdd(path, data if isinstance(data, bytes) else str(data)) for path, data in files.items()]
        done = api.create_commit(
            hub_id.repo, operations, commit_message=message, revision=hub_id.revision, parent_commit=parent, create_pr=pull_request
        )
    return Commit(done.oid, done.commit_url, done.pr_url)


def with_metadata(text: str, members: Mapping[str, Any]) -> str:
    """A model card with members of its YAML set; others, and its text, stay. ``tags`` are added to.

    Raises:
        HubError: its YAML is broken.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except ValueError as error:
        raise HubError(f"README.md: its metadata cannot be read: {_clean(str(error))}") from None
    for key, value in members.items():
        card.data[key] = sorted({*(card.data.get("tags") or []), *value}) if key == "tags" else value
    return str(card)


# --- errors ---


@contextmanager
def translated(hub_id: HubId) -> Iterator[None]:
    """Turn what the client raises into a HubError that says what to do, without a token in it."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{hub_id.repo}: is gated: ask for access at {endpoint()}/{hub_id.repo}, then log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{hub_id.repo}: has no revision {hub_id.revision}") from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{hub_id.repo}: no such file or folder here, and no such repo at {endpoint()}, or your token has no access to it "
            "(log in with `hf auth login`, or set HF_TOKEN)"
        ) from None
    except errors.HfHubHTTPError as error:
        raise HubError(f"{hub_id.repo}: {_said(error)}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in NETWORK or isinstance(error, (ConnectionError, errors.OfflineModeIsEnabled)):
            raise HubError(f"{hub_id.repo}: {endpoint()} cannot be reached: {_clean(str(error))}; try again") from None
        if isinstance(error, (OSError, RuntimeError, ValueError)) and type(error).__module__ != "builtins":
            raise HubError(f"{hub_id.repo}: {_clean(str(error))}") from None
        if isinstance(error, RuntimeError):  # hf_xet raises nothing else
            raise HubError(f"{hub_id.repo}: {_clean(str(error))}; for a Hub without Xet set HF_HUB_DISABLE_XET=1") from None
        raise


def endpoint() -> str:
    """Where the Hub is: ``HF_ENDPOINT``."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


STATUS = {
    401: "your token is not valid: log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not do this: it needs write access to the repo, or the repo is gated",
    404: "not found",
    412: "the repo has changed meanwhile: run again",
    429: "too many requests: wait, and run again",
}


def _said(error: Any) -> str:
    status = getattr(error.response, "status_code", None)
    said = error.server_message or ""
    text = STATUS.get(int(status), f"the Hub answered {status}: run again") if status else str(error)
    return _clean(f"{text}{f' ({said})' if said else ''}")


def _clean(text: str) -> str:
    """One line, without tokens."""
    for secret in {_token.get(), os.environ.get("HF_TOKEN")} - {None, ""}:
        text = text.replace(str(secret), "***")
    return TOKEN.sub("***", " ".join(text.split()))[:400]

"""The state of a Hugging Face Hub on this machine: repos, branches, commits, large files, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hf_xet

TOKEN = "hf_" + "Secret0123456789Secret0123456789ab"


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose ``METHOD path`` matches: a status, or one of ``kind``:
    ``cut`` (the connection ends after ``after`` bytes of the body), ``flip`` (one byte is another), ``slow`` (a pause first).
    """

    pattern: str
    times: int = 1
    status: int = 0
    kind: str = ""
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Blob:
    """A file of a commit; large ones are LFS objects."""

    data: bytes
    lfs: bool
    stated: tuple[str, int] | None = None
    """SHA-256 and size of an object that only Xet's store has."""

    @property
    def sha256(self) -> str:
        return self.stated[0] if self.stated else hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return self.stated[1] if self.stated else len(self.data)

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def row(self, path: str) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.lfs:
            row["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return row


@dataclass
class HubRepo:
    """Branches point at commits, commits are trees; ``gated``: nobody gets in."""

    name: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, Blob]) -> str:
        text = json.dumps([branch, self.branches.get(branch), {path: blob.oid for path, blob in tree.items()}, len(self.commits)])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = tree, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The state of a Hub, and what it was asked. ``sent`` and ``received`` count bytes of bodies."""

    def __init__(self, cas: Path | None) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.moved: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.cas, self.endpoint = cas, ""
        self.known: dict[str, bytes] = {}
        self.xet_hashes: dict[str, str] = {}
        self.lock = threading.RLock()

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", **options: bool) -> str:
        """Put files in a repo (all of its tree); returns the commit."""
        repo = self.repos.setdefault(name, HubRepo(name, **options))
        for path, data in files.items():
            if self.cas and is_lfs(path, len(data)):
                self.learn(data)
                with warnings.catch_warnings():  # the way that works in all versions is called deprecated in the newest
                    warnings.simplefilter("ignore", DeprecationWarning)
                    hf_xet.upload_bytes([data], f"local://{self.cas}", ("xet", int(time.time()) + 3600), None, None, "model")
        return repo.commit(branch, {path: Blob(data, is_lfs(path, len(data))) for path, data in files.items()})

    def learn(self, data: bytes) -> None:
        """With Xet a client writes to the store, and a commit names the SHA-256 alone: tell what bytes that is."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            sha256 = hashlib.sha256(data).hexdigest()
            self.known[sha256], self.xet_hashes[sha256] = data, hf_xet.hash_files([file.name])[0].hash

    def tree(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """A repo's files."""
        repo = self.repos[name]
        return {path: blob.data for path, blob in repo.commits[repo.resolve(revision) or ""].items()}

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


def is_lfs(path: str, size: int) -> bool:
    return size > 10_000 or path.endswith((".safetensors", ".zst", ".png"))

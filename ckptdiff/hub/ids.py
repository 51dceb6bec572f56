"""Ids of repos on the Hugging Face Hub: ``org/name``, ``org/name@revision``, ``hf://org/name@revision/subfolder``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from ckptdiff.errors import CheckpointError
from ckptdiff.io.leftovers import if_gone

NAME_PATTERN = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
REPO_PATTERN = rf"(?P<repo>{NAME_PATTERN}/{NAME_PATTERN})"
SHORT_ID = re.compile(rf"{REPO_PATTERN}(?:@(?P<revision>[^@\s]+))?", re.ASCII)
HF_URL = re.compile(
    rf"hf:/{{1,2}}{REPO_PATTERN}(?:@(?P<revision>refs/(?:pr|convert)/[^/\s]+|[^@/\s]+))?(?:/(?P<subfolder>[^@\s]*))?", re.ASCII
)
"""The form with a scheme. It may have one slash, as a path object turns the two of ``hf://`` into one."""


@dataclass(frozen=True, slots=True)
class HubId:
    """What an id names: a repo at a revision, or a folder or file in it."""

    repo: str
    """Owner and name, with a slash."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the main branch."""
    subfolder: str = ""
    """Path of a folder or a file in the repo; empty: its root."""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}/{self.subfolder}" if self.subfolder else self.repo + revision


def parse_id(text: str | os.PathLike[str]) -> HubId | None:
    """The id that a text is; None if it is a local path.

    It is one if it exists, or existed until a run that replaced it was killed, or if it does not have the form of an id.

    Raises:
        CheckpointError: it begins with ``hf:/`` and is not ``hf://org/name[@revision][/subfolder]``.
    """
    text = os.fspath(text)
    if os.path.lexists(text) or if_gone(text):
        return None
    match = HF_URL.fullmatch(text)
    if text.startswith("hf:/") and not match:
        raise CheckpointError(f"{text!r} is not hf://org/name, hf://org/name@revision or hf://org/name@revision/subfolder")
    match = match or SHORT_ID.fullmatch(text)
    if match is None or ".." in match["repo"] or "--" in match["repo"]:
        return None
    groups = match.groupdict()
    revision, subfolder = unquote(groups["revision"] or ""), (groups.get("subfolder") or "").strip("/")
    if ".." in subfolder.split("/"):
        raise CheckpointError(f"{text!r}: a subfolder cannot lie outside of its repo")
    return HubId(groups["repo"], revision or None, subfolder)

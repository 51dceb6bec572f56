"""A commit to a repo on the Hub, with its model card's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdiff.errors import HubError
from ckptdiff.hub.client import client, redact, translate_errors
from ckptdiff.hub.ids import HubId
from ckptdiff.hub.repo import Repo, open_repo
from ckptdiff.lazy import huggingface_hub


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that was made on the Hub."""

    oid: str
    """Its id (SHA-1)."""
    url: str
    """Its page."""
    pull_request: str | None
    """The page of the pull request, if it opened one."""


def find_repo(hub_id: HubId) -> Repo | None:
    """The repo; None if it or its revision does not exist yet, or holds no files."""
    errors = huggingface_hub.errors
    api = client()
    with translate_errors(hub_id):
        try:
            if not api.model_info(hub_id.repo, revision=hub_id.revision).siblings:
                return None
        except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
            if isinstance(error, errors.GatedRepoError):
                raise
            return None
    return open_repo(hub_id)


def licence_of(hub_id: HubId) -> dict[str, str]:
    """The members of a model card's metadata that state the licence of a repo."""
    with translate_errors(hub_id):
        data = client().model_info(hub_id.repo, revision=hub_id.revision).card_data
    members = data.to_dict() if data is not None else {}
    return {key: str(members[key]) for key in ("license", "license_name", "license_link") if members.get(key)}


def publish(
    hub_id: HubId, files: Mapping[str, bytes | Path], deleted: Iterable[str], *, message: str, private: bool | None, pull_request: bool
) -> Commit:
    """Write files to a repo in one commit. Large files that an earlier try has sent are not sent again.

    Args:
        hub_id: the repo, which is created if it does not exist, and a branch of it.
        files: content or local path of each file, by its path in the repo.
        deleted: paths of files that the commit deletes.
        message: the commit message.
        private: whether a new repo is private; None: as the account's settings say.
        pull_request: open a pull request instead of a commit to the branch.

    Raises:
        HubError: the token does not allow it, somebody else committed meanwhile, or the Hub cannot be reached. The files of the repo are
            as before then.
    """
    api = client()
    with translate_errors(hub_id):
        api.create_repo(hub_id.repo, private=private, exist_ok=True)
        if hub_id.revision is not None and not pull_request:
            api.create_branch(hub_id.repo, branch=hub_id.revision, exist_ok=True)
        parent = api.model_info(hub_id.repo, revision=hub_id.revision).sha
        operations: list[Any] = [huggingface_hub.CommitOperationDelete(path) for path in deleted]
        operations += [
            huggingface_hub.CommitOperationAdd(path, data if isinstance(data, bytes) else str(data)) for path, data in files.items()
        ]
        done = api.create_commit(
            hub_id.repo, operations, commit_message=message, revision=hub_id.revision, parent_commit=parent, create_pr=pull_request
        )
    return Commit(done.oid, done.commit_url, done.pr_url)


def update_card(text: str, members: Mapping[str, Any]) -> str:
    """A model card with some members of its metadata set; ``tags`` are added to those it has. All else stays.

    Raises:
        HubError: the card's YAML is broken.
    """
    if not re.match(r"\s*---\r?\n", text):
        text = "---\nlibrary_name: ckptdiff\n---\n" + text
    try:
        card = huggingface_hub.ModelCard(text, ignore_metadata_errors=False)
    except ValueError as error:
        raise HubError(f"README.md: its metadata cannot be read: {redact(str(error))}") from None
    for key, value in members.items():
        card.data[key] = sorted({*(card.data.get("tags") or []), *value}) if key == "tags" else value
    return str(card)

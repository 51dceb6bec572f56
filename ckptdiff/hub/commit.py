"""Writing to a repo on the Hub: one commit, its model card's metadata, the licence of another repo."""

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
    """What a push made: its commit and page; ``pull_request`` if it opened one."""

    oid: str
    url: str
    pull_request: str | None


def find_repo(hub_id: HubId) -> Repo | None:
    """The repo, or None if it, or its revision, is not there yet (or holds nothing)."""
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
    """The members of a repo's card that state its licence."""
    with translate_errors(hub_id):
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
    api = client()
    with translate_errors(hub_id):
        api.create_repo(hub_id.repo, private=private, exist_ok=True)
        if hub_id.revision is not None and not pull_request:
            api.create_branch(hub_id.repo, branch=hub_id.revision, exist_ok=True)
        parent = api.model_info(hub_id.repo, revision=hub_id.revision).sha
        operations: list[Any] = [huggingface_hub.CommitOperationDelete(path) for path in gone]
        operations += [
            huggingface_hub.CommitOperationAdd(path, data if isinstance(data, bytes) else str(data)) for path, data in files.items()
        ]
        done = api.create_commit(
            hub_id.repo, operations, commit_message=message, revision=hub_id.revision, parent_commit=parent, create_pr=pull_request
        )
    return Commit(done.oid, done.commit_url, done.pr_url)


def update_card(text: str, members: Mapping[str, Any]) -> str:
    """A model card with members of its YAML set; others, and its text, stay. ``tags`` are added to.

    Raises:
        HubError: its YAML is broken.
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

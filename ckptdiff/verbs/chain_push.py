"""``push`` of a chain: its patches in commits of whole patches, of which what is there already is not sent again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.chain.contents import open_stored
from ckptdiff.chain.history import History, patch_files, read_history
from ckptdiff.chain.hub_store import ListedStore, counting_patches, in_batches, is_blob
from ckptdiff.chain.names import CHAIN, EPOCHS, HEAD
from ckptdiff.errors import CheckpointError, FormatError, HubError, IntegrityError
from ckptdiff.format.index import INDEX_NAME
from ckptdiff.hub.client import use_token
from ckptdiff.hub.commit import Commit, find_repo, licence_of, publish, update_card
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import Repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.store import FolderStore
from ckptdiff.verbs.card import ChainFacts, chain_card_text
from ckptdiff.verbs.chain_verify import chain_verify
from ckptdiff.verbs.push import CARD_PATH, TAGS, existing_card, repo_to_push_to, suspects_of

FILES_AT_ONCE = 100
"""Files of a commit, unless one patch has more: a run that is stopped has sent all commits before."""


@dataclass(frozen=True, slots=True)
class ChainPushResult:
    """The result of :func:`chain_push`: what was sent, or with ``dry_run`` would be sent."""

    repo: str
    """Id of the repo."""
    files: dict[str, int]
    """Bytes of each file, by its path in the repo."""
    present: int
    """Number of the chain's files that the repo had already."""
    card: str
    """Text of the model card."""
    commits: tuple[Commit, ...]
    """In order; none with ``dry_run``, or where there was nothing to send."""

    @property
    def size(self) -> int:
        """Bytes of all files that were sent."""
        return sum(self.files.values())


def chain_push(
    chain: str | os.PathLike[str],
    repo_id: str,
    *,
    licence: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    allow_secrets: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> ChainPushResult:
    """Publish a chain on the Hugging Face Hub, with a model card; or what a chain there lacks of it.

    What the repo has by name and size is not sent again. Nothing is deleted there: steps that were pruned here stay. After each commit the
    repo holds a whole chain, and the next run goes on from there.

    Args:
        chain: a folder on this machine.
        repo_id: ``org/name`` or ``org/name@branch``; the repo and the branch are made if they do not exist.
        licence: the licence that the card states; by default that of the base, if the chain records its repo.
        private, message, allow_secrets, dry_run, token: as of :func:`ckptdiff.push`.
        threads, progress: used while the chain is verified.

    Raises:
        IntegrityError, FormatError: the chain does not verify. CheckpointError: it cannot be published so, or the repo holds another.
        HubError: the Hub refuses, or cannot be reached; what earlier commits hold is whole.
    """
    hub_id = repo_to_push_to(repo_id)
    if not os.path.isfile(os.path.join(chain, CHAIN)):
        raise CheckpointError(f"{chain}: is no chain on this machine: it has no {CHAIN}")
    store = FolderStore(Path(chain))
    checked = chain_verify(chain, threads=threads, progress=progress)
    if not checked.ok:
        raise IntegrityError(f"{chain}: does not verify, so it was not published: {checked.problems[0].message}")
    history = read_history(store)
    if not history.steps:
        raise CheckpointError(f"{chain}: has no step to publish")
    with use_token(token):
        existing = find_repo(hub_id)
        lacking = _Lacking(history, existing)
        lacking.check(hub_id)
        batches = in_batches(history, counting_patches(history), lacking, FILES_AT_ONCE)
        if not allow_secrets:
            _refuse_secrets(history, {key for batch in batches for key in batch})
        card = _card(history, hub_id, existing, licence)
        files = {key: store.path(key) for batch in batches for key in batch}
        sizes = {key: path.stat().st_size for key, path in files.items()}
        if not is_blob(lacking.files.get(CARD_PATH), card.encode()):
            sizes[CARD_PATH] = len(card.encode())
            batches = batches or [[]]
        commits = list[Commit]()
        for number, batch in enumerate(batches if not dry_run else []):
            content: dict[str, bytes | Path] = {key: files[key] for key in batch}
            if number == len(batches) - 1 and CARD_PATH in sizes:
                content[CARD_PATH] = card.encode()
            text = message or f"ckptdiff chain: {history.number_text()}" + (f" ({number + 1} of {len(batches)})" if batches[1:] else "")
            commits.append(publish(hub_id, content, [], message=text, private=private, pull_request=False))
            progress("sending", number + 1, len(batches))
    keys = [CHAIN, HEAD, *store.objects(EPOCHS), *(key for name in counting_patches(history) for key in patch_files(history, name))]
    there = sum(key in lacking.files and not lacking(key) for key in keys)
    return ChainPushResult(str(hub_id), sizes, there, card, tuple(commits))


class _Lacking:
    """Tells of each object of a chain whether a repo lacks it."""

    def __init__(self, history: History, existing: Repo | None) -> None:
        self.history, self.files = history, existing.files if existing is not None else {}

    def __call__(self, key: str) -> bool:
        store, there = self.history.store, self.files.get(key)
        if key in (CHAIN, HEAD):
            size = store.size(key)
            return size is not None and not is_blob(there, store.read(key, 0, size))
        return there is None or there.size != store.size(key)

    def check(self, hub_id: HubId) -> None:
        """Raise CheckpointError unless a chain is left if what is lacking is added to what the repo has."""
        if INDEX_NAME in self.files:
            raise CheckpointError(f"{hub_id}: holds a patch: push the chain to a repo of its own")
        if CHAIN in self.files and self(CHAIN):
            raise CheckpointError(f"{hub_id}: holds another chain, from another base or of another policy: push to another repo or branch")
        store = self.history.store
        sizes = {key: file.size for key, file in self.files.items()} | store.objects("")

        def read(key: str) -> bytes:
            return store.read(key, 0, store.size(key) or 0)

        try:
            read_history(ListedStore(str(hub_id), sizes, read))
        except FormatError as error:
            raise CheckpointError(f"{store.name}: does not go on from the chain that is there: {error}") from None


def _refuse_secrets(history: History, keys: set[str]) -> None:
    """Raise CheckpointError if a patch that is sent holds what looks like a secret."""
    for name in counting_patches(history):
        if name.marker not in keys:
            continue
        with open_stored(history.store, name) as patch:
            suspects = suspects_of(patch)
        if suspects:
            raise CheckpointError(
                f"{history.store.name}/{name.key}: would publish what looks like secrets: {', '.join(suspects[:10])}: push with "
                "--allow-secrets if they are none"
            )


def _card(history: History, hub_id: HubId, existing: Repo | None, licence: str | None) -> str:
    """The model card; what the owner of the repo wrote in it stays."""
    chain, card = history.chain, existing_card(existing)
    base = parse_id(chain.base_repo) if chain.base_repo is not None else None
    stated = {"license": licence} if licence else licence_of(base) if base is not None else {}
    if not stated and not (card and "\nlicense:" in card):
        of = f"{base.repo}: states no licence that the card could carry on" if base else f"{history.store.name}: does not record its base"
        raise HubError(f"{of}: push with --license NAME, such as apache-2.0")
    size = sum(history.size(name) for name in counting_patches(history))
    facts = ChainFacts(HubId(hub_id.repo), base, chain.base_identity.hex(), history.number_text(), history.steps[-1].number, size)
    model = {"base_model": base.repo, "base_model_relation": "finetune"} if base else {}
    metadata: Mapping[str, object] = {**stated, **model, "library_name": "ckptdiff", "tags": [*TAGS, "chain"]}
    return update_card(chain_card_text(facts, card), metadata)

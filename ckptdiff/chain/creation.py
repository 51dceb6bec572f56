"""A new chain: its base, and what holds for all that goes into it (spec/chain-v1.md, 3)."""

from __future__ import annotations

import os
from typing import NamedTuple

from ckptdiff.chain.documents import MAX_KEYFRAME_EVERY, ChainDocument, read_chain
from ckptdiff.chain.names import CHAIN
from ckptdiff.errors import BaseMismatchError, CheckpointError, OutputError
from ckptdiff.format.entry import CODEC_NAMES
from ckptdiff.hub.ids import parse_id
from ckptdiff.hub.repo import open_repo
from ckptdiff.io.parallel import Progress, default_threads
from ckptdiff.io.store import Store
from ckptdiff.live.identity import identity_of_files

KEYFRAME_EVERY = 50
"""The most patches that a step takes, unless told."""


class Policy(NamedTuple):
    """What holds for all patches of a chain."""

    codec: str | None
    keyframe_every: int


def check_policy(keyframe_every: int | None, codec: str | None) -> None:
    """Raise CheckpointError unless a policy, of which None leaves a part open, is one that a chain can have."""
    if keyframe_every is not None and not 1 <= keyframe_every <= MAX_KEYFRAME_EVERY:
        raise CheckpointError(f"--keyframe-every {keyframe_every}: expected 1 to {MAX_KEYFRAME_EVERY}")
    if codec is not None and codec not in CODEC_NAMES:
        raise CheckpointError(f"unknown codec {codec!r}: expected one of {', '.join(CODEC_NAMES)}")


def new_chain(
    store: Store, base: str | os.PathLike[str], own: int | None, policy: Policy, threads: int | None, progress: Progress
) -> ChainDocument:
    """Put ``chain.json``.

    Args:
        store: an empty one.
        base: the chain's base; all of it is read, for its identity. A repo on the Hub is recorded with its commit.
        own: the base's own step, if it has one.
        policy: the chain's.
        threads: number of threads.
        progress: as of all verbs.

    Raises:
        OutputError: something is in the store, or another run has made the chain meanwhile. CheckpointError: the base cannot be read.
        HubError: it cannot be fetched. StoreError: the store fails.
    """
    check_empty(store)
    hub_id, info = parse_id(base), dict[str, str]()
    if hub_id is not None:
        repo = open_repo(hub_id)
        info = {"base_repo": repo.name, "base_revision": repo.commit}
    identity = identity_of_files(base, threads or default_threads(), progress)
    return put_chain(store, identity, own, policy, info)


def check_empty(store: Store) -> None:
    """Raise OutputError if there is anything in a store that is no chain."""
    there = store.objects("")
    if there:
        raise OutputError(f"{store.name}: is not a chain, and not empty: it has {next(iter(there))}; choose another place")


def put_chain(store: Store, identity: bytes, own: int | None, policy: Policy, info: dict[str, str]) -> ChainDocument:
    """Put ``chain.json``, given the base's identity and its own step; raises OutputError if another run has made the chain meanwhile."""
    chain = ChainDocument(base_identity=identity, base_step=own, codec=policy.codec, keyframe_every=policy.keyframe_every, info=dict(info))
    if not store.put(CHAIN, chain.to_bytes()):
        raise OutputError(f"{store.name}/{CHAIN}: was made by another run meanwhile: run again")
    return chain


def open_or_make(store: Store, identity: str, codec: str | None, keyframe_every: int | None) -> ChainDocument:
    """The chain of a store, which is made if the store is empty.

    Args:
        store: where it is.
        identity: of its base, in hexadecimal.
        codec, keyframe_every: the policy that a chain in memory must have; None leaves a part of it to the chain.

    Raises:
        BaseMismatchError: it has another base. CheckpointError: it has another policy than was asked for.
    """
    check_policy(keyframe_every, codec)
    chain = read_chain(store)
    if chain is None:
        check_empty(store)
        policy = Policy(codec or "sparse", keyframe_every or KEYFRAME_EVERY)
        return put_chain(store, bytes.fromhex(identity), None, policy, {})
    if chain.base_identity.hex() != identity:
        raise BaseMismatchError(
            f"{store.name}: is a chain of the base {chain.base_identity.hex()}, but the base that was given has the identity {identity}: "
            "give that chain's base, or choose another place"
        )
    if (keyframe_every or chain.keyframe_every, codec or chain.codec) != (chain.keyframe_every, chain.codec):
        raise CheckpointError(f"{store.name}: was made with keyframe_every={chain.keyframe_every} and codec={chain.codec!r}, which stay")
    return chain

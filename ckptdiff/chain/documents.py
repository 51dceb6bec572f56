"""The documents of a chain (spec/chain-v1.md, 3): frozen dataclasses and their canonical JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckptdiff.chain.names import CHAIN, HEAD, MAX_EPOCH, MAX_STEP, epoch_key
from ckptdiff.errors import FormatError, UnsupportedError, cut
from ckptdiff.format.canonical import JsonObject
from ckptdiff.format.entry import CODEC_NAMES
from ckptdiff.format.fields import Fields
from ckptdiff.format.sealed import VERSION, open_sealed, seal
from ckptdiff.io.store import Store, read_object

MAX_DOCUMENT = 1 << 17
"""Limit of a document in bytes."""
MAX_KEYFRAME_EVERY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainDocument:
    """``chain.json``: which chain this is."""

    base_identity: bytes
    """Identity of the base, 16 bytes."""
    base_step: int | None
    """The base's own step, if it has one."""
    codec: str | None
    """The codec of every patch; None: the smallest, tensor by tensor."""
    keyframe_every: int
    """The most patches that a step takes."""
    info: JsonObject = field(default_factory=dict)

    @property
    def base_repo(self) -> str | None:
        """The id, pinned to a commit, of the repo on the Hub that has the base, if it is recorded."""
        repo, revision = self.info.get("base_repo"), self.info.get("base_revision")
        return None if repo is None else f"{repo}@{revision}" if revision else str(repo)

    def to_bytes(self) -> bytes:
        """The canonical JSON, with its digest."""
        return _sealed(
            "ckptdiff-chain",
            {"identity": self.base_identity.hex(), "step": self.base_step},
            {"policy": {"codec": self.codec, "keyframe_every": self.keyframe_every}},
            self.info,
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> ChainDocument:
        """Read it; raises FormatError, UnsupportedError or IntegrityError, for the first rule that is broken."""
        f = open_sealed(data, where, "ckptdiff-chain", "base policy")
        base, policy = f.child("base", "identity step"), f.child("policy", "codec keyframe_every")
        if "codec" not in policy or (policy.value["codec"] is not None and policy.text("codec") not in CODEC_NAMES):
            raise UnsupportedError(f"{where}.policy.codec: unknown codec {cut(policy.value.get('codec'))}: try to upgrade ckptdiff")
        if "step" not in base:
            raise FormatError(f'{where}.base: missing member "step"')
        return cls(
            base_identity=base.hexadecimal("identity", 16),
            base_step=None if base.value["step"] is None else base.integer("step", high=MAX_STEP),
            codec=policy.value["codec"],
            keyframe_every=policy.integer("keyframe_every", 1, MAX_KEYFRAME_EVERY),
            info=f.object("info"),
        )


def read_chain(store: Store) -> ChainDocument | None:
    """``chain.json`` of a store; None if it has none. Raises StoreError, and as :meth:`ChainDocument.from_bytes`."""
    data = read_object(store, CHAIN, MAX_DOCUMENT)
    return None if data is None else ChainDocument.from_bytes(data, f"{store.name}/{CHAIN}")


@dataclass(frozen=True, slots=True)
class Head:
    """``HEAD.json``: a hint at the last step."""

    step: int
    epoch: int
    identity: bytes
    """Identity of that step's checkpoint, 16 bytes."""

    def to_bytes(self, chain: ChainDocument) -> bytes:
        """The canonical JSON, with its digest."""
        more = {"step": self.step, "epoch": self.epoch, "identity": self.identity.hex()}
        return _sealed("ckptdiff-chain-head", {"identity": chain.base_identity.hex()}, more)


def read_head(store: Store, chain: ChainDocument) -> Head | None:
    """``HEAD.json`` of a chain; None if there is none.

    Raises:
        FormatError, UnsupportedError, IntegrityError: it breaks a rule, or is another chain's.
    """
    data, where = read_object(store, HEAD, MAX_DOCUMENT), f"{store.name}/{HEAD}"
    if data is None:
        return None
    f = open_sealed(data, where, "ckptdiff-chain-head", "base step epoch identity")
    _check_base(f, chain)
    return Head(f.integer("step", high=MAX_STEP), f.integer("epoch", 1, MAX_EPOCH), f.hexadecimal("identity", 16))


def epoch_bytes(chain: ChainDocument, epoch: int, publisher: bytes) -> bytes:
    """An epoch's document, as canonical JSON with its digest; ``publisher`` is 16 bytes that no other publisher has."""
    more = {"epoch": epoch, "publisher": publisher.hex()}
    return _sealed("ckptdiff-chain-epoch", {"identity": chain.base_identity.hex()}, more)


def check_epoch(store: Store, chain: ChainDocument, epoch: int) -> None:
    """Raise FormatError, UnsupportedError or IntegrityError unless an epoch's document is one of this chain."""
    data, where = read_object(store, epoch_key(epoch), MAX_DOCUMENT), f"{store.name}/{epoch_key(epoch)}"
    f = open_sealed(data or b"", where, "ckptdiff-chain-epoch", "base epoch publisher")
    _check_base(f, chain)
    f.hexadecimal("publisher", 16)
    if f.integer("epoch") != epoch:
        raise FormatError(f"{where}.epoch: expected {epoch}, found {f.integer('epoch')}")


def _sealed(kind: str, base: JsonObject, more: JsonObject, info: JsonObject | None = None) -> bytes:
    return seal({"format": kind, "version": VERSION, "base": base, "info": info or {}, **more})


def _check_base(f: Fields, chain: ChainDocument) -> None:
    """Raise FormatError if a document is another chain's."""
    found = f.child("base", "identity").hexadecimal("identity", 16)
    if found != chain.base_identity:
        raise FormatError(f"{f.where}: is of a chain with the base {found.hex()}, but this one's is {chain.base_identity.hex()}: foreign")

"""Chains of checkpoints in a store (spec/chain-v1.md): names, documents, the history, publishing and removing."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.chain import contents as contents
    from ckptdiff.chain import creation as creation
    from ckptdiff.chain import documents as documents
    from ckptdiff.chain import following as following
    from ckptdiff.chain import history as history
    from ckptdiff.chain import hub_store as hub_store
    from ckptdiff.chain import names as names
    from ckptdiff.chain import originals as originals
    from ckptdiff.chain import retention as retention
    from ckptdiff.chain import state_publisher as state_publisher
    from ckptdiff.chain import state_worker as state_worker
    from ckptdiff.chain import state_writer as state_writer
    from ckptdiff.chain import subscriber as subscriber
    from ckptdiff.chain import writer as writer
else:
    __getattr__ = submodules(__name__)

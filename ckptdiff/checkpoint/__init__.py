"""Checkpoints (spec section 3.1): the files that belong to one, and the pairs of tensors of two."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.checkpoint import adapt as adapt
    from ckptdiff.checkpoint import contents as contents
    from ckptdiff.checkpoint import dcp as dcp
    from ckptdiff.checkpoint import dcp_items as dcp_items
    from ckptdiff.checkpoint import dcp_metadata as dcp_metadata
    from ckptdiff.checkpoint import evidence as evidence
    from ckptdiff.checkpoint import keys as keys
    from ckptdiff.checkpoint import names as names
    from ckptdiff.checkpoint import other_formats as other_formats
    from ckptdiff.checkpoint import pairing as pairing
    from ckptdiff.checkpoint import parts as parts
    from ckptdiff.checkpoint import reader as reader
    from ckptdiff.checkpoint import recognition as recognition
    from ckptdiff.checkpoint import renames as renames
    from ckptdiff.checkpoint import rows as rows
    from ckptdiff.checkpoint import samples as samples
    from ckptdiff.checkpoint import scopes as scopes
    from ckptdiff.checkpoint import secrets as secrets
    from ckptdiff.checkpoint import selection as selection
    from ckptdiff.checkpoint import weight_map as weight_map
else:
    __getattr__ = submodules(__name__)

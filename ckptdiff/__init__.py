"""Exact, sparse differences between model checkpoints.

The verbs are those of the command line: :func:`make` a patch from a base and a target, :func:`apply` it to rebuild the target byte for
byte, :func:`compose` one patch of several, read its :func:`info`, :func:`verify` it, and :func:`compare` two checkpoints. :func:`report`
measures what training changed, :func:`report_patch` reads such a report from a patch, and :func:`overlap` compares several updates.
:func:`push` publishes a patch on the Hugging Face Hub, and :func:`pull` fetches a model from there. :func:`chain_add` keeps every
checkpoint of a training run, and :func:`chain_restore` gives any of them back. :func:`plan_make` and :func:`plan_apply` say what a run
would do. Checkpoints and patches may be ids on the Hub (``org/name@revision``). Every error is a :class:`CkptdiffError`. The format is
specified in ``spec/ckptdiff-v1.md``.

Names are imported when they are first used, so that ``import ckptdiff`` and ``ckptdiff --help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # not from typing, which takes longer to import than this module
if TYPE_CHECKING:
    from typing import Any

    from ckptdiff.analysis.overlap import OverlapResult
    from ckptdiff.analysis.report_model import Report
    from ckptdiff.analysis.series import ChainReport
    from ckptdiff.chain.following import Version
    from ckptdiff.chain.state_publisher import Publisher
    from ckptdiff.chain.subscriber import Staged, Subscriber
    from ckptdiff.errors import (
        BaseMismatchError,
        CheckpointError,
        CkptdiffError,
        FormatError,
        HubError,
        IntegrityError,
        OutputError,
        ResourceError,
        RevisionError,
        StoreError,
        UnsupportedError,
    )
    from ckptdiff.live.changes import Change
    from ckptdiff.live.encoder import Encoder
    from ckptdiff.live.identity import identity
    from ckptdiff.live.patch import Patch, diff
    from ckptdiff.live.switch import LoadedPatch
    from ckptdiff.live.target import load_target
    from ckptdiff.subnetwork.mask import Mask
    from ckptdiff.verbs.apply import ApplyResult, apply
    from ckptdiff.verbs.apply_in_place import apply_in_place
    from ckptdiff.verbs.chain_add import ChainAddResult, chain_add
    from ckptdiff.verbs.chain_list import ChainListing, chain_list
    from ckptdiff.verbs.chain_prune import ChainPruneResult, chain_prune
    from ckptdiff.verbs.chain_pull import ChainPullResult, chain_pull
    from ckptdiff.verbs.chain_push import ChainPushResult, chain_push
    from ckptdiff.verbs.chain_restore import ChainRestoreResult, chain_restore
    from ckptdiff.verbs.chain_series import chain_mask, chain_overlap, chain_report
    from ckptdiff.verbs.chain_squash import ChainSquashResult, chain_squash
    from ckptdiff.verbs.chain_verify import ChainVerifyResult, chain_verify
    from ckptdiff.verbs.compare import CompareResult, compare
    from ckptdiff.verbs.compose import ComposeResult, compose
    from ckptdiff.verbs.info import PatchInfo, info
    from ckptdiff.verbs.make import MakeResult, make
    from ckptdiff.verbs.overlap import overlap
    from ckptdiff.verbs.plan_apply import ApplyPlan, plan_apply
    from ckptdiff.verbs.plan_make import MakePlan, plan_make
    from ckptdiff.verbs.pull import PullResult, pull
    from ckptdiff.verbs.push import PushResult, push
    from ckptdiff.verbs.report import report, report_patch
    from ckptdiff.verbs.verify import VerifyResult, verify

__version__ = "0.1.0"

__all__ = [
    "ApplyPlan",
    "ApplyResult",
    "BaseMismatchError",
    "ChainAddResult",
    "ChainListing",
    "ChainPruneResult",
    "ChainPullResult",
    "ChainPushResult",
    "ChainReport",
    "ChainRestoreResult",
    "ChainSquashResult",
    "ChainVerifyResult",
    "Change",
    "CheckpointError",
    "CkptdiffError",
    "CompareResult",
    "ComposeResult",
    "Encoder",
    "FormatError",
    "HubError",
    "IntegrityError",
    "LoadedPatch",
    "MakePlan",
    "MakeResult",
    "Mask",
    "OutputError",
    "OverlapResult",
    "Patch",
    "PatchInfo",
    "Publisher",
    "PullResult",
    "PushResult",
    "Report",
    "ResourceError",
    "RevisionError",
    "Staged",
    "StoreError",
    "Subscriber",
    "UnsupportedError",
    "VerifyResult",
    "Version",
    "apply",
    "apply_in_place",
    "chain_add",
    "chain_list",
    "chain_mask",
    "chain_overlap",
    "chain_prune",
    "chain_pull",
    "chain_push",
    "chain_report",
    "chain_restore",
    "chain_squash",
    "chain_verify",
    "compare",
    "compose",
    "diff",
    "identity",
    "info",
    "load_target",
    "make",
    "overlap",
    "plan_apply",
    "plan_make",
    "pull",
    "push",
    "report",
    "report_patch",
    "verify",
]

_MODULES = {
    "OverlapResult": "analysis.overlap",
    "Report": "analysis.report_model",
    "Version": "chain.following",
    "Publisher": "chain.state_publisher",
    "Staged": "chain.subscriber",
    "Subscriber": "chain.subscriber",
    "ChainReport": "analysis.series",
    "Change": "live.changes",
    "Encoder": "live.encoder",
    "identity": "live.identity",
    "Patch": "live.patch",
    "diff": "live.patch",
    "LoadedPatch": "live.switch",
    "load_target": "live.target",
    "Mask": "subnetwork.mask",
    "ApplyResult": "verbs.apply",
    "apply": "verbs.apply",
    "apply_in_place": "verbs.apply_in_place",
    "ChainAddResult": "verbs.chain_add",
    "chain_add": "verbs.chain_add",
    "ChainListing": "verbs.chain_list",
    "chain_list": "verbs.chain_list",
    "ChainPruneResult": "verbs.chain_prune",
    "chain_prune": "verbs.chain_prune",
    "ChainRestoreResult": "verbs.chain_restore",
    "chain_restore": "verbs.chain_restore",
    "ChainPullResult": "verbs.chain_pull",
    "chain_pull": "verbs.chain_pull",
    "ChainPushResult": "verbs.chain_push",
    "chain_push": "verbs.chain_push",
    "chain_mask": "verbs.chain_series",
    "chain_overlap": "verbs.chain_series",
    "chain_report": "verbs.chain_series",
    "ChainSquashResult": "verbs.chain_squash",
    "chain_squash": "verbs.chain_squash",
    "ChainVerifyResult": "verbs.chain_verify",
    "chain_verify": "verbs.chain_verify",
    "CompareResult": "verbs.compare",
    "compare": "verbs.compare",
    "ComposeResult": "verbs.compose",
    "compose": "verbs.compose",
    "PatchInfo": "verbs.info",
    "info": "verbs.info",
    "MakeResult": "verbs.make",
    "make": "verbs.make",
    "overlap": "verbs.overlap",
    "ApplyPlan": "verbs.plan_apply",
    "plan_apply": "verbs.plan_apply",
    "MakePlan": "verbs.plan_make",
    "plan_make": "verbs.plan_make",
    "PullResult": "verbs.pull",
    "pull": "verbs.pull",
    "PushResult": "verbs.push",
    "push": "verbs.push",
    "report": "verbs.report",
    "report_patch": "verbs.report",
    "VerifyResult": "verbs.verify",
    "verify": "verbs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ckptdiff' has no attribute {name!r}")
    value = getattr(import_module(f"ckptdiff.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

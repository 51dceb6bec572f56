"""One module for each verb of the command line and the API."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.verbs import apply as apply
    from ckptdiff.verbs import apply_in_place as apply_in_place
    from ckptdiff.verbs import card as card
    from ckptdiff.verbs import chain_add as chain_add
    from ckptdiff.verbs import chain_list as chain_list
    from ckptdiff.verbs import chain_parts as chain_parts
    from ckptdiff.verbs import chain_prune as chain_prune
    from ckptdiff.verbs import chain_pull as chain_pull
    from ckptdiff.verbs import chain_push as chain_push
    from ckptdiff.verbs import chain_restore as chain_restore
    from ckptdiff.verbs import chain_series as chain_series
    from ckptdiff.verbs import chain_squash as chain_squash
    from ckptdiff.verbs import chain_verify as chain_verify
    from ckptdiff.verbs import compare as compare
    from ckptdiff.verbs import compose as compose
    from ckptdiff.verbs import info as info
    from ckptdiff.verbs import make as make
    from ckptdiff.verbs import overlap as overlap
    from ckptdiff.verbs import plan_apply as plan_apply
    from ckptdiff.verbs import plan_make as plan_make
    from ckptdiff.verbs import pull as pull
    from ckptdiff.verbs import push as push
    from ckptdiff.verbs import report as report
    from ckptdiff.verbs import verify as verify
    from ckptdiff.verbs import verify_hub as verify_hub
else:
    __getattr__ = submodules(__name__)

"""How a patch is made and how its target is rebuilt (spec sections 8 and 10)."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.patching import build as build
    from ckptdiff.patching import chain as chain
    from ckptdiff.patching import compare_on_device as compare_on_device
    from ckptdiff.patching import compare_on_host as compare_on_host
    from ckptdiff.patching import compose as compose
    from ckptdiff.patching import compose_base as compose_base
    from ckptdiff.patching import compose_blocks as compose_blocks
    from ckptdiff.patching import compose_files as compose_files
    from ckptdiff.patching import compose_history as compose_history
    from ckptdiff.patching import compose_tensors as compose_tensors
    from ckptdiff.patching import destination as destination
    from ckptdiff.patching import encode as encode
    from ckptdiff.patching import encode_options as encode_options
    from ckptdiff.patching import encode_pair as encode_pair
    from ckptdiff.patching import encode_plan as encode_plan
    from ckptdiff.patching import file_sink as file_sink
    from ckptdiff.patching import memory as memory
    from ckptdiff.patching import other_files as other_files
    from ckptdiff.patching import output as output
    from ckptdiff.patching import overwrite as overwrite
    from ckptdiff.patching import patch as patch
    from ckptdiff.patching import pending_tensor as pending_tensor
    from ckptdiff.patching import provenance as provenance
    from ckptdiff.patching import rebuild as rebuild
    from ckptdiff.patching import rebuild_plan as rebuild_plan
    from ckptdiff.patching import recipes as recipes
    from ckptdiff.patching import source_folder as source_folder
    from ckptdiff.patching import target_files as target_files
    from ckptdiff.patching import torch_dtypes as torch_dtypes
    from ckptdiff.patching import traffic_plan as traffic_plan
    from ckptdiff.patching import work_plan as work_plan
    from ckptdiff.patching import write as write
    from ckptdiff.patching import wrong_base as wrong_base
else:
    __getattr__ = submodules(__name__)

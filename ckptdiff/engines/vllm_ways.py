"""The ways of vLLM's engine: its own sparse patches and its layerwise reload, from a mirror, beside the move of its memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from vllm.model_executor.model_loader.checkpoint_weight_patch import CheckpointWeightPatch, load_checkpoint_weight_patches
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

from ckptdiff.engines.placed import check_values, prepare_values
from ckptdiff.engines.served import Record, record
from ckptdiff.engines.ways import Load, Mirror, Move, ThroughMirror, Way
from ckptdiff.errors import CheckpointError, UnsupportedError, cut
from ckptdiff.live.switch import LoadedPatch

MODES = ("move", "sparse", "mirror")


def way_of(mode: str, model: torch.nn.Module, model_config: Any, base: str, digests: Any, threads: int) -> Way:
    """The way that a mode names, with a model that was loaded from ``base``.

    Raises:
        CheckpointError: there is no such mode. BaseMismatchError: the model was not loaded from there. UnsupportedError: it cannot be
            updated in this way.
    """
    if mode not in MODES:
        raise CheckpointError(f"unknown mode {cut(mode)}: expected one of {', '.join(MODES)}")
    refuse_prepacked(model)
    if mode == "mirror":
        return ThroughMirror(base, lambda mirror, _: lambda: reload(model, model_config, mirror), threads)
    served = record(model, base, digests=digests, threads=threads)
    if mode == "move":
        return Move(model, served, base)
    check = partial(check_values, model, served)
    return ThroughMirror(base, lambda mirror, loaded: prepare_sparse(model, served, mirror, loaded), threads, check)


def refuse_prepacked(model: torch.nn.Module) -> None:
    """Raise UnsupportedError for layers that compute with a packed copy of their weights: nothing that vLLM has would update that."""
    for name, layer in model.named_modules():
        free = getattr(getattr(getattr(layer, "cpu_linear", None), "__code__", None), "co_freevars", ())
        if free:
            raise UnsupportedError(
                f"the model: {cut(name)}: vLLM computes with a packed copy of its weights on this CPU ({', '.join(free)}), which no update "
                "of the weights reaches, vLLM's own reload_weights neither: serve it in bfloat16, on a CPU without that packing "
                "(ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN from it), or start the engine anew from the new checkpoint"
            )


@torch.no_grad()
def reload(model: torch.nn.Module, model_config: Any, mirror: Mirror) -> None:
    """Load all of a mirror, as vLLM reloads a checkpoint: layers are processed once they are complete."""
    initialize_layerwise_reload(model)
    try:
        model.load_weights(iter(mirror.items()))  # type: ignore[operator]
    finally:
        finalize_layerwise_reload(model, model_config)


def prepare_sparse(model: torch.nn.Module, served: Record, mirror: Mirror, loaded: LoadedPatch) -> Load:
    """Prepare to write what a patch changed, from a mirror that has it: to the places that the record knows, else by vLLM's sparse patches.

    Raises:
        UnsupportedError: a value is NaN, which vLLM takes for "unchanged", or a tensor is not of floats.
    """
    write = prepare_values(model, served, mirror, loaded)
    if write is not None:
        return write
    patches = list(_patches(mirror, loaded))
    for patch in patches:
        if not patch.dtype.is_floating_point or bool(torch.isnan(patch.values).any()):
            raise UnsupportedError(
                f"the model: tensor {cut(patch.name)}: vLLM's sparse patches take numbers alone, and it has NaN or is no float: use the "
                "mode move or mirror"
            )
    return lambda: load_checkpoint_weight_patches(model, patches, validate_unique_indices=False)


def _patches(mirror: Mirror, loaded: LoadedPatch) -> Iterator[CheckpointWeightPatch]:
    for name, positions in loaded.touched():
        tensor, where = mirror[name], torch.from_numpy(positions.astype(np.int64))
        yield CheckpointWeightPatch(name, tuple(tensor.shape), tensor.dtype, tensor.reshape(-1)[where], where)

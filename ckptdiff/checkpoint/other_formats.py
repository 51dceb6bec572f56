"""Weights in other formats than safetensors: copies beside a checkpoint, and advice where there is nothing else."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckptdiff.checkpoint.selection import matches_path
from ckptdiff.errors import CheckpointError
from ckptdiff.hub.ids import HubId
from ckptdiff.io.places import Place

OTHER_FORMATS = {
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".keras", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".pb",
    ".mlmodel", ".nemo", ".pdparams", ".engine",
}  # fmt: skip
"""Endings of files that hold weights in another format; beside safetensors they mostly are a copy of the same weights."""

LOAD_WITH_TORCH = "load it with torch.load(weights_only=True) and write it with safetensors.torch.save_file"
CONVERTERS = {
    ".bin": "load it with transformers and save_pretrained(..., safe_serialization=True)",
    ".pt": LOAD_WITH_TORCH,
    ".pth": LOAD_WITH_TORCH,
    ".ckpt": LOAD_WITH_TORCH,
    ".gguf": "load it with transformers from_pretrained(..., gguf_file=NAME) and save_pretrained",
    ".nemo": "export it with NeMo (nemo llm export, or the model's convert_*_nemo_to_hf.py)",
    ".distcp": (
        "give the folder that its .metadata lies in, or convert it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch, "
        "then safetensors.torch.save_file"
    ),
}
"""How to convert a file to safetensors, by its ending."""

MERGE_TOOLS = (
    ("verl", "model_world_size_*_rank_*.pt", "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT"),
    ("verl with Megatron", "dist_ckpt/*", "python -m verl.model_merger merge --backend megatron --local_dir {folder} --target_dir OUT"),
    ("accelerate (FSDP)", "pytorch_model_fsdp_[0-9]*/*.distcp", "accelerate merge-weights {folder}/pytorch_model_fsdp_0 OUT"),
    ("DeepSpeed", "*_states.pt", "python -m deepspeed.utils.zero_to_fp32 {folder} OUT --safe_serialization"),
    ("Megatron", "model_optim_rng.pt", "Megatron Bridge (AutoBridge, export_ckpt), or Megatron-LM's tools/checkpoint/convert.py"),
    ("Megatron or NeMo", "common.pt", "Megatron Bridge (AutoBridge, export_ckpt)"),
)
"""Trainers that write a model in parts, the names of the parts, and the command that merges them to one model."""

TRAINING_STATE = re.compile(
    r"(optim|distrib_optim|dist_optim|scheduler|scaler|rng_|random_states|sampler|extra_state|trainer_state|training_args|latest)"
)
"""How names of files with optimizer and trainer state begin."""


def other_formats(names: Iterable[str]) -> list[str]:
    """The paths of files that may hold the same weights in another format."""
    return [name for name in names if os.path.splitext(name)[1].lower() in OTHER_FORMATS]


def refuse_without_safetensors(
    path: Place | HubId, names: Sequence[str], left_out: Collection[str], can_include: bool, excluded: Sequence[str] = ()
) -> None:
    """Say what a checkpoint without safetensors holds instead, and what to do.

    Args:
        path: a path, a URL, or an id on the Hub.
        names: the paths of all its files.
        left_out: the paths of those that were left out.
        can_include: whether the caller has an option to take files in.
        excluded: globs of files that the caller leaves out.

    Raises:
        CheckpointError: always.
    """
    refuse_excluded(path, names, excluded)
    _refuse_weights_below(path, names, can_include)
    _refuse_dcp_below(path, names)
    _refuse_parts(path, names)
    for name in sorted(names, key=lambda name: name in left_out):
        converter = CONVERTERS.get(os.path.splitext(name)[1])
        if converter and not _is_state(name):
            raise CheckpointError(f"{path}: {name} is not safetensors, which ckptdiff needs: {converter}, then run again")
    checkpoints = sorted(
        {name.split("/")[0] for name in names if re.match(r"(checkpoint-|global_step|step_|epoch_|iter_)\d+/", name)}, key=_by_number
    )
    if checkpoints:
        raise CheckpointError(f"{path}: holds no weights itself; is {_inside(path, checkpoints[-1])} meant?")
    state = next((name for name in names if _is_state(name)), None)
    if state is not None:
        raise CheckpointError(
            f"{path}: holds no weights, only state such as {state}: ckptdiff makes no patches of optimizer and trainer state"
        )
    raise CheckpointError(f"{path}: expected a .safetensors file or a folder that holds one, found none")


def refuse_excluded(path: Place | HubId, names: Iterable[str], excluded: Sequence[str]) -> None:
    """Raise CheckpointError if the caller's own globs leave out the safetensors files among some names."""
    weights = [name for name in names if name.endswith(".safetensors") and not _is_state(name) and matches_path(name, excluded)]
    if weights:
        globs = " ".join(f"--exclude {shlex.quote(glob)}" for glob in excluded if any(matches_path(name, [glob]) for name in weights))
        more = f" and {len(weights) - 1:,} more" if len(weights) > 1 else ""
        raise CheckpointError(f"{path}: no weights are left: {globs} leaves out {weights[0]}{more}; narrow the glob")


def _refuse_weights_below(path: Place | HubId, names: Sequence[str], can_include: bool) -> None:
    """Raise CheckpointError if folders below hold safetensors, which are left out by default."""
    holders = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors") and not _is_state(name)}
    inside = sorted(holders - {""}, key=_by_number)
    if inside:
        more = f" (and {len(inside) - 1} more)" if len(inside) > 1 else ""
        take = ", or take files in with --include" if can_include else ""
        raise CheckpointError(f"{path}: holds no weights itself, but {inside[-1]} does{more}: give {_inside(path, inside[-1])}{take}")


def _refuse_dcp_below(path: Place | HubId, names: Sequence[str]) -> None:
    """Raise CheckpointError if a folder below is one of torch.distributed.checkpoint, which is read here, not on the Hub."""
    with_parts = {name.rpartition("/")[0] for name in names if name.endswith(".distcp")}
    folders = [folder for folder in with_parts - {""} if f"{folder}/.metadata" in names and not _is_state(folder)]
    if folders and isinstance(path, Path):
        inside = max(folders, key=_by_number)
        raise CheckpointError(f"{path}: holds no weights itself, but torch.distributed.checkpoint wrote {inside}: give {path / inside}")


def _refuse_parts(path: Place | HubId, names: Sequence[str]) -> None:
    """Raise CheckpointError if a trainer wrote the model in parts."""
    for who, pattern, tool in MERGE_TOOLS:
        part = next((name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")), None)
        if part is not None:
            folder = path.parent if isinstance(path, Path) and path.is_file() else _inside(path, _holder(part, pattern))
            command = tool.format(folder=folder)
            raise CheckpointError(
                f"{path}: {part} is {who}'s part of a model, and ckptdiff needs safetensors: merge the parts with {command}"
            )


def _inside(path: Place | HubId, folder: str) -> Place | HubId:
    """A folder in a checkpoint, as a path or id of its own."""
    return replace(path, subfolder="/".join(filter(None, (path.subfolder, folder)))) if isinstance(path, HubId) else path / folder


def _is_state(name: str) -> bool:
    """Whether a file holds optimizer or trainer state, by its name; a configuration, such as of a diffusion model's scheduler, does not."""
    last = name.rpartition("/")[2]
    return TRAINING_STATE.match(last) is not None and not last.endswith("config.json")


def _holder(name: str, pattern: str) -> str:
    """The folder that the merging tool takes: the one that the pattern is relative to, or for DeepSpeed the one above, with ``latest``."""
    parts = name.split("/")[: -1 - pattern.count("/")]
    return "/".join(parts[:-1] if pattern == "*_states.pt" else parts)


def _by_number(name: str) -> tuple[list[int], str]:
    """A sorting key that puts checkpoint-10 after checkpoint-9."""
    return [int(digits) for digits in re.findall(r"\d+", name)[:8]], name

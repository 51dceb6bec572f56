"""Weights that are not safetensors: files that hold them once more beside these, and what to do where there is nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckptdiff.errors import CheckpointError
from ckptdiff.hub.ids import HubId

OTHER_FORMATS = {
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".keras", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".pb",
    ".mlmodel", ".nemo", ".pdparams", ".engine",
}  # fmt: skip
"""Endings of files that beside safetensors mostly hold the weights once more, in another format."""

LOAD_WITH_TORCH = "load it with torch.load(weights_only=True) and write it with safetensors.torch.save_file"
CONVERTERS = {
    ".bin": "load it with transformers and save_pretrained(..., safe_serialization=True)",
    ".pt": LOAD_WITH_TORCH,
    ".pth": LOAD_WITH_TORCH,
    ".ckpt": LOAD_WITH_TORCH,
    ".gguf": "load it with transformers from_pretrained(..., gguf_file=NAME) and save_pretrained",
    ".nemo": "export it with NeMo (nemo llm export, or the model's convert_*_nemo_to_hf.py)",
    ".distcp": "convert it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch, then safetensors.torch.save_file",
}

MERGE_TOOLS = (
    ("verl", "model_world_size_*_rank_*.pt", "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT"),
    ("verl with Megatron", "dist_ckpt/*", "python -m verl.model_merger merge --backend megatron --local_dir {folder} --target_dir OUT"),
    ("accelerate (FSDP)", "pytorch_model_fsdp_[0-9]*/*.distcp", "accelerate merge-weights {folder}/pytorch_model_fsdp_0 OUT"),
    ("DeepSpeed", "*_states.pt", "python -m deepspeed.utils.zero_to_fp32 {folder} OUT --safe_serialization"),
    ("Megatron", "model_optim_rng.pt", "Megatron Bridge (AutoBridge, export_ckpt), or Megatron-LM's tools/checkpoint/convert.py"),
    ("Megatron or NeMo", "common.pt", "Megatron Bridge (AutoBridge, export_ckpt)"),
)
"""Who writes weights of these names, in parts of a kind of their own, and what makes these one model."""

TRAINING_STATE = re.compile(
    r"(optim|distrib_optim|dist_optim|scheduler|scaler|rng_|random_states|sampler|extra_state|trainer_state|training_args|latest)"
)


def other_formats(names: Iterable[str]) -> list[str]:
    """The paths of files that may hold the weights once more."""
    return [name for name in names if os.path.splitext(name)[1].lower() in OTHER_FORMATS]


def refuse_without_safetensors(path: Path | HubId, names: Sequence[str], left_out: Collection[str], can_include: bool) -> None:
    """Say what a checkpoint without safetensors holds, and what to do.

    Args:
        path: where it is, here or on the Hub.
        names: the paths of all its files; left_out: of those that were left out.
        can_include: whether the caller has an option to take files in.

    Raises:
        CheckpointError: always.
    """
    holders = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors") and not _is_state(name)}
    inside = sorted(holders - {""}, key=_by_number)
    if inside:
        more = f" (and {len(inside) - 1} more)" if len(inside) > 1 else ""
        take = ", or take files in with --include" if can_include else ""
        raise CheckpointError(f"{path}: holds no weights itself, but {inside[-1]} does{more}: give {_inside(path, inside[-1])}{take}")
    for who, pattern, tool in MERGE_TOOLS:
        found = next((name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")), None)
        if found is not None:
            folder = path.parent if isinstance(path, Path) and path.is_file() else _inside(path, _holder(found, pattern))
            command = tool.format(folder=folder)
            raise CheckpointError(
                f"{path}: {found} is {who}'s part of a model, and ckptdiff needs safetensors: merge the parts with {command}"
            )
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


def _inside(path: Path | HubId, folder: str) -> Path | HubId:
    return path / folder if isinstance(path, Path) else replace(path, subfolder="/".join(filter(None, (path.subfolder, folder))))


def _is_state(name: str) -> bool:
    """By its name; configurations, such as a diffusion model's scheduler has, are none."""
    last = name.rpartition("/")[2]
    return TRAINING_STATE.match(last) is not None and not last.endswith("config.json")


def _holder(name: str, pattern: str) -> str:
    """The folder that a trainer's tool wants: that of the pattern, for DeepSpeed the one above, where ``latest`` is."""
    parts = name.split("/")[: -1 - pattern.count("/")]
    return "/".join(parts[:-1] if pattern == "*_states.pt" else parts)


def _by_number(name: str) -> tuple[list[int], str]:
    """checkpoint-10 after checkpoint-9."""
    return [int(digits) for digits in re.findall(r"\d+", name)[:8]], name

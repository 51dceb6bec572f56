"""``demo`` makes a small synthetic base and an RL-like target, and runs the main commands on them, without torch and without a network."""

from __future__ import annotations

import json
import math
import os
import shlex
import tempfile
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from ckptdiff import kernels
from ckptdiff.cli.tables import print_text
from ckptdiff.errors import CkptdiffError, OutputError, visible
from ckptdiff.format.safetensors_library import write_tensors
from ckptdiff.io.work_folder import work_folder

WIDTH, LAYERS, VOCABULARY, HIDDEN = 512, 8, 8192, 1408
UPDATE_SCALE = 3e-6
"""Standard deviation of the total update of one weight, which is about what some hundred Adam steps at a rate of 1e-6 add up to."""

Weights = dict[str, npt.NDArray[np.uint16]]
"""Bits of bf16 weights by name."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama-like model of 30 million parameters."""
    layer = {
        "input_layernorm": (WIDTH,),
        "mlp.down_proj": (WIDTH, HIDDEN),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "post_attention_layernorm": (WIDTH,),
        **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "kqvo"},
    }
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for k in range(LAYERS):
        names |= {f"model.layers.{k}.{name}.weight": shape for name, shape in layer.items()}
    return names | {"model.norm.weight": (WIDTH,)}


def to_bf16(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Weights rounded to bf16, as bits."""
    return kernels.casts.cast(weights.reshape(-1).view(np.uint8), "F32", "BF16").view(np.uint16)


def make_weights() -> tuple[Weights, Weights]:
    """Weights of a base and a target; the same every time.

    fp32 master weights move by an Adam-sized update whose scale varies by row and column, and are rounded to bf16.
    """
    rng, base, target, at = np.random.default_rng(0), Weights(), Weights(), 0
    memory = np.empty((2, sum(map(math.prod, shapes().values()))), np.uint16)  # in one piece, which is given back in one
    for name, shape in shapes().items():
        old, new = memory[:, at : at + math.prod(shape)]
        at += len(old)
        base[name], target[name] = old.reshape(shape), new.reshape(shape)
        if name.endswith("norm.weight"):
            old[:] = new[:] = to_bf16(np.ones(shape, np.float32))
            continue
        weights = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        scale = rng.lognormal(0, 0.5, (shape[0], 1)) * rng.lognormal(0, 0.5, (1, shape[1]))
        update = rng.standard_normal(shape, np.float32) * (UPDATE_SCALE * scale).astype(np.float32)
        old[:], new[:] = to_bf16(weights), to_bf16(weights + update)
    return base, target


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Write a base and a target checkpoint of bf16 weights; the same bytes every time."""
    base, target = folder / "base", folder / "tuned"
    for path, tokens, weights in zip((base, target), (4096, 2048), make_weights(), strict=True):
        path.mkdir(parents=True)
        config = {"architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "max_position_embeddings": tokens, "vocab_size": VOCABULARY}
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_tensors(path / "model.safetensors", {name: ("BF16", bits) for name, bits in weights.items()}, {"format": "pt"})
    return base, target


def run(folder: Path | None, command: click.Command) -> None:
    """Make the pair and run commands on it.

    Args:
        folder: a new or empty folder for all files; None for a temporary folder, which is removed at the end.
        command: the group of ckptdiff's commands.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
    """
    if folder is None:
        with work_folder(Path(tempfile.gettempdir()), "ckptdiff-demo-") as work:
            _run(work.path, command)
        print_text()
        print_text("The files have been removed. To keep them: ckptdiff demo DIR")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: exists and is not an empty folder; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _run(folder, command)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{folder} holds what was written until then: remove it") from None
    print_text()
    print_text(f"The files are in {folder}.")


def _run(folder: Path, command: click.Command) -> None:
    """Write the pair into a folder, and run and show each command."""
    print_text(f"A synthetic pair of checkpoints (random bf16 weights, one Adam-sized update; no real model), in {folder}:")
    base, target = (os.fspath(path) for path in write_pair(folder))
    patch, out = os.fspath(folder / "patch"), os.fspath(folder / "rebuilt")
    steps = (
        ["make", base, target, "-o", patch],
        ["info", patch],
        ["report", base, patch, "--rank", "none"],
        ["apply", base, patch, "-o", out],
        ["verify", patch, "--base", base, "--target", out],
        ["compare", target, out],
    )
    for arguments in steps:
        click.echo(click.style(f"\n$ ckptdiff {visible(shlex.join(arguments))}", bold=True))
        code = command.main(arguments, standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        if code not in (None, 0):
            raise CkptdiffError(f"ckptdiff {arguments[0]} ended with {code}")
    print_text()
    print_text("These commands were run. With checkpoints of your own in place of BASE and TARGET:")
    names = {base: "BASE", target: "TARGET", patch: "PATCH", out: "OUT"}
    for arguments in steps:
        print_text(f"  ckptdiff {' '.join(names.get(word, word) for word in arguments)}")

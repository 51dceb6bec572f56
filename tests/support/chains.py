"""Training runs of a small model, for tests of chains, and what a chain gives back of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ckptdiff
from tests.support.checkpoints import perturb, tree, write, write_sharded
from tests.support.small_pair import tensors

LEFT_OUT = "optimizer.pt"


def training_run(folder: Path, count: int, seed: int = 1, form: str = "checkpoint-{}") -> list[Path]:
    """Checkpoints of a run, each with shards, files without weights that change, and optimizer state, which no patch has."""
    rng, made = np.random.default_rng(seed), list[Path]()
    state = {name: perturb(np.random.default_rng(seed), value, 0.01) for name, value in tensors()[0].items()}
    for k in range(count):
        path = folder / form.format(100 * k)
        names = list(state)
        shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
        write_sharded(path, {shard: {name: state[name] for name in held} for shard, held in shards.items()})
        (path / "config.json").write_text(json.dumps({"step": k, "text": "the same in all steps " * 9}))
        (path / "tokenizer.json").write_text("never changes")
        (path / LEFT_OUT).write_bytes(bytes([k]) * 50)
        made.append(path)
        state = {name: perturb(rng, value, 0.01) for name, value in state.items()}
    return made


def run_of_files(folder: Path, count: int) -> list[Path]:
    """Checkpoints of one file each."""
    rng, state, made = np.random.default_rng(1), tensors()[0], []
    for k in range(count):
        made.append(write(folder / f"step_{100 * k}.safetensors", state, {"format": "pt"}))
        state = {name: perturb(rng, value, 0.01) for name, value in state.items()}
    return made


def weights(path: Path) -> dict[str, str]:
    """SHA-256 of all files of a checkpoint that a patch has."""
    return {name: digest for name, digest in tree(path).items() if name != LEFT_OUT}


def check_steps(chain: str | Path, run: Sequence[Path], out: Path, steps: Sequence[int], base: Path | None = None) -> None:
    """Restore steps, and compare them byte for byte with what they were."""
    for step in steps:
        target = out / f"restored-{step}"
        ckptdiff.chain_restore(chain, step, target, base=base or run[0])
        assert tree(target) == weights(run[step // 100]), step

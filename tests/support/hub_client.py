"""Commands of ckptdiff as one machine's user runs them against a Hub, and the repos that they need."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.checkpoints import tensor, write
from tests.support.commands import CKPTDIFF
from tests.support.hub_server import environment
from tests.support.hub_state import TOKEN, Hub
from tests.support.warm_process import run_command


class Client:
    """ckptdiff on one machine: its home holds the Hub's cache. ``cold``: each command starts Python anew, as a user's does."""

    def __init__(self, hub: Hub, folder: Path, token: str | None = TOKEN, cold: bool = False) -> None:
        self.folder, self.cold = folder, cold
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment |= environment(hub, folder / "home", token)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: object, code: int = 0, **more: str) -> SimpleNamespace:
        """Run a command; its output must not hold the token."""
        words, environment = [str(argument) for argument in arguments], self.environment | more
        done: Any
        if self.cold:
            done = subprocess.run([*CKPTDIFF, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        else:
            done = run_command(words, self.folder, environment, timeout=120)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert TOKEN not in done.stdout + done.stderr
        return SimpleNamespace(stdout=done.stdout, stderr=done.stderr)


def checkpoint(folder: Path, step: int) -> Path:
    """A model of two shards; ``step`` changes some of its weights and one line of its tokenizer."""
    rng = np.random.default_rng(5)
    for k in (1, 2):
        units = rng.integers(0x3C00, 0x3E00, (64, 128)).astype("<u2")
        for n in range(step):
            units[n :: 7 + n] += 1 + n
        shard = {
            f"layers.{k}.q_proj.weight": tensor("BF16", units.shape, units),
            f"norm{k}": tensor("F32", (4,), bytes(16)),
        }
        write(folder / f"model-0000{k}-of-00002.safetensors", shard)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}\n')
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": list(range(2000)), "step": step}))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CARD = b"---\nlicense: apache-2.0\n---\n# base\n"
MADE: dict[tuple[str, ...], dict[str, bytes]] = {}
"""The files of each patch by its options: one is made once, since repos with the same files have the same commits here."""


def made(hub: Hub, client: Client, models: list[Path], *options: str) -> None:
    """A base repo, and a patch from it made by id in the client's folder."""
    if "org/base" not in hub.repos:
        hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    if options not in MADE:
        client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse", *options)
        MADE[options] = files_of(client.folder / "patch")
    for path, data in MADE[options].items():
        (client.folder / "patch" / path).parent.mkdir(parents=True, exist_ok=True)
        (client.folder / "patch" / path).write_bytes(data)
    learn(hub, client.folder / "patch")


def publish(hub: Hub, client: Client, models: list[Path], *options: str) -> None:
    """A base repo, and a patch from it made by id and pushed. Drawing a stored report (``--report``) takes most of a push."""
    made(hub, client, models, *options)
    client.run("push", "patch", "me/patch")


def learn(hub: Hub, patch: Path) -> None:
    if hub.cas:
        for path in patch.rglob("*"):
            if path.is_file():
                hub.learn(path.read_bytes())


def pushed(hub: Hub, models: list[Path], tmp_path: Path) -> Client:
    publish(hub, Client(hub, tmp_path / "a"), models)
    return Client(hub, tmp_path / "b")

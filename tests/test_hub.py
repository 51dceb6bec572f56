"""Ids, push, pull and remote reading, with the real client against a Hub on this machine (``tests/hub_server.py``)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.checkpoints import tensor, write
from tests.hub_server import TOKEN, Hub, environment, running
from tests.test_cli import CKPTDIFF

pytest.importorskip("huggingface_hub")


class Client:
    """ckptdiff on one machine: its home holds the Hub's cache."""

    def __init__(self, hub: Hub, folder: Path, token: str | None = TOKEN) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment |= environment(hub, folder / "home", token)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: object, code: int = 0, **more: str) -> SimpleNamespace:
        """Run a command; its output must not hold the token."""
        command = [*CKPTDIFF, *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=self.environment | more, capture_output=True, text=True, timeout=120)
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


@pytest.fixture(params=["lfs", "xet"])
def any_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub", xet=request.param == "xet") as hub:
        yield hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [checkpoint(tmp_path / f"model{step}", step) for step in range(3)]


def publish(hub: Hub, client: Client, models: list[Path], name: str = "me/patch", *options: str) -> None:
    """A base repo, and a patch from it made by id and pushed."""
    if "org/base" not in hub.repos:
        hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    client.run("make", "org/base", models[1], "-o", "patch", "--report", *options)
    learn(hub, client.folder / "patch")
    client.run("push", "patch", name)


def learn(hub: Hub, patch: Path) -> None:
    if hub.cas:
        for path in patch.rglob("*"):
            if path.is_file():
                hub.learn(path.read_bytes())


def test_there_and_back(any_hub: Hub, models: list[Path], tmp_path: Path) -> None:
    publish(any_hub, Client(any_hub, tmp_path / "a"), models)
    other = Client(any_hub, tmp_path / "b")
    shown = other.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1]) and "SHA-256 as the patch states" in shown.stdout


def test_a_chain_of_two(any_hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(any_hub, tmp_path / "a")
    publish(any_hub, client, models)
    client.run("make", models[1], models[2], "-o", "second", "--base-repo", "me/patch")
    learn(any_hub, tmp_path / "a" / "second")
    client.run("push", "second", "me/second", "--license", "mit")
    other = Client(any_hub, tmp_path / "b")
    done = json.loads(other.run("pull", "me/second", "-o", "out", "--json").stdout)
    assert files_of(tmp_path / "b" / "out") == files_of(models[2])
    assert [p.split("@")[0] for p in done["patches"]] == ["me/patch", "me/second"] and done["base"].startswith("org/base@")

"""Ids of the Hub in every command, and remote reading, with the real client against a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import tensor, write
from tests.support.hub_client import Client, files_of, publish
from tests.support.hub_state import Hub

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


def test_info_and_report_read_no_payload(hub: Hub, tmp_path: Path) -> None:
    """The patch has 40 MB, and the server counts the bytes that it sends."""
    rng = np.random.default_rng(1)
    write(tmp_path / "base" / "model.safetensors", {"w": tensor("U8", (1000,), bytes(1000)), "x": tensor("U8", (8,), bytes(8))})
    new = {"w": tensor("U8", (1000,), bytes([1]) + bytes(999)), "big": tensor("U8", (40_000_000,), rng.integers(0, 256, 40_000_000, "u1"))}
    write(tmp_path / "new" / "model.safetensors", new | {"x": tensor("U8", (8,), bytes([7]) * 8)})
    client = Client(hub, tmp_path / "a")
    client.run("make", tmp_path / "base", tmp_path / "new", "-o", "patch")
    hub.add("me/big", files_of(tmp_path / "a" / "patch"))
    for arguments in (
        ("info", "me/big"),
        ("report", "me/big"),
        ("apply", tmp_path / "base", "me/big", "-o", "w.safetensors", "--only", "w"),
    ):
        hub.sent.clear()
        client.run(*arguments)
        assert 0 < sum(hub.sent.values()) < 50_000, hub.sent
    assert not (tmp_path / "a" / "home" / "hub").exists() and (tmp_path / "a" / "w.safetensors").exists()


def test_every_command_takes_ids(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    publish(hub, client, models)
    hub.add("org/tuned", files_of(models[1]), branch="v1")
    client.run("make", "org/base@main", "hf://org/tuned@v1", "-o", "p2")
    recorded = json.loads(client.run("info", "p2", "--json").stdout)["extra"]
    assert recorded["target_repo"] == "org/tuned" and recorded["base_revision"] == hub.repos["org/base"].branches["main"]
    client.run("apply", "org/base", "me/patch", "-o", "out")
    assert files_of(tmp_path / "a" / "out") == files_of(models[1])
    client.run("verify", "me/patch", "--base", "org/base", "--target", "out")
    client.run("compare", "org/tuned@v1", "out")
    client.run("report", "org/base", "me/patch", "--rank", "none")
    shared = client.run("overlap", "me/patch", "org/tuned@v1", "--base", "org/base", "--json").stdout
    assert json.loads(client.run("overlap", "org/tuned@v1", "me/patch", "p2", "--json").stdout)["pairs"][2]["jaccard"] == 1.0
    assert client.run("overlap", "me/patch", "org/tuned@v1", "--json").stdout.replace(f"@{recorded['base_revision']}", "") == shared
    client.run("make", "hf://org/base/model-00001-of-00002.safetensors", models[1] / "model-00001-of-00002.safetensors", "-o", "x")
    assert "ckptdiff pull me/patch -o OUT" in client.run("compare", "me/patch", "out", code=3).stderr


def test_live_patches_find_their_base(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """``Patch.open`` and ``load_target`` by id; the base is the repo that the patch names."""
    pytest.importorskip("torch", reason="torch is not installed")
    client = Client(hub, tmp_path / "a")
    publish(hub, client, models)
    code = """
import ckptdiff, numpy as np
from safetensors.torch import load_file
from pathlib import Path
import sys
target = {k: v for f in Path(sys.argv[1]).glob("*.safetensors") for k, v in load_file(f).items()}
base = {k: v for f in Path(sys.argv[2]).glob("*.safetensors") for k, v in load_file(f).items()}
with ckptdiff.Patch.open("me/patch") as patch:
    patch.apply_(base)
for found in (base, ckptdiff.load_target(None, "me/patch")):
    assert found.keys() == target.keys() and all((found[k] == target[k]).all() for k in target)
try: patch.load(base)
except ckptdiff.CheckpointError as error: print(error)
"""
    command = [sys.executable, "-c", code, str(models[1]), str(models[0])]
    done = subprocess.run(command, cwd=client.folder, env=client.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("the patch is closed: open it again\n"), done.stderr


def test_verify_against_a_repo(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    hub.add("org/tuned", files_of(models[1]))
    hub.sent.clear()
    client.run("verify", models[1], "--hub", "org/tuned")
    assert sum(hub.sent.values()) < 20_000
    other = client.run("verify", models[2], "--hub", "org/tuned", code=1).stdout
    assert "model-00001-of-00002.safetensors: its SHA-256 is" in other and "tokenizer.json" in other and "config.json" not in other
    (models[1] / "config.json").write_text("{}")
    assert "config.json: its SHA-1, as git computes it, is" in client.run("verify", models[1], "--hub", "org/tuned", code=1).stdout
    os.rename(models[0], tmp_path / "store")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "unet").symlink_to(tmp_path / "store")
    hub.add("org/linked", {f"unet/{name}": data for name, data in files_of(tmp_path / "store").items()})
    client.run("verify", tmp_path / "linked", "--hub", "org/linked")

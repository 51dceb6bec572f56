"""Chains on the Hub: pushed and pulled, whole and by step, and taken up again where a run was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ckptdiff
from tests.support.checkpoints import tree
from tests.support.hub_client import CARD, Client, files_of
from tests.support.hub_state import Fault, Hub

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


@pytest.fixture
def client(hub: Hub, models: list[Path], tmp_path: Path) -> Client:
    """A user with a chain of two steps, from a base on the Hub."""
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    client = Client(hub, tmp_path / "a")
    for k in (1, 2):
        client.run("chain", "add", "chain", models[k], "--base", "org/base", "--step", 100 * k, "--codec", "sparse")
    return client


def test_there_and_back(hub: Hub, client: Client, models: list[Path], tmp_path: Path) -> None:
    shown = client.run("push", "chain", "me/run", "--dry-run").stdout
    assert "not sent" in shown and "me/run" not in hub.repos
    client.run("push", "chain", "me/run")
    card = hub.tree("me/run")["README.md"].decode()
    assert "base_model: org/base" in card and "ckptdiff pull me/run --step 200 -o step-200\n" in card and "license: apache-2.0" in card
    commits, files = len(hub.repos["me/run"].commits), len(files_of(tmp_path / "a" / "chain"))
    again = client.run("push", "chain", "me/run").stdout
    assert f"not sent  0 B in 0 files; {files} files there already" in again and len(hub.repos["me/run"].commits) == commits
    other = Client(hub, tmp_path / "b")
    other.run("pull", "me/run", "--step", 200, "-o", "step")
    assert files_of(tmp_path / "b" / "step") == files_of(models[2])
    other.run("pull", "me/run", "--step", 200, "-o", "from", "--base", models[1])
    assert files_of(tmp_path / "b" / "from") == files_of(models[2])
    shown = other.run("pull", "me/run", "-o", "run").stdout
    assert "2 steps of me/run@" in shown and other.run("chain", "verify", "run").stdout.startswith("no problem")
    assert tree(tmp_path / "b" / "run") == tree(tmp_path / "a" / "chain")
    assert "fetched  0 files, 0 B; " in other.run("pull", "me/run", "-o", "run").stdout
    other.run("chain", "restore", "run", 100, "-o", "first")
    assert files_of(tmp_path / "b" / "first") == files_of(models[1])


def test_what_is_there_is_not_sent_or_fetched_again(hub: Hub, client: Client, models: list[Path], tmp_path: Path) -> None:
    other = Client(hub, tmp_path / "b")
    client.run("push", "chain", "me/run")
    other.run("pull", "me/run", "-o", "run")
    before = set(hub.tree("me/run"))
    (models[2] / "config.json").write_text('{"model_type": "llama", "hidden_size": 65}\n')
    client.run("chain", "add", "chain", models[2], "--step", 300)
    more = json.loads(client.run("push", "chain", "me/run", "--json").stdout)
    assert set(more["files"]) - {"HEAD.json", "README.md"} == set(hub.tree("me/run")) - before
    assert all("000300" in path or path.startswith("epochs/") for path in set(hub.tree("me/run")) - before)
    done = json.loads(other.run("pull", "me/run", "-o", "run", "--json").stdout)
    assert done["steps"] == 3 and done["files"] < len(before)
    mine, theirs = tree(tmp_path / "a" / "chain"), tree(tmp_path / "b" / "run")
    assert {key: theirs[key] for key in mine} == mine, "it has an older publisher's epoch beside these"
    other.run("chain", "verify", "run")


def piecewise(client: Client, call: str) -> str:
    """Call a function that sends or fetches one patch at a time here; returns what it says when it fails."""
    code = "import sys, ckptdiff; from ckptdiff.verbs import chain_pull, chain_push; "
    code += f"chain_pull.FILES_AT_ONCE = chain_push.FILES_AT_ONCE = 1; ckptdiff.{call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=client.folder, env=client.environment, capture_output=True, text=True)
    assert done.returncode == 1, done
    return done.stderr


def test_a_push_and_a_pull_that_are_stopped(hub: Hub, client: Client, tmp_path: Path) -> None:
    """Whatever was completed before the fault is whole, and the next run goes on from it."""
    hub.faults += [Fault("POST .*/commit/.*", kind="slow", times=2), Fault("POST .*/commit/.*", status=403)]
    assert "HubError: me/run: your token may not do this" in piecewise(client, "chain_push('chain', 'me/run')")
    sent = set(hub.tree("me/run"))
    assert "chain.json" in sent and any("000100" in path for path in sent) and not any("000000000200-" in path for path in sent)
    other = Client(hub, tmp_path / "b")
    assert "1 step of me/run" in other.run("pull", "me/run", "-o", "part").stdout
    more = json.loads(client.run("push", "chain", "me/run", "--json").stdout)
    assert len(more["commits"]) == 1 and not sent.intersection(more["files"])
    hub.faults.append(Fault("(GET|HEAD) .*/resolve/.*/steps/000000000200-.*", status=403, times=99))
    assert "HubError" in piecewise(other, "chain_pull('me/run', 'run')")
    there = {path for path in files_of(tmp_path / "b" / "run") if path.startswith("steps/")}
    assert there and all("000000000100" in path for path in there)
    hub.faults.clear()
    done = json.loads(other.run("pull", "me/run", "-o", "run", "--json").stdout)
    assert done["present"] >= len(there) and tree(tmp_path / "b" / "run") == tree(tmp_path / "a" / "chain")


def test_what_is_refused(hub: Hub, client: Client, models: list[Path], tmp_path: Path) -> None:
    client.run("push", "chain", "me/run")
    client.run("chain", "add", "second", models[1], "--base", models[0], "--step", 5)
    assert "me/run: holds another chain" in client.run("push", "second", "me/run", code=3).stderr
    assert "does not record its base: push with --license NAME" in client.run("push", "second", "me/new", code=3).stderr
    client.run("make", models[0], models[1], "-o", "patch", "--base-repo", "org/base")
    client.run("push", "patch", "me/patch")
    assert "me/patch: holds a patch: push the chain to a repo of its own" in client.run("push", "chain", "me/patch", code=3).stderr
    assert "holds no chain" in client.run("pull", "me/patch", "--step", 5, "-o", "x", code=3).stderr
    assert "has no step 150" in client.run("pull", "me/run", "--step", 150, "-o", "x", code=3).stderr
    assert "--create-pr does not go with a chain" in client.run("push", "chain", "me/run", "--create-pr", code=2).stderr
    (tmp_path / "a" / "full").mkdir()
    (tmp_path / "a" / "full" / "file").write_text("mine")
    assert "is not a chain, and not empty: it has file" in client.run("pull", "me/run", "-o", "full", code=3).stderr
    assert "full/chain.json" not in files_of(tmp_path / "a")
    broken = tmp_path / "a" / "chain" / "steps"
    path = max(broken.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "does not verify, so it was not published" in client.run("push", "chain", "me/third", code=3).stderr
    assert "me/third" not in hub.repos and ckptdiff.chain_verify(tmp_path / "a" / "second").ok


def test_a_hub_that_names_files_elsewhere(hub: Hub, client: Client, tmp_path: Path) -> None:
    """Objects with paths that are no files of a patch: refused, or left out, before anything is fetched."""
    client.run("push", "chain", "me/run")
    files = hub.tree("me/run")
    folder = next(path for path in files if path.startswith("steps/")).split("/")[1]
    hub.add("me/odd", {**files, f"steps/{folder}/more.bin": b"x", f"steps/{folder}/files/../../../out.bin": b"x"})
    hub.add("me/bad", {**files, f"steps/{folder}/files/a\\b": b"x"})
    other = Client(hub, tmp_path / "b")
    other.run("pull", "me/odd", "-o", "odd")
    assert tree(tmp_path / "b" / "odd") == tree(tmp_path / "a" / "chain") and not list(tmp_path.rglob("out.bin"))
    assert folder in other.run("pull", "me/bad", "-o", "bad", code=3).stderr
    assert not (tmp_path / "b" / "bad").exists()
